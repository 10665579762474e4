"""`zcode reshard` as users call it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint.rank_files import rank_state, write_rank_files

from zcode_plugin.checkpoint import io

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def files(tmp_path: Path) -> dict[int, Path]:
    return write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})


def test_writes_all_ranks_and_overwrites_only_when_forced(
    zcode: Run, here: Run, files: dict[int, Path], tmp_path: Path
) -> None:
    out = tmp_path / "four"
    ended = zcode("reshard", files[1], "--ranks", "4", "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    written = [out / f"checkpoint_last-rank-{rank}.pt" for rank in range(4)]
    assert sorted(out.iterdir()) == written
    sizes = [
        f"{sum(path.stat().st_size for path in paths):,}" for paths in (files.values(), written)
    ]
    lines = ended.stdout.splitlines()
    assert [line.rsplit(maxsplit=2) for line in lines[4:-2]] == [
        ["ranks", "2", "4"],
        ["expert parallel size", "2", "4"],
        ["slices of a layer", "1", "1"],
        ["files", "2", "4"],
        ["optimizer's state in a file", "whole", "whole"],
        ["experts of a layer on a rank", "2", "1"],
        ["epoch", "2", "2"],
        ["batches of a rank in it", "5", "2"],
        ["bytes", *sizes],
    ]
    assert lines[-2:] == [
        "40 updates, 221 parameters, 2 MoE layers",
        "5 batches of 2 ranks are no multiple of 4: the last 2 come a second time",
    ]

    written[1].write_text("precious", encoding="utf-8")
    again = ("reshard", files[0], "--ranks", "4", "--out", out)
    ended = here(*again)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"zcode reshard: error: {written[0]} exists: --force overwrites it, --out names another\n"
    )
    assert written[1].read_text(encoding="utf-8") == "precious"
    assert here(*again, "--force").returncode == 0
    assert io.load(written[1])["cfg"]["checkpoint"]["checkpoint_suffix"] == "-rank-1"

    # One file for one rank, under the name asked for; a merged file has no optimizer.
    assert here("merge", files[0]).returncode == 0
    ended = here("reshard", tmp_path / "checkpoint_last.pt", "--ranks=1", "--out", out / "one.pt")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(
        "without an optimizer's state, which the input lacks: train on with --reset-optimizer\n"
    )
    assert io.load(out / "one.pt")["cfg"]["model"].base_layers == 0


@pytest.mark.slow
def test_the_optimizer_is_shared_when_asked_for_until_told_otherwise(
    here: Run, files: dict[int, Path], tmp_path: Path
) -> None:
    four, two, alone = (tmp_path / name for name in ("four", "two", "alone"))
    for source, ranks, out, options, held in (
        (files[0], "4", four, ("--zero-sharding", "os"), ["whole", "part"]),
        (four / "checkpoint_last-rank-2.pt", "2", two, (), ["part", "part"]),
        (
            two / "checkpoint_last-rank-0.pt",
            "2",
            alone,
            ("--zero-sharding=none",),
            ["part", "whole"],
        ),
    ):
        ended = here("reshard", source, "--ranks", ranks, "--out", out, *options)
        assert ended.returncode == 0, ended.stderr
        [line] = [line for line in ended.stdout.splitlines() if line.startswith("optimizer's")]
        assert line.split()[-2:] == held
    for rank, path in files.items():
        before = io.load(path)["last_optimizer_state"]
        after = io.load(alone / path.name)["last_optimizer_state"]
        assert after.keys() == before.keys()
        assert after["state"].keys() == before["state"].keys()
        for number, entries in before["state"].items():
            assert after["state"][number]["exp_avg"].equal(entries["exp_avg"]), (rank, number)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}.pt", "--ranks=1", "--out={new}"],
         "there is no {none}.pt, nor {none}-rank-0.pt: name a checkpoint"),
        (["{0}", "--ranks=0", "--out={new}"], "--ranks 0 is too small: give at least 1"),
        (["{0}", "--ranks=2", "--out={dir}"],
         "--out: {0} is one of the files to read; name another"),
        (["{0}", "--ranks=2", "--out={new}-rank-0.pt"],
         "--out {new}-rank-0.pt: give the name without -rank-0"),
        (["{0}", "--ranks=2", "--out={none}/a/b/x.pt"],
         "--out {none}/a/b/x.pt: there is no folder {none}/a; make it first"),
        (["{0}", "--ranks=2", "--out={other}"],
         "{other}/checkpoint_last-rank-2.pt is of a run with more ranks: move it away, or name "
         "another --out"),
    ],
)  # fmt: skip
def test_mistakes(
    here: Run, files: dict[int, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("none", "new", "other")}
    places["dir"] = tmp_path
    places["other"].mkdir()
    (places["other"] / "checkpoint_last-rank-2.pt").touch()
    before = sorted(tmp_path.rglob("*"))
    ended = here("reshard", *(word.format(*files.values(), **places) for word in arguments))
    assert ended.returncode == 2
    assert ended.stderr == (f"zcode reshard: error: {message.format(*files.values(), **places)}\n")
    assert sorted(tmp_path.rglob("*")) == before
