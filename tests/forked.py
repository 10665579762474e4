"""Console scripts in forks of this process: what they do, without the seconds that imports take.

A fork says and returns what a script does, but calls nothing that is registered with atexit.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which torch itself imports as late as it makes an optimizer


def start(
    line: Sequence[str],
    output: Path,
    errors: Path | None = None,
    environment: Mapping[str, str] | None = None,
    inside: Callable[[], None] | None = None,
) -> BaseProcess:
    """A running script.

    Args:
        line: its name and arguments.
        output: the file for standard output.
        errors: that for standard error, by default the same.
        environment: variables to set in it.
        inside: called in it before the script.
    """
    import zcode_plugin

    zcode_plugin.register()
    [script] = entry_points(group="console_scripts", name=line[0])
    entry = script.load()  # here, once for all forks
    process = multiprocessing.get_context("fork").Process(
        target=_main, args=(entry, list(line), output, errors or output, environment or {}, inside)
    )
    process.start()
    return process


def run(line: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """What a script that sees no GPU ended with."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("output", "errors")]
        process = start(line, *files, environment={"CUDA_VISIBLE_DEVICES": ""})
        process.join(timeout)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(line), timeout)
        output, errors = (path.read_text(encoding="utf-8") for path in files)
    return subprocess.CompletedProcess(list(line), code, output, errors)


def _main(
    entry: Callable[[], object],
    line: list[str],
    output: Path,
    errors: Path,
    environment: Mapping[str, str],
    inside: Callable[[], None] | None,
) -> None:
    torch.set_num_threads(1)
    _write_to(output, errors)
    os.environ.update(environment)
    sys.argv = line
    code: Any = 0
    try:
        if inside is not None:
            inside()
        code = entry()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        try:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        except BaseException:
            traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    for worker in multiprocessing.active_children():  # a loader's, which would look up in seconds
        worker.terminate()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _write_to(output: Path, errors: Path) -> None:
    """Send standard output and what fairseq logs to a file, and standard error to one."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(
        force=True,
        stream=sys.stdout,
        level="INFO",
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
    )
