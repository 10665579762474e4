"""The limit of open files, which many pairs of languages reach."""

from __future__ import annotations

import resource
from contextlib import suppress


def allow_open_files() -> None:
    """Let this process open as many files as it may allow itself.

    Systems set 1,024 for programs that cannot stand more, and leave the others to ask.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # a system whose hard limit is none it keeps
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
