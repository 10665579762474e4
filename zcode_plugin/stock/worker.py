"""A process that imports one stock fairseq command and forks for each job. Standard library only.

Run as a script, `worker.py MODULE WORKERS`: it must not import the package it lies in, since
`--user-dir` imports that package after fairseq, as in the stock console scripts. Jobs come as one
JSON list on standard input, each a list of arguments followed by the files for standard output and
standard error; a line of JSON on standard output reports each job's end.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # This file's folder: no module in it may hide one that the command imports.
    sys.path.pop(0)

import importlib
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TextIO


def main() -> None:
    """Import the command, then run the jobs, at most `WORKERS` at a time."""
    module, workers = sys.argv[1], int(sys.argv[2])
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever imports print must not stand among the reports
    command = importlib.import_module(module)
    # Forking with threads about is reported since Python 3.12: these are the idle ones of BLAS.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")

    running: dict[int, tuple[int, float]] = {}
    for index, (*arguments, output, errors) in enumerate(json.load(sys.stdin)):
        if len(running) == workers:
            report_one(running, reports)
        process = os.fork()
        if process == 0:
            run_job(command, arguments, output, errors)
        running[process] = (index, time.monotonic())
    while running:
        report_one(running, reports)


def report_one(running: dict[int, tuple[int, float]], reports: TextIO) -> None:
    """Wait for one job to end and report it."""
    process, status = os.wait()
    index, started = running.pop(process)
    report = {
        "job": index,
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": round(time.monotonic() - started, 3),
    }
    print(json.dumps(report), file=reports, flush=True)


def run_job(command: Any, arguments: list[str], output: str, errors: str) -> None:
    """In the forked process: run the command with its output in files. Does not return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    name = command.__name__
    if uses_gpu():
        # A forked process must not touch a GPU that its parent has touched: start afresh.
        os.execv(sys.executable, [sys.executable, "-m", name, *arguments])
    sys.argv = [name.replace("fairseq_cli.", "fairseq-"), *arguments]
    os._exit(exit_code_of(command.cli_main))


def uses_gpu() -> bool:
    """Whether torch sees a GPU."""
    torch = importlib.import_module("torch")
    return bool(torch.cuda.device_count() > 0)


def exit_code_of(entry: Callable[[], object]) -> int:
    """Call a console script's entry point as the script would."""
    code = 0
    try:
        entry()
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
