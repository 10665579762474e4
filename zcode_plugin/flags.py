"""Flags: how they are written, and values that are lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def flag_of(name: str) -> str:
    """`"moe_freq"` -> `"--moe-freq"`."""
    return "--" + name.replace("_", "-")


def comma_list(value: Any) -> list[str]:
    """`"a,b"` -> ["a", "b"], and so a list of them, as some tasks of stock have; None, "" -> []."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(part) for part in value]
    return [part.strip() for part in str(value or "").split(",") if part.strip()]


def first_given(flags: Mapping[str, object]) -> str | None:
    """The first flag that is given, of flags and whether each is; None where none is."""
    return next((flag for flag, given in flags.items() if given), None)


def is_given(options: Any, name: str) -> bool:
    """Whether an option is there and says yes, a number but 0, or anything at all."""
    return bool(getattr(options, name, False))
