"""The error report of hydra before 1.3."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, version


def _is_needed(module: ModuleType) -> bool:
    hydra = sys.modules["hydra"]
    return sys.version_info >= (3, 10) and version(hydra.__version__) < (1, 3)


def _take_old_keyword(module: ModuleType) -> None:
    stock = module.print_exception

    @functools.wraps(stock)
    def print_exception(*exception: Any, etype: Any = None, **options: Any) -> None:
        stock(*(exception or (etype,)), **options)

    module.print_exception = print_exception  # type: ignore[attr-defined]


HYDRA_ERRORS = Mend(
    name="hydra-errors",
    reason=(
        "Python 3.10 renamed the first parameter of traceback.print_exception, so that hydra 1.0 "
        "failed while reporting an error, and hid it"
    ),
    is_needed=_is_needed,
    apply=_take_old_keyword,
    after=("hydra._internal.utils",),
)
