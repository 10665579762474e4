"""The one exception that means: the user can mend this."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """A mistake in what the user gave: a file, a flag or a value.

    The message is one line that names the culprit and the remedy; command line entries print it
    without a traceback and exit with code 2.
    """


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest of `known`, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def print_error(error: str) -> None:
    """In one write: under torchrun nothing is buffered, and ranks share the stream."""
    print(f"zcode_plugin: error: {error}\n", end="", file=sys.stderr, flush=True)


def exits_on_user_error(function: Callable[P, R]) -> Callable[P, R]:
    """For functions that stock fairseq's commands call: one line, exit code 2, no traceback."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            print_error(str(error))
            raise SystemExit(2) from None

    return wrapper
