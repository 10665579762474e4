"""`--moe-balance` under stock fairseq-train."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch
from torch import Tensor
from toy import EXACT, train

from zcode_plugin.checkpoint.io import load

BIAS = (*EXACT, "--moe-balance", "bias", "--moe-bias-update-rate", "0.01")


def selection_biases(save_dir: Path, rank: str = "") -> dict[str, Tensor]:
    model = load(save_dir / f"checkpoint_last{rank}.pt")["model"]
    return {name: value for name, value in model.items() if name.endswith("selection_bias")}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def straight(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Six updates of two batches each in one process."""
    save_dir = tmp_path_factory.mktemp("straight")
    train(reversal, save_dir, *BIAS, "--max-update", "6", "--update-freq", "2")
    return selection_biases(save_dir)


def test_biases_have_moved_by_whole_steps(straight: dict[str, Tensor]) -> None:
    names = [f"{side}.layers.1.moe_layer.gate.selection_bias" for side in ("encoder", "decoder")]
    assert sorted(straight) == sorted(names)
    for bias in straight.values():
        steps = bias / 0.01
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert steps.abs().max() >= 1


def test_ranks_move_as_one_process(
    reversal: Path, tmp_path: Path, straight: dict[str, Tensor]
) -> None:
    expert_parallel = ("--expert-parallel-size", "2")
    options = ("--max-tokens", "1000", "--max-update", "6", *expert_parallel)
    ranks.train(reversal, tmp_path, *BIAS, *options, world=2)
    assert_equal(selection_biases(tmp_path, "-rank-0"), selection_biases(tmp_path, "-rank-1"))
    assert_equal(selection_biases(tmp_path, "-rank-0"), straight)


def test_a_resumed_run_with_recomputation_moves_alike(
    reversal: Path, tmp_path: Path, straight: dict[str, Tensor]
) -> None:
    options = (*BIAS, "--update-freq", "2", "--checkpoint-activations")
    train(reversal, tmp_path, *options, "--max-update", "3")
    train(reversal, tmp_path, *options, "--max-update", "6")
    assert_equal(selection_biases(tmp_path), straight)


def test_the_balance_loss_is_trained_with_loss_alone(reversal: Path, tmp_path: Path) -> None:
    weights = {}
    for balance, weight in (("none", "0"), ("none", "5"), ("loss", "5")):
        save_dir = tmp_path / f"{balance}-{weight}"
        train(
            reversal, save_dir, *EXACT, "--max-update", "2", "--moe-balance", balance,
            "--moe-gate-loss-wt", weight,
        )  # fmt: skip
        model = load(save_dir / "checkpoint_last.pt")["model"]
        weights[balance, weight] = model["encoder.layers.1.moe_layer.gate.wg.weight"]
    assert torch.equal(weights["none", "0"], weights["none", "5"])
    assert not torch.equal(weights["none", "0"], weights["loss", "5"])


def test_layers_that_are_dropped_now_and_then_have_their_biases(
    reversal: Path, tmp_path: Path
) -> None:
    train(
        reversal, tmp_path, *BIAS, "--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5",
        "--max-update", "8",
    )  # fmt: skip
    assert all(bias.any() for bias in selection_biases(tmp_path).values())
