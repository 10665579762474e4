"""The options stored in a checkpoint, which fairseq saves as dict, Namespace or DictConfig."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any


def section(state: Mapping[str, Any], name: str) -> Any:
    """`cfg.NAME` of a checkpoint, or all of its `args` where it was saved without a cfg.

    Returns:
        A container for `get` and `put`; an empty one where there is neither.
    """
    cfg = state.get("cfg")
    if cfg is None:
        return state.get("args") or {}
    return get(cfg, name) or {}


def get(options: Any, name: str, default: Any = None) -> Any:
    """The option `name`, or `default` where it is missing or None."""
    if isinstance(options, Mapping):
        value = options.get(name)
    else:
        value = getattr(options, name, None)
    return default if value is None else value


def put(options: Any, name: str, value: Any) -> None:
    """Set the option `name`."""
    from omegaconf import DictConfig, open_dict

    if isinstance(options, DictConfig):
        with open_dict(options):
            options[name] = value
    elif isinstance(options, MutableMapping):
        options[name] = value
    else:
        setattr(options, name, value)


def num_updates(state: Mapping[str, Any]) -> int:
    """Updates that were done when the checkpoint was saved."""
    history = state.get("optimizer_history") or [{}]
    return int(history[-1].get("num_updates", 0))
