"""When the mends act: as the modules that they concern are imported."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from zcode_mends.checkpoints import CHECKPOINT_BROADCAST, CHECKPOINT_NAMESPACE, CHECKPOINT_NUMPY
from zcode_mends.config_defaults import CONFIG_DEFAULTS
from zcode_mends.devices import BF16_WITHOUT_TPU, DDP_ON_CPU, FP16_ON_CPU
from zcode_mends.encoder_fastpath import ENCODER_FASTPATH
from zcode_mends.fully_sharded import FULLY_SHARDED_ALONE, FULLY_SHARDED_ON_CPU
from zcode_mends.hydra_plugins import HYDRA_PLUGINS
from zcode_mends.megatron import MEGATRON, MEGATRON_HEADS
from zcode_mends.mend import Mend
from zcode_mends.numpy_names import NUMPY_NAMES
from zcode_mends.refusal import CHECKPOINT_REFUSAL
from zcode_mends.saving import WHOLE_CHECKPOINTS

MENDS: tuple[Mend, ...] = (
    CONFIG_DEFAULTS,
    CHECKPOINT_NAMESPACE,
    CHECKPOINT_NUMPY,
    CHECKPOINT_BROADCAST,
    CHECKPOINT_REFUSAL,
    WHOLE_CHECKPOINTS,
    ENCODER_FASTPATH,
    NUMPY_NAMES,
    BF16_WITHOUT_TPU,
    FP16_ON_CPU,
    DDP_ON_CPU,
    FULLY_SHARDED_ON_CPU,
    FULLY_SHARDED_ALONE,
    MEGATRON,
    MEGATRON_HEADS,
    HYDRA_PLUGINS,
)


@functools.cache
def _enabled_mends() -> tuple[Mend, ...]:
    """The mends that ``ZCODE_COMPAT_DISABLE`` leaves in; exits with code 2 for a name unknown."""
    setting = os.environ.get("ZCODE_COMPAT_DISABLE", "")
    disabled = {name.strip() for name in setting.split(",")} - {""}
    known = [mend.name for mend in MENDS]
    unknown = sorted(disabled - {"all", *known})
    if unknown:
        print(
            f"ZCODE_COMPAT_DISABLE: error: no mend is called {', '.join(unknown)}; "
            f"there are: all, {', '.join(known)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return tuple(mend for mend in MENDS if not disabled & {"all", mend.name})


def _apply(mends: Iterable[Mend], module: ModuleType) -> None:
    for mend in mends:
        if mend.is_needed(module):
            mend.apply(module)


def _mending(
    execute: Callable[[ModuleType], None], before: list[Mend], after: list[Mend]
) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        _apply(before, module)
        execute(module)
        _apply(after, module)

    return exec_module


def find_mended_spec(
    finders: Sequence[Any], name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """The spec that ``finders`` give for a module, whose loader applies the mends concerned."""
    before = [mend for mend in _enabled_mends() if name in mend.before]
    after = [mend for mend in _enabled_mends() if name in mend.after]
    if not before and not after:
        return None
    modern = (finder for finder in finders if hasattr(finder, "find_spec"))
    found = (finder.find_spec(name, path, target) for finder in modern)
    spec: ModuleSpec | None = next((spec for spec in found if spec is not None), None)
    if spec is not None and spec.loader is not None:
        # On the instance: the loader stays what it is to whoever asks it for source or data.
        vars(spec.loader)["exec_module"] = _mending(spec.loader.exec_module, before, after)
    return spec
