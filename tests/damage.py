"""Damages to checkpoint files, and what a verb of `zcode` may answer to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Damage:
    """Random bytes, the start of a file, or a file in which a byte or a run of them is another.

    Attributes:
        file_format: of the file that is damaged, `zip` or `old`.
        kind: `random`, `cut`, `flip` or `overwritten`.
        place: share of the file before it.
        noise: bytes that are written.
    """

    file_format: str
    kind: str
    place: float
    noise: bytes

    def of(self, good: Mapping[str, bytes]) -> bytes:
        """A good file of the format, damaged."""
        return spoil(good[self.file_format], self.kind, self.place, self.noise)


DAMAGES = st.builds(
    Damage,
    file_format=st.sampled_from(["zip", "old"]),
    kind=st.sampled_from(["random", "cut", "flip", "overwritten"]),
    place=st.floats(0, 1),
    noise=st.binary(max_size=40),
)


def check_refusal(verb: str, code: int, printed: str, damage: Damage) -> None:
    """One line and exit code 2; or read as before.

    Not each bit of an archive counts, and the old format has no checksums.
    """
    if code == 2:
        assert printed.startswith(f"zcode {verb}: error: ")
        assert printed.count("\n") == 1
    else:
        assert (code, printed) == (0, "")
        assert damage.kind in ("flip", "overwritten")


def spoil(good: bytes, kind: str, place: float, noise: bytes) -> bytes:
    """Random bytes, the start of a file, or a file in which a byte or a run of them is another."""
    position = int(place * (len(good) - 1))
    if kind == "random":
        return noise
    if kind == "cut":
        return good[:position]
    if kind == "flip":
        flipped = good[position] ^ (1 << (noise[0] if noise else 0) % 8)
        return good[:position] + bytes([flipped]) + good[position + 1 :]
    return good[:position] + noise + good[position + len(noise) :]
