"""Ranks do what one process does, in every layout of experts, with Adam and clipping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import train, watch, watched
from torch import Tensor
from toy import EXACT

from zcode_plugin.checkpoint import io, names

UPDATES = 10
# 8 batches an update, however many ranks there are.
BATCHES = 8
CLIP = 0.3
OPTIONS = (
    "--max-update", UPDATES, "--max-tokens", "300", "--clip-norm", CLIP, "--disable-validation",
    # Some gradients are nothing but rounding (that of a key's bias is zero on paper). Adam divides
    # by their size plus its epsilon, and would make steps of them with an epsilon of their size.
    "--adam-eps", "1e-4",
)  # fmt: skip
# The balance loss is a product of means over a rank's batch: by design it is that of the batches.
COMPARABLE = (*EXACT, "--moe-gate-loss-wt", "0")
RANDOM = ("--moe-jitter-eps", "0.01", "--moe-token-priority", "rts", "--moe-capacity-factor", "0.8")
LAYOUTS = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


@dataclass
class Run:
    """What a run did: by update the loss, the norm, and the targets of each rank's batches."""

    losses: Tensor
    norms: Tensor
    targets: list[list[list[int]]]
    weights: dict[str, Tensor]


def run_layout(data: Path, folder: Path, world: int, size: int, *options: object) -> Run:
    """Train in a layout; weights are those of all ranks together."""
    folder.mkdir()
    train(
        data, folder / "save", *OPTIONS, "--update-freq", BATCHES // world,
        "--expert-parallel-size", size, *options, world=world, inside=partial(watch, folder),
    )  # fmt: skip
    entries = [watched(folder, rank) for rank in range(world)]
    last = folder / "save" / "checkpoint_last.pt"
    weights: dict[str, Tensor] = {}
    for path in names.find_rank_files(last).values() if size > 1 else [last]:
        weights |= io.load(path)["model"]
    return Run(
        losses=torch.tensor([entry["loss"] for entry in entries[0]], dtype=torch.float64),
        norms=torch.tensor([entry["norm"] for entry in entries[0]], dtype=torch.float64),
        targets=[[entry["targets"] for entry in rank] for rank in entries],
        weights={key: value for key, value in weights.items() if "_float_tensor" not in key},
    )


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_layout(reversal, tmp_path_factory.mktemp("single") / "run", 1, 1, *COMPARABLE)


def slow_unless(condition: Callable[[int, int], bool]) -> list[object]:
    return [
        pytest.param(*layout, marks=[] if condition(*layout) else pytest.mark.slow)
        for layout in LAYOUTS
    ]


@pytest.mark.parametrize(
    ("world", "size"), slow_unless(lambda world, size: world == 4 and size == 2)
)
def test_ten_updates_equal_those_of_one_process(
    single: Run, reversal: Path, tmp_path: Path, world: int, size: int
) -> None:
    run = run_layout(reversal, tmp_path / "run", world, size, *COMPARABLE)
    assert len(single.losses) == UPDATES
    assert single.norms.min() > CLIP, "not every update was clipped"
    assert run.targets[0] != run.targets[1], "the ranks' batches were alike"
    torch.testing.assert_close(run.losses, single.losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(run.norms, single.norms, rtol=0, atol=1e-5)
    assert run.weights.keys() == single.weights.keys()
    for key, weight in single.weights.items():
        torch.testing.assert_close(run.weights[key], weight, rtol=0, atol=1e-5, msg=key)


@pytest.mark.parametrize(("world", "size"), slow_unless(lambda world, size: world == 2 == size))
def test_a_layout_repeats_itself_bit_for_bit(
    reversal: Path, tmp_path: Path, world: int, size: int
) -> None:
    one, other = (
        run_layout(reversal, tmp_path / name, world, size, *RANDOM) for name in ("one", "other")
    )
    assert torch.equal(one.losses, other.losses)
    assert torch.equal(one.norms, other.norms)
    for key, weight in one.weights.items():
        assert torch.equal(other.weights[key], weight), key


@pytest.mark.parametrize(("world", "size"), slow_unless(lambda world, size: world == 4 == size))
@pytest.mark.parametrize("sentences", [16, pytest.param(100, marks=pytest.mark.slow)])
def test_ranks_without_a_batch(
    reversal: Path, tmp_path: Path, world: int, size: int, sentences: int
) -> None:
    """200 sentences make 13 batches: a full update and one of 5; or 2, fewer than 4 ranks."""
    options = (
        "--train-subset", "test", "--batch-size", sentences, "--max-tokens", "3000",
        "--max-update", "4", *COMPARABLE,
    )  # fmt: skip
    one = run_layout(reversal, tmp_path / "one", 1, 1, *options)
    run = run_layout(reversal, tmp_path / "run", world, size, *options)
    assert any(0 in targets for targets in run.targets[-1]), "the last rank never lacked a batch"
    torch.testing.assert_close(run.losses, one.losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(run.norms, one.norms, rtol=0, atol=1e-5)
    for key, weight in one.weights.items():
        torch.testing.assert_close(run.weights[key], weight, rtol=0, atol=1e-5, msg=key)
