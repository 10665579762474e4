"""`zcode merge` as users call it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint.rank_files import rank_state, whole_model, write_rank_files

from zcode_plugin.checkpoint import io

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def files(tmp_path: Path) -> dict[int, Path]:
    return write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})


def test_merges_all_ranks_and_overwrites_only_when_forced(
    zcode: Run, here: Run, files: dict[int, Path], tmp_path: Path
) -> None:
    ended = zcode("merge", files[1])
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    merged = tmp_path / "checkpoint_last.pt"
    assert io.load(merged)["model"].keys() == whole_model().keys()
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"merge 2 files ... {merged} (")
    read = sum(path.stat().st_size for path in files.values())
    assert [line.rsplit(maxsplit=1) for line in lines[1:-1]] == [
        ["ranks", "2"],
        ["updates", "40"],
        ["MoE layers", "2"],
        ["experts of a layer", "4"],
        ["parameters", "221"],
        ["bytes read", f"{read:,}"],
        ["bytes written", f"{merged.stat().st_size:,}"],
    ]
    assert lines[-1] == (
        "without the optimizer's state: to train on, use fairseq-train --finetune-from-model"
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint_last.pt", "checkpoint_last-rank-0.pt", "checkpoint_last-rank-1.pt")
    }

    content = merged.read_bytes()
    merged.write_text("precious", encoding="utf-8")
    ended = here("merge", merged)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"zcode merge: error: {merged} exists: --force overwrites it, --out names another\n"
    )
    assert merged.read_text(encoding="utf-8") == "precious"
    assert here("merge", merged, "--force").returncode == 0
    assert merged.read_bytes() == content


def test_a_truncated_file_is_told_in_one_line(
    here: Run, files: dict[int, Path], tmp_path: Path
) -> None:
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 2])
    ended = here("merge", files[0])
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"zcode merge: error: {files[1]}: ")
    assert ended.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files.values()}


def test_one_file_needs_no_merging(here: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_best.pt"
    path.touch()
    ended = here("merge", path)
    assert ended.returncode == 0
    assert ended.stdout == f"{path} is one file for all ranks: nothing to merge\n"
    ended = here("merge", path, "--out", tmp_path / "model.pt")
    assert ended.returncode == 2
    assert ended.stderr == (
        f"zcode merge: error: {path} is one file for all ranks: use it as it is, without --out\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}.pt"], "there is no {none}.pt, nor {none}-rank-0.pt: name a checkpoint"),
        (["{none}-rank-3.pt"], "there is no {none}-rank-3.pt, nor {none}-rank-0.pt: name a "
         "checkpoint"),
        (["{0}", "--out", "{1}"], "--out: {1} is one of the files to read; name another"),
        (["{0}", "--out", "{none}/x.pt"], "--out {none}/x.pt: there is no folder {none}; make it "
         "first"),
        (["{0}", "--out", ".", "--force"], "--out . is a folder: name a file"),
        (["{0}", "--out", "x-rank-0.pt"], "--out x-rank-0.pt: give the name without -rank-0"),
        (["{0}", "--out", "x-shard1.pt"], "--out x-shard1.pt: give the name without -shard1"),
        (["."], ". is a folder: name a checkpoint in it"),
    ],
)  # fmt: skip
def test_mistakes(
    here: Run, files: dict[int, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"none": tmp_path / "none"}
    ended = here("merge", *(word.format(*files.values(), **names) for word in arguments))
    assert ended.returncode == 2
    assert ended.stderr == f"zcode merge: error: {message.format(*files.values(), **names)}\n"
