"""The one exception that means: the user can mend this."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """A mistake in what the user gave: a file, a flag or a value.

    The message is one line that names the culprit and the remedy; command line entries print it
    without a traceback and exit with code 2.
    """


def first_given(flags: Mapping[str, object]) -> str | None:
    """The first flag that is given, of flags and whether each is; None where none is."""
    return next((flag for flag, is_given in flags.items() if is_given), None)


def tell(error: str) -> None:
    """The line, in one write: under torchrun nothing is buffered, and ranks share the stream."""
    print(f"zcode_plugin: error: {error}\n", end="", file=sys.stderr, flush=True)


def exits_on_user_error(function: Callable[P, R]) -> Callable[P, R]:
    """For functions that stock fairseq's commands call: one line, exit code 2, no traceback."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            tell(str(error))
            raise SystemExit(2) from None

    return wrapper
