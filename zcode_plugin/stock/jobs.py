"""Runs stock fairseq commands, many of one kind, several at a time.

Importing fairseq takes seconds, so `worker.py` imports the command once and forks a process
for each job, which then runs the command's own entry point. What a job sees and writes is what the
console script would see and write.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from zcode_plugin.errors import UserError

WORKER = Path(__file__).with_name("worker.py")


def check_no_colon(path: Path) -> None:
    """Refuse a name that fairseq would take for several.

    Raises:
        UserError: naming the path.
    """
    if ":" in str(path):
        raise UserError(
            f"{path}: fairseq takes what stands between colons for several paths: rename it, or "
            "make a link to it without any"
        )


@dataclass(frozen=True)
class StockJob:
    """One call of a stock command: its arguments, and the file its standard output goes to."""

    name: str
    arguments: tuple[str, ...]
    output: Path

    @property
    def errors(self) -> Path:
        """The file that standard error goes to; in one file it could break lines of the output."""
        return self.output.with_name(self.output.name + ".stderr")


@dataclass(frozen=True)
class StockResult:
    """How a job ended: `exit_code` as `subprocess` gives it, negative after a signal."""

    job: StockJob
    exit_code: int
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that the job wrote; after a traceback that is the error itself."""
        return next((line for line in reversed(self.log.splitlines()) if line.strip()), "no output")

    @property
    def log(self) -> str:
        """What the job wrote to standard output, then to standard error; fairseq logs to either."""
        paths = (self.job.output, self.job.errors)
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)

    @property
    def reason(self) -> str:
        """Why a failed job failed, on one line."""
        if self.exit_code == -signal.SIGKILL:
            return "killed, which mostly means out of memory"
        return f"exit code {self.exit_code}: {self.last_line}"


class StockCommand:
    """A stock command, imported in the background; a context manager that leaves no process."""

    def __init__(self, module: str, workers: int, threads: int) -> None:
        """Args:
        module: such as `fairseq_cli.generate`.
        workers: how many jobs may run at a time.
        threads: how many threads each of them may use.
        """
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUTF8": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), module, str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            encoding="utf-8",
            start_new_session=True,  # a group of its own, which can be ended as one
        )

    def __enter__(self) -> StockCommand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # jobs that a dead worker never read
                    stream.close()
        self._process.wait()

    def run(
        self, jobs: Sequence[StockJob], on_done: Callable[[StockResult], None] = lambda _: None
    ) -> list[StockResult]:
        """Run all jobs, once; results in the order of `jobs`, `on_done` in the order they end.

        Raises:
            UserError: fairseq cannot be imported, or the worker died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        results: dict[int, StockResult] = {}
        try:
            json.dump(
                [[*job.arguments, str(job.output), str(job.errors)] for job in jobs],
                self._process.stdin,
            )
            self._process.stdin.close()
            for line in self._process.stdout:
                report = json.loads(line)
                job = jobs[report["job"]]
                results[report["job"]] = StockResult(job, report["exit_code"], report["seconds"])
                on_done(results[report["job"]])
        except BrokenPipeError:
            pass  # the worker died before it read its jobs: said below
        if self._process.wait() != 0:
            raise UserError(
                f"stock fairseq does not run ({self._last_error()}); `zcode doctor` says what to do"
            )
        return [results[index] for index in range(len(jobs))]

    def _last_error(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
