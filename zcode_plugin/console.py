"""What the verbs print: one line a step, and tables."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Step:
    """A step under way; `detail` is what its line ends with."""

    def __init__(self) -> None:
        self.detail = ""


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Print `title ... DETAIL (SECONDS s)`, the first half before the work and the rest after."""
    print(f"{title} ... ", end="", flush=True)
    started = time.monotonic()
    current = Step()
    try:
        yield current
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{current.detail} ({time.monotonic() - started:.1f} s)", flush=True)


class _Unheard:
    """A stream that may lose its reader, as in `zcode merge ... | head`: the work goes on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            turn_away(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            turn_away(self._stream)


def turn_away(stream: TextIO) -> None:
    """Whatever is written to this stream from now on is lost."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def unheard_output() -> Iterator[None]:
    """What is printed is lost, and no error, once nobody reads standard output."""
    stdout = sys.stdout
    sys.stdout = cast(TextIO, _Unheard(stdout))
    try:
        yield
    finally:
        with suppress(ValueError):  # of a stream that was closed meanwhile
            sys.stdout.flush()
        sys.stdout = stdout


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without what fairseq, sacreBLEU and torch say in between a command's own lines."""
    loggers = [logging.getLogger(name) for name in ("fairseq", "sacrebleu")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def count(number: int, noun: str) -> str:
    """`1 pair`, `2,500 pairs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell; the first row is the header.

    Args:
        rows: header and body, all of one length.
        left: how many columns, from the first, are flush left; the others are flush right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
