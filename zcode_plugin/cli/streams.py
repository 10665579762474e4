"""Lines that come in as a program writes them, and text that goes out whole or as it is made."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zcode_plugin.files import whole_file
from zcode_plugin.preparation.reading import decode_line

_CHUNK = 1 << 16
_PROGRESS_SECONDS = 0.2


@contextmanager
def open_input(path: Path | None) -> Iterator[tuple[int, str]]:
    """A file's descriptor and name; those of standard input for None."""
    if path is None:
        yield sys.stdin.fileno(), "standard input"
        return
    with path.open("rb") as file:
        yield file.fileno(), str(path)


def line_buffers(descriptor: int, name: str, size: int) -> Iterator[list[str]]:
    """Lines as they come: at most `size` at a time, fewer where no more are there to read yet.

    So a program that writes a line and waits for its translation gets it, and a file comes in
    buffers of `size` lines. A line ends at a line feed alone.

    Args:
        descriptor: where to read.
        name: of the input, for errors.
        size: lines of a buffer.

    Raises:
        UserError: a line is not UTF-8; those before it in its buffer are not given out.
    """
    lines: list[str] = []
    rest = bytearray()
    number = 0
    while chunk := os.read(descriptor, _CHUNK):
        rest += chunk
        if b"\n" not in chunk:
            continue
        *whole, last = rest.split(b"\n")
        for line in whole:
            number += 1
            lines.append(decode_line(bytes(line), name, number))
        rest = last
        while len(lines) >= size:
            yield lines[:size]
            lines = lines[size:]
        if lines and not select.select([descriptor], [], [], 0)[0]:
            yield lines
            lines = []
    if rest:
        lines.append(decode_line(bytes(rest), name, number + 1))
    if lines:
        yield lines


@contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """A file that gets its name at the end, see `whole_file`; standard output for None."""
    if path is None:
        yield sys.stdout.buffer
        return
    with whole_file(path) as file:
        yield file


class Progress:
    """Counts lines on standard error, on one line that changes.

    Args:
        shown: whether to show anything but warnings.
    """

    def __init__(self, shown: bool):
        self._shown = shown
        self._lines = 0
        self._started = time.monotonic()
        self._next = 0.0

    def add(self, lines: int) -> None:
        """So many lines more are done."""
        self._lines += lines
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            self._write()

    def warn(self, message: str) -> None:
        """A line that stays."""
        self._clear()
        print(message, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the last count there."""
        if self._shown:
            self._write()
            print(file=sys.stderr, flush=True)

    def _write(self) -> None:
        self._clear()
        rate = self._lines / max(time.monotonic() - self._started, 1e-9)
        print(f"{self._lines:,} lines, {rate:,.1f} a second", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr)
