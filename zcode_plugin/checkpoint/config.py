"""The options stored in a checkpoint, which fairseq saves as dict, Namespace or DictConfig."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import names
from zcode_plugin.errors import UserError

FLOAT_BITS = 32


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


def world_size(state: Mapping[str, Any]) -> int:
    """Ranks of the run that saved the checkpoint."""
    return int(get(section(state, "distributed_training"), "distributed_world_size", 1))


def expert_parallel_size(state: Mapping[str, Any]) -> int:
    """Ranks over which the experts of that run were spread."""
    return int(get(section(state, "model"), "expert_parallel_size", 1))


def is_zero_sharded(state: Mapping[str, Any]) -> bool:
    """Whether that run had `--zero-sharding os`."""
    return asks_for_zero_sharding(section(state, "distributed_training"))


def task_name(task: Any) -> str:
    """The name of a task by its options, in newer files and older ones; empty where it has none."""
    return str(get(task, "_name") or get(task, "task") or "")


def asks_for_zero_sharding(options: Any) -> bool:
    """Whether options, of a run or of its distributed training, have `--zero-sharding os`."""
    return str(get(options, "zero_sharding", "none")) != "none"


def set_zero_sharding(state: Mapping[str, Any], value: str) -> None:
    """Set the option `--zero-sharding`, where it is another."""
    if is_zero_sharded(state) != (value != "none"):
        put(section(state, "distributed_training"), "zero_sharding", value)


def model_parallel_size(state: Mapping[str, Any]) -> int:
    """Ranks over which that run sliced its layers."""
    return int(get(section(state, "common"), "model_parallel_size", 1))


def expert_bits(state: Mapping[str, Any]) -> int:
    """Bits of an expert's weight: 32 for floats of any kind, else 8 or 4."""
    return int(get(section(state, "model"), "moe_expert_bits", FLOAT_BITS))


def check_not_quantised(state: Mapping[str, Any], path: Path, purpose: str) -> None:
    """Refuse a checkpoint of `zcode quantise`.

    Args:
        purpose: what it is not for, such as `to train on`.

    Raises:
        UserError: naming the file and the remedy.
    """
    bits = expert_bits(state)
    if bits != FLOAT_BITS:
        raise UserError(
            f"{path} holds experts of {bits} bits, made by zcode quantise to translate with, not "
            f"{purpose}: name the checkpoint it was made of"
        )


def set_layout(
    state: Mapping[str, Any], world: int, expert_parallel: int, rank: int, tensor_parallel: int = 1
) -> None:
    """Set the options that say how the run is spread and which rank's file this is."""
    model = section(state, "model")
    put(model, "base_layers", 1 if expert_parallel > 1 else 0)
    put(model, "expert_parallel_size", expert_parallel)
    for options in (model, section(state, "common")):
        if tensor_parallel > 1 or get(options, "model_parallel_size") is not None:
            put(options, "model_parallel_size", tensor_parallel)
    distributed = section(state, "distributed_training")
    put(distributed, "distributed_world_size", world)
    put(distributed, "distributed_rank", rank)
    suffix = f"-model_part-{rank}" if tensor_parallel > 1 else ""
    suffix = f"-rank-{rank}" if expert_parallel > 1 else suffix
    put(section(state, "checkpoint"), "checkpoint_suffix", suffix)


def replace_model(state: MutableMapping[str, Any], options: Namespace) -> None:
    """Make `options` those of the model: a Namespace, as stock saves its Transformer's."""
    from omegaconf import DictConfig, OmegaConf

    cfg = state.get("cfg")
    if cfg is None:
        state["args"] = options
        return
    sections: Any = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    state["cfg"] = {**sections, "model": options}


def set_expert_counts(state: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Set the options that say how many experts each MoE layer has.

    Args:
        state: a checkpoint.
        counts: experts by the name of the layer, `encoder.layers.1.moe_layer`.
    """
    model = section(state, "model")
    for side in ("encoder", "decoder"):
        layers = sorted(
            (names.layer_index(layer), layer) for layer in counts if layer.startswith(side)
        )
        if layers:
            numbers = [str(counts[layer]) for _, layer in layers]
            put(model, f"{side}_moe_expert_count", ",".join(numbers))


def num_updates(state: Mapping[str, Any]) -> int:
    """Updates that were done when the checkpoint was saved."""
    history = state.get("optimizer_history") or [{}]
    return int(history[-1].get("num_updates", 0))
