"""What a mend is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn


@dataclass(frozen=True)
class Mend:
    """One thing that stock fairseq needs on current versions of what it stands on.

    ``apply`` is called with the module concerned, just before or just after that module's code has
    run, if ``is_needed`` says of that same module that the installed versions call for it.
    """

    name: str
    reason: str
    is_needed: Callable[[ModuleType], bool]
    apply: Callable[[ModuleType], None]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class StandIn(ModuleType):
    """A module as one other module sees it: itself, but for the names given.

    Lets a mend give one fairseq module names that a library has dropped, where setting them on the
    library itself would show them to the whole process.
    """

    def __init__(self, stock: ModuleType, **names: Any) -> None:
        super().__init__(stock.__name__)
        self.__dict__.update(names, _stock=stock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stock"], name)


def always(_: ModuleType) -> bool:
    """For what is needed on all versions that are supported: fairseq 0.12.2 is the last release."""
    return True


def version(text: str) -> tuple[int, int]:
    """Major and minor number of a version: ``"2.13.0+cpu"`` -> ``(2, 13)``."""
    found = re.match(r"(\d+)\.(\d+)", text)
    assert found, f"not a version: {text!r}"
    return int(found[1]), int(found[2])


def refuse(message: str) -> NoReturn:
    """End the command with one line that names the flag and the remedy, and exit code 2.

    In one write: ranks share their standard error.
    """
    name = os.path.basename(sys.argv[0])
    print(f"{name}: error: {message}\n", end="", file=sys.stderr, flush=True)
    raise SystemExit(2)
