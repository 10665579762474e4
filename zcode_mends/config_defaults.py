"""Config classes whose instances stand as defaults in other config classes."""

from __future__ import annotations

import dataclasses
import functools
import sys
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend

_OWNERS = frozenset({"fairseq", "hydra"})


def _is_needed(_: ModuleType) -> bool:
    already_done = hasattr(dataclasses.dataclass, "__wrapped__")  # for the other of the two owners
    return sys.version_info >= (3, 11) and not already_done


def _hash_by_identity(_: ModuleType) -> None:
    stock = dataclasses.dataclass

    @functools.wraps(stock)
    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        if cls is None:
            return functools.partial(dataclass, **options)
        made = stock(cls, **options)
        if made.__hash__ is None and made.__module__.partition(".")[0] in _OWNERS:
            made.__hash__ = object.__hash__
        return made

    dataclasses.dataclass = dataclass


CONFIG_DEFAULTS = Mend(
    name="config-defaults",
    reason=(
        "Python 3.11 refuses a default without a hash; configs of fairseq and hydra 1.0 hold "
        "instances of each other as defaults, and `default_factory` would not do, since fairseq "
        "reads `field.default`"
    ),
    is_needed=_is_needed,
    apply=_hash_by_identity,
    before=("fairseq", "hydra"),
)
