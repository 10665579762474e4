"""A checkpoint that torch's safe loader refuses, told in one line instead of a traceback."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from zcode_mends.checkpoints import allow
from zcode_mends.mend import Mend, StandIn, always, refuse

_ENTRY_POINTS = ("cli_main", "_hydra_main")


class CheckpointRefusedError(pickle.UnpicklingError):
    """A checkpoint holds a class outside of the allow-list, or is none; the message is one line."""


def _allow_named_classes() -> None:
    for name in filter(None, map(str.strip, os.environ.get("ZCODE_COMPAT_ALLOW", "").split(","))):
        module, _, attribute = name.rpartition(".")
        try:
            allow((getattr(importlib.import_module(module), attribute), name))
        except (ImportError, AttributeError, ValueError):
            print(
                f"ZCODE_COMPAT_ALLOW: error: there is no {name!r} to import; "
                "name classes as package.module.Class, separated by commas",
                file=sys.stderr,
            )
            raise SystemExit(2) from None


def _refused_classes(path: str, refusal: str) -> list[str]:
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # whatever is wrong with the file, the refusal has told it before
        names = []
    # Where the file names no class outside of the list, it may still build one, such as a dtype's.
    return sorted(names) or re.findall(r"(?:GLOBAL |<class ')([\w.]+)", refusal)[:1]


def _one_line(path: str, refusal: Exception) -> str:
    if isinstance(refusal, pickle.UnpicklingError):
        names = ",".join(_refused_classes(path, str(refusal)))
        if names:
            return (
                f"{path}: holds {names}, which checkpoints may not hold because loading it could "
                f"run code; if you trust the file, set ZCODE_COMPAT_ALLOW={names} in the "
                "environment, otherwise leave it alone"
            )
    reason = str(refusal).rpartition("WeightsUnpickler error:")[2].strip()
    reason = reason.partition("\n")[0].partition(". ")[0]
    return (
        f"{path}: cannot be loaded ({type(refusal).__name__}: {reason}); it is no "
        "checkpoint, or not a whole one: copy or save it again"
    )


def _load_or_tell_why(checkpoint_utils: ModuleType) -> None:
    import torch

    @functools.wraps(torch.load)
    def load(file: Any, *args: Any, **options: Any) -> Any:
        _allow_named_classes()
        try:
            return torch.load(file, *args, **options)
        except Exception as refusal:
            if isinstance(refusal, (OSError, MemoryError)) or "Allocator" in str(refusal):
                raise  # the machine's fault, not the file's
            path = str(getattr(file, "name", file))
            raise CheckpointRefusedError(_one_line(path, refusal)) from None

    checkpoint_utils.torch = StandIn(torch, load=load)  # type: ignore[attr-defined]


def _exits_with_one_line(entry_point: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(entry_point)
    def main(*args: Any, **options: Any) -> Any:
        try:
            return entry_point(*args, **options)
        except CheckpointRefusedError as refusal:
            refuse(str(refusal))

    return main


def _exit_with_one_line(module: ModuleType) -> None:
    for name in _ENTRY_POINTS:
        if hasattr(module, name):
            setattr(module, name, _exits_with_one_line(getattr(module, name)))


def _mend(module: ModuleType) -> None:
    if module.__name__ == "fairseq.checkpoint_utils":
        _load_or_tell_why(module)
    else:
        _exit_with_one_line(module)


CHECKPOINT_REFUSAL = Mend(
    name="checkpoint-refusal",
    reason=(
        "a checkpoint that torch 2.6 refuses ends a stock command in a traceback which recommends "
        "loading it unsafely"
    ),
    is_needed=always,
    apply=_mend,
    after=(
        "fairseq.checkpoint_utils",
        "fairseq_cli.eval_lm",
        "fairseq_cli.generate",
        "fairseq_cli.hydra_train",
        "fairseq_cli.interactive",
        "fairseq_cli.train",
        "fairseq_cli.validate",
    ),
)
