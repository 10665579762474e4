"""MoE options under the stock commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch
from torch import Tensor
from toy import MODEL, TASK, command, generate, lines, train

from zcode_plugin.checkpoint.io import load

# Every source of randomness at once.
RANDOM = (
    "--dropout", "0.1", "--moe-top-k", "2", "--moe-second-expert-policy", "sampling",
    "--moe-capacity-factor", "0.75", "--moe-eom", "0.2", "--moe-gating-dropout", "0.5",
    "--moe-residual", "--moe-expert-count", "4,2", "--update-freq", "2",
)  # fmt: skip


def weights(path: Path) -> dict[str, Tensor]:
    """All but stock's placeholder for a dtype, which is never written."""
    return {
        name: value
        for name, value in load(path)["model"].items()
        if not name.endswith("embed_positions._float_tensor")
    }


def test_a_resumed_run_repeats_every_draw(reversal: Path, tmp_path: Path) -> None:
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    train(reversal, straight, *RANDOM, "--max-update", "4")
    for updates in ("2", "4"):
        train(reversal, parts, *RANDOM, "--max-update", updates)
    one, other = weights(straight / "checkpoint_last.pt"), weights(parts / "checkpoint_last.pt")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    prefix = "{}.layers.1.moe_layer.{}"
    assert one[prefix.format("encoder", "gate.wg.weight")].shape == (4, 64)
    assert one[prefix.format("decoder", "gate.wg.weight")].shape == (2, 64)
    assert prefix.format("decoder", "residual.coefficient.weight") in one
    assert prefix.format("decoder", "experts.2.fc1.weight") not in one


def test_recomputation_repeats_every_draw(reversal: Path, tmp_path: Path) -> None:
    # Not Adam, which turns rounding errors of gradients that should be 0 into whole steps.
    options = (*RANDOM, "--optimizer", "sgd", "--lr", "1", "--max-update", "3")
    train(reversal, tmp_path / "plain", *options)
    train(reversal, tmp_path / "again", *options, "--checkpoint-activations")
    one, other = (weights(tmp_path / name / "checkpoint_last.pt") for name in ("plain", "again"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5, msg=name)


# Random evaluates as hash does: see tests/moe/test_fixed_gates.py.
@pytest.mark.parametrize(
    "gate",
    [
        "--moe-gate hash",
        pytest.param("--moe-gate random", marks=pytest.mark.slow),
        "--moe-gate-sees-token",
    ],
)
def test_translations_by_gates_that_know_tokens_do_not_depend_on_the_batch(
    reversal: Path, tmp_path: Path, gate: str
) -> None:
    train(reversal, tmp_path, *gate.split(), "--max-update", "4")
    checkpoint = tmp_path / "checkpoint_last.pt"
    learned = [name for name in weights(checkpoint) if ".gate." in name]
    assert bool(learned) == (gate == "--moe-gate-sees-token")
    one, many = (
        lines(generate(reversal, checkpoint, "aa", "bb", "--batch-size", size), "H")
        for size in ("1", "64")
    )
    assert len(one) == 100
    assert [line.split("\t")[2] for line in one] == [line.split("\t")[2] for line in many]


def test_ranks_flip_the_same_coins(reversal: Path, tmp_path: Path) -> None:
    # Ranks that disagreed would wait for each other's tokens for ever.
    ranks.train(
        reversal, tmp_path, *RANDOM, "--moe-gating-dropout-policy", "skip", "--max-tokens", "1000",
        "--expert-parallel-size", "2", "--max-update", "6", world=2,
    )  # fmt: skip
    first, second = (weights(tmp_path / f"checkpoint_last-rank-{rank}.pt") for rank in (0, 1))
    shared = first.keys() & second.keys()
    assert "encoder.layers.1.moe_layer.residual.fc1.weight" in shared
    for name in shared:
        assert torch.equal(first[name], second[name]), name


def test_a_contradiction_is_one_line(reversal: Path, tmp_path: Path) -> None:
    done = command(
        "fairseq-train", reversal, *TASK, *MODEL, "--criterion", "multitask_summed_loss",
        "--optimizer", "adam", "--max-tokens", "1000", "--cpu", "--save-dir", tmp_path,
        "--moe-gate", "hash", "--moe-balance", "bias",
    )  # fmt: skip
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("zcode_plugin: ")] == [
        "zcode_plugin: error: --moe-balance bias needs the scores of a learned gate, --moe-gate "
        "hash has none: drop one of them"
    ]
    assert "Traceback" not in done.stderr
