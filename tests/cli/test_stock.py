"""Stock commands run by the worker end as the console scripts do."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zcode_plugin.errors import UserError
from zcode_plugin.stock.jobs import WORKER, StockCommand, StockJob, StockResult


def test_jobs_run_and_report_in_order(tmp_path: Path) -> None:
    (tmp_path / "text.en").write_text("a b\nb\n", encoding="utf-8")
    (tmp_path / "dict.txt").write_text("a 1\nb 1\n", encoding="utf-8")
    good = (
        *("--only-source", "-s", "en", "--srcdict", str(tmp_path / "dict.txt")),
        *("--trainpref", str(tmp_path / "text"), "--destdir", str(tmp_path / "out")),
    )
    jobs = [
        StockJob("unknown flag", ("--nonsense",), tmp_path / "flag.log"),
        StockJob("no file", (*good[:5], "--trainpref", "nowhere"), tmp_path / "file.log"),
        StockJob("good", good, tmp_path / "good.log"),
    ]
    done: list[str] = []
    with StockCommand("fairseq_cli.preprocess", workers=2, threads=1) as command:
        results = command.run(jobs, lambda result: done.append(result.job.name))
    assert [result.exit_code for result in results] == [2, 1, 0]
    assert sorted(done) == ["good", "no file", "unknown flag"]
    assert results[0].reason.startswith("exit code 2: fairseq-preprocess: error: unrecognized")
    assert results[1].reason.startswith("exit code 1: FileNotFoundError: ")
    assert "2 sents, 5 tokens" in results[2].log
    assert (tmp_path / "out" / "train.en-None.en.bin").is_file()


def test_a_command_that_cannot_be_imported_is_told() -> None:
    with (
        StockCommand("fairseq_cli.no_such_command", workers=1, threads=1) as command,
        pytest.raises(UserError, match=r"No module named 'fairseq_cli\.no_such_command'.*doctor"),
    ):
        command.run([])


def test_a_command_that_is_left_early_leaves_no_process() -> None:
    with StockCommand("fairseq_cli.preprocess", workers=1, threads=1) as command:
        process = command._process
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL


def test_a_killed_job_points_at_memory(tmp_path: Path) -> None:
    job = StockJob("x", (), tmp_path / "x")
    result = StockResult(job, exit_code=-signal.SIGKILL, seconds=1.0)
    assert result.reason == "killed, which mostly means out of memory"


def test_the_worker_imports_nothing_of_the_package() -> None:
    """`--user-dir` imports it, after fairseq; and importing it would take time."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", WORKER, "dataclasses", "1"],
        input="[]",
        capture_output=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0, ended.stderr
    modules = [line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()]
    assert "inspect" in modules  # of which Python's dataclasses are made
    assert not [name for name in modules if name.split(".")[0] == "zcode_plugin"]
