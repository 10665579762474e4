"""A run that is moved to another number of ranks goes on as if it had not been moved."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel.test_equals_one_process import assert_same, merged_weights, weights
from ranks import train
from torch import Tensor
from toy import EXACT

from zcode_plugin.checkpoint import config, io
from zcode_plugin.cli.main import main

OPTIONS = (
    *EXACT, "--max-tokens", "300", "--clip-norm", "1", "--disable-validation",
    "--save-interval-updates", "1",
)  # fmt: skip


def expert_parallel(size: int) -> tuple[str, ...]:
    return ("--expert-parallel-size", str(size)) if size > 1 else ()


def all_weights(save_dir: Path, size: int) -> dict[str, Tensor]:
    """But those whose gradient is 0 but for rounding, of which Adam makes whole steps."""
    whole = merged_weights(save_dir) if size > 1 else weights(save_dir / "checkpoint_last.pt")
    return {key: value for key, value in whole.items() if not key.endswith("k_proj.bias")}


def losses(save_dir: Path, size: int) -> list[float]:
    """Of each update that was saved, with all digits, as the trainer's meters have it."""
    suffix = "-rank-0" if size > 1 else ""
    found = {}
    for path in save_dir.glob(f"checkpoint_1_*{suffix}.pt"):
        state = io.load_options(path)
        [value] = [
            meter["val"]
            for _, name, _, meter in state["extra_state"]["metrics"]["train"]
            if name == "mt_loss"
        ]
        found[config.num_updates(state)] = value
    return [found[update] for update in sorted(found)]


def reshard(source: Path, size: int, out: Path) -> None:
    assert main(["reshard", str(source), "--ranks", str(size), "--out", str(out)]) == 0


def check(
    data: Path,
    folder: Path,
    world: int,
    moves: list[int],
    move_at: int,
    stop: int,
    *,
    groups_of: int | None = None,
    through: int | None = None,
    options: tuple[str, ...] = (),
    tolerance: float = 1e-4,
) -> None:
    """A run on `world` ranks, and after `move_at` updates the same run on each of `moves`.

    The batches of an update stay: ranks x --update-freq is `world`. `groups_of` so many ranks hold
    all experts in the unmoved run, by default all of them do. The checkpoint is divided over
    `through` ranks first, if that is given, and then anew.
    """
    unmoved, last = folder / "unmoved", ("--max-update", str(stop), *options)
    train(data, unmoved, *OPTIONS, *last, *expert_parallel(groups_of or world), world=world)
    expected, final = losses(unmoved, world), all_weights(unmoved, world)
    assert len(expected) == stop
    source = unmoved / f"checkpoint_1_{move_at}.pt"
    if through is not None:
        reshard(source, through, folder / "way" / "there.pt")
        source = folder / "way" / "there.pt"
    for size in moves:
        moved = folder / f"moved{size}"
        reshard(source, size, moved / "checkpoint_last.pt")
        frequency = ("--update-freq", str(world // size))
        train(data, moved, *OPTIONS, *last, *frequency, *expert_parallel(size), world=size)
        assert losses(moved, size) == pytest.approx(expected[move_at:], abs=tolerance)
        assert_same(final, all_weights(moved, size), tolerance)


def test_two_ranks_to_one(reversal: Path, tmp_path: Path) -> None:
    check(reversal, tmp_path, world=2, moves=[1], move_at=3, stop=8)


@pytest.mark.slow
def test_four_ranks_to_two_and_to_one(reversal: Path, tmp_path: Path) -> None:
    check(reversal, tmp_path, world=4, moves=[2, 1], move_at=6, stop=16)


@pytest.mark.slow
def test_and_back_to_four(reversal: Path, tmp_path: Path) -> None:
    check(reversal, tmp_path, world=4, moves=[4], move_at=6, stop=16, through=1)


@pytest.mark.slow
def test_two_groups_of_two_ranks_to_one_group(reversal: Path, tmp_path: Path) -> None:
    check(reversal, tmp_path, world=4, moves=[2], move_at=6, stop=16, groups_of=2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["--memory-efficient-fp16", "--fp16-no-flatten-grads"])
def test_half_precision_and_averaged_weights(
    reversal: Path, tmp_path: Path, precision: str
) -> None:
    options = ("--fp16", precision, "--fp16-init-scale", "4", "--store-ema", "--ema-fp32")
    # A half has 11 bits, and the order of sums is another.
    check(
        reversal, tmp_path, world=2, moves=[1], move_at=3, stop=8, options=options, tolerance=1e-3
    )
