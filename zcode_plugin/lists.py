"""Lists in flags."""

from __future__ import annotations

from typing import Any


def comma_list(value: Any) -> list[str]:
    """`"a,b"` -> ["a", "b"]; None and "" -> []."""
    return [part.strip() for part in str(value or "").split(",") if part.strip()]
