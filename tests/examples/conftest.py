"""Make the localisation example importable and give its tests a writer of .mo files."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "localisation"))


def _compile_mo(entries: Mapping[str, str], plural_forms: str, order: str = "<") -> bytes:
    """Return the bytes of a .mo file; keys and values as gettext stores them (EOT, NUL)."""
    header = f"Content-Type: text/plain; charset=UTF-8\nPlural-Forms: {plural_forms}\n"
    table = sorted((key.encode(), value.encode()) for key, value in entries.items())
    table.insert(0, (b"", header.encode()))
    count, head = len(table), 28
    offset = head + 16 * count
    index, body = [b"", b""], b""
    for column in (0, 1):
        for row in table:
            index[column] += struct.pack(f"{order}2I", len(row[column]), offset + len(body))
            body += row[column] + b"\0"
    magic = struct.pack(f"{order}7I", 0x950412DE, 0, count, head, head + 8 * count, 0, offset)
    return magic + index[0] + index[1] + body


@pytest.fixture(scope="session")
def compile_mo() -> Callable[..., bytes]:
    """The function ``(entries, plural_forms, order="<") -> bytes of a .mo file``."""
    return _compile_mo
