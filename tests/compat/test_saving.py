"""Ranks that are killed at the worst moments of a save: no part of a file, no loss, no mixture."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks
from fairseq import checkpoint_utils

from zcode_plugin.checkpoint import config, io
from zcode_plugin.checkpoint.sets import finish_save


def state(rank: int, updates: int) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((1000,), float(rank))},
        "optimizer_history": [{"num_updates": updates}],
        "cfg": {"checkpoint": {"checkpoint_suffix": f"-rank-{rank}"}},
    }


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesWhenSaved:
    def __reduce__(self) -> Any:
        die()


def die_in_copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes()[:100])
    die()


def save(folder: Path, rank: int, updates: int, extra: Any = None) -> None:
    """As stock does: one file, and a copy of it."""
    first, last = (f"{folder}/checkpoint_{name}-rank-{rank}.pt" for name in ("best", "last"))
    checkpoint_utils.torch_persistent_save({**state(rank, updates), "extra": extra}, first)
    checkpoint_utils.PathManager.copy(first, last, overwrite=True)


def save_twice(rank: int, folder: Path, moment: str) -> None:
    """A save that works, and one in which rank 1 is killed."""
    save(folder, rank, 100)
    extra = None
    if rank == 1 and moment == "writing":
        extra = DiesWhenSaved()
    elif rank == 1 and moment == "copying":
        shutil.copyfile = die_in_copy
    elif rank == 1:
        os.replace = die
    save(folder, rank, 200, extra)


def updates(path: Path) -> int:
    return config.num_updates(io.load(path))


@pytest.mark.parametrize(
    ("moment", "best", "last"),
    [("writing", 100, 100), ("copying", 200, 100), ("renaming", 200, 100)],
)
def test_a_killed_rank(tmp_path: Path, moment: str, best: int, last: int) -> None:
    with pytest.raises(RuntimeError, match="failed"):
        run_ranks(save_twice, 2, tmp_path, moment)
    if moment == "renaming":  # the files of all ranks were whole, one has its name
        assert updates(tmp_path / "checkpoint_best-rank-0.pt") == 200
        assert updates(tmp_path / "checkpoint_best-rank-1.pt") == 100
    for name, expected in (("best", best), ("last", last)):
        finish_save(
            tmp_path / f"checkpoint_{name}.pt",
            [tmp_path / f"checkpoint_{name}-rank-{rank}.pt" for rank in range(2)],
        )
        for rank in range(2):
            assert updates(tmp_path / f"checkpoint_{name}-rank-{rank}.pt") == expected


@pytest.mark.parametrize(
    "spoil",
    [
        lambda partial: partial.unlink(),
        lambda partial: partial.write_bytes(partial.read_bytes()[:100]),
        lambda partial: torch.save(state(1, 150), partial),
    ],
    ids=["gone", "cut", "of another save"],
)
def test_what_cannot_be_completed_stays(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    paths = [tmp_path / f"checkpoint_last-rank-{rank}.pt" for rank in range(2)]
    for rank, path in enumerate(paths):
        torch.save(state(rank, 200 - 100 * rank), path)
    partial = Path(f"{paths[1]}.tmp")
    torch.save(state(1, 200), partial)
    spoil(partial)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    paths = [tmp_path / f"checkpoint_last-rank-{rank}.pt" for rank in range(2)]
    finish_save(tmp_path / "checkpoint_last.pt", paths)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def save_crash(rank: int, folder: Path) -> None:
    if rank == 0:  # alone: the other ranks do not crash
        checkpoint_utils.torch_persistent_save(state(rank, 1), f"{folder}/crash.pt")


def test_a_crash_is_saved_under_a_name_of_the_ranks_own(tmp_path: Path) -> None:
    run_ranks(save_crash, 2, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["crash-rank-0.pt"]
