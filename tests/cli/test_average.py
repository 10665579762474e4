"""`zcode average` as users call it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.rank_files import rank_state

from zcode_plugin.checkpoint import io

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of three epochs, each of two ranks."""
    for epoch in (1, 2, 3):
        for rank in range(2):
            state = rank_state(rank)
            state["optimizer_history"][-1]["num_updates"] = 10 * epoch
            torch.save(state, tmp_path / f"checkpoint{epoch}-rank-{rank}.pt")
    return tmp_path


def test_averages_rank_files_and_merges_when_asked(zcode: Run, here: Run, folder: Path) -> None:
    newest = ("average", folder, "--num-epoch-checkpoints", "2", "--out", folder / "mean.pt")
    ended = zcode(*newest)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    written = [folder / f"mean-rank-{rank}.pt" for rank in range(2)]
    size = sum(path.stat().st_size for path in written)
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"average 2 checkpoints ... {written[0]} (")
    assert [line.split() for line in lines[1:]] == [
        ["checkpoint", "files", "updates"],
        ["-" * len(lines[2])],
        [f"{folder}/checkpoint2-rank-0.pt", "2", "20"],
        [f"{folder}/checkpoint3-rank-0.pt", "2", "30"],
        f"{size:,} bytes in 2 files, without an optimizer's state".split(),
    ]
    for rank, path in enumerate(written):  # the mean of equal weights
        for key, value in rank_state(rank)["model"].items():
            assert torch.equal(io.load(path)["model"][key], value), key
    assert here(*newest).stderr == (
        f"zcode average: error: {written[0]} exists: --force overwrites it, --out names another\n"
    )
    assert here(*newest, "--force", "--merge").returncode == 0
    assert io.load(folder / "mean.pt")["cfg"]["model"].expert_parallel_size == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}"], "a folder, and --checkpoint-upper-bound, go with --num-epoch-checkpoints N or "
         "--num-update-checkpoints N: add one"),
        (["{0}", "--num-epoch-checkpoints=4"],
         "{0} has checkpoints of 3 epochs, not 4: ask for fewer"),
        (["{0}", "{0}/x.pt", "--num-update-checkpoints=1"],
         "--num-update-checkpoints chooses from one folder: {0}/x.pt is none"),
        (["{0}", "--num-epoch-checkpoints=0"], "0 checkpoints are too few: give at least 1"),
        (["{0}/checkpoint4.pt"], "there is no {0}/checkpoint4.pt, nor "
         "{0}/checkpoint4-rank-0.pt: name a checkpoint"),
    ],
)  # fmt: skip
def test_mistakes(here: Run, folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(folder.iterdir())
    command = [word.format(folder) for word in arguments]
    ended = here("average", *command, "--out", folder / "mean.pt")
    assert ended.returncode == 2
    assert ended.stderr == f"zcode average: error: {message.format(folder)}\n"
    assert sorted(folder.iterdir()) == before
