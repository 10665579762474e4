"""Makes a model with experts of a dense one: sparse upcycling (arXiv 2212.05055).

Each expert starts as a copy of the dense feed-forward network, with noise on request; gates start
anew, as a model's own do. Nothing here builds a model: entries get other names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import io, names, optimizer
from zcode_plugin.checkpoint.gather import gather
from zcode_plugin.checkpoint.optimizer import Moments
from zcode_plugin.checkpoint.tensors import tied_entries, weights
from zcode_plugin.errors import UserError

FEED_FORWARD = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
# The order in which an MoE layer registers its parameters, after all others of its layer.
_PARAMETERS = (
    "gate.wg.weight",
    "experts.fc1_weight",
    "experts.fc2_weight",
    "experts.fc1_bias",
    "experts.fc2_bias",
)
_REFUSED = {
    "moe_layer": "has experts already",
    "expert_network": "has BASE layers (--base-layers)",
    "adaptive_softmax": "has an adaptive softmax (--adaptive-softmax-cutoff)",
}


@dataclass(frozen=True)
class Recipe:
    """How experts are made.

    Attributes:
        experts: number of experts by the name of the layer, `encoder.layers.1`.
        noise: standard deviation of the noise, as a share of that of the weight it is added to.
        seed: of noise and gates. Each entry draws for itself: the same whatever else is made.
    """

    experts: Mapping[str, int]
    noise: float = 0.0
    seed: int = 1


@dataclass(frozen=True)
class Dense:
    """A dense checkpoint.

    Attributes:
        state: as `gather` gives it, mapped.
        moments: the optimizer's state by name; None where it is not wanted.
        layers: number of layers by side, `encoder` and `decoder`.
    """

    state: dict[str, Any]
    moments: Moments | None
    layers: dict[str, int]


def read_dense(files: list[Path], *, with_optimizer: bool) -> Dense:
    """Read a checkpoint of a dense encoder-decoder Transformer.

    Args:
        files: as `gather.find_files` gives them.
        with_optimizer: read the optimizer's state, too.

    Raises:
        UserError: the model is none that can be upcycled, or there is no such optimizer's state;
            and as `gather`.
    """
    state = gather(files).state
    for part in weights(state):
        _check_entries(part, files[0])
    layers = {side: _count_layers(state["model"], side) for side in ("encoder", "decoder")}
    if 0 in layers.values():
        raise UserError(
            f"{files[0]} is of no Transformer with encoder and decoder: there is nothing to upcycle"
        )
    if not with_optimizer:
        return Dense(state, None, layers)
    options = io.load_options(files[0])  # the checksums were looked at
    moments = _read_moments(options, files[0])
    state["last_optimizer_state"] = options["last_optimizer_state"]
    state["task_state"] = options["task_state"]
    return Dense(state, moments, layers)


def _check_entries(model: Mapping[str, Any], path: Path) -> None:
    for key, value in model.items():
        for word in key.split("."):
            if word in _REFUSED:
                raise UserError(f"{path} {_REFUSED[word]}: upcycle takes a dense Transformer")
        if not torch.is_tensor(value):
            raise UserError(f"{path}: {key} is no tensor: upcycle takes a dense Transformer")


def _count_layers(model: Mapping[str, Any], side: str) -> int:
    prefix = f"{side}.layers."
    found = {key[len(prefix) :].partition(".")[0] for key in model if key.startswith(prefix)}
    return 1 + max((int(number) for number in found if number.isdecimal()), default=-1)


def _read_moments(state: dict[str, Any], path: Path) -> Moments:
    """By name; a task of stock does not say which parameter has which number, but the model does.

    Raises:
        UserError: there are none, or they are not those of the model's parameters.
    """
    if not state.get("last_optimizer_state"):
        raise UserError(f"{path} holds no optimizer's state: leave out --with-optimizer")
    if len(state["last_optimizer_state"]["param_groups"]) != 1:
        raise UserError(
            f"{path}: the optimizer treats parameters in groups, of which new ones would be "
            "none: leave out --with-optimizer"
        )
    task_state = dict(state.get("task_state") or {})
    if "parameters" not in task_state:
        task_state["parameters"] = dense_parameters(state["model"])
    state["task_state"] = task_state
    moments = optimizer.by_name(state, path)
    for slot, entries in moments.items():
        for key, value in entries.items():
            own = state["model"].get(key)
            whole = torch.is_tensor(value) and value.dim() > 0
            if own is None or (whole and value.shape != own.shape):
                raise UserError(
                    f"{path}: the optimizer's {slot} does not treat each weight of {key} by "
                    "itself, as adam and sgd do: leave out --with-optimizer"
                )
    return moments


def dense_parameters(model: Mapping[str, Any]) -> list[str]:
    """The parameters of a dense model in the order in which its optimizer numbers them.

    A state dict has parameters and buffers in the order of the modules, as `named_parameters` has,
    and tied ones once for each of their names.
    """
    tied = tied_entries(model)
    return [key for key in model if not names.is_buffer(key) and key not in tied]


def upcycle(dense: Dense, recipe: Recipe) -> None:
    """Put experts in the place of the feed-forward networks of the recipe's layers, in place.

    The copies of the weights in the extra state (--store-ema) get experts, too: with the same
    changes as the weights, and the same gates.

    Raises:
        UserError: a layer has no feed-forward network of floating-point weights.
    """
    state = dense.state
    parts = weights(state)
    for part in parts:
        for key in [key for key in part if names.is_fast_path_copy(key)]:
            del part[key]
    for layer, count in recipe.experts.items():
        for name in FEED_FORWARD:
            _check_feed_forward(parts, f"{layer}.{name}")
            _multiply(parts, recipe, layer, name, count)
        gate = names.gate_key(f"{layer}.moe_layer")
        like = parts[0][f"{layer}.moe_layer.experts.0.fc1.weight"]
        drawn = _draw(recipe.seed, gate, (count, like.size(1))) * like.size(1) ** -0.5
        for part in parts:
            part[gate] = drawn.to(like.dtype)
    task_state = dict(state.get("task_state") or {})
    if task_state.get("parameters"):
        task_state["parameters"] = _with_experts(task_state["parameters"], list(recipe.experts))
        state["task_state"] = task_state
    if dense.moments is not None:
        _upcycle_optimizer(state, dense.moments, recipe)


def _check_feed_forward(parts: Sequence[Mapping[str, Any]], key: str) -> None:
    dim = 2 if key.endswith("weight") else 1
    for part in parts:
        value = part.get(key)
        if value is None or value.dim() != dim or not value.is_floating_point():
            raise UserError(
                f"the checkpoint has no {key} of floating-point numbers: upcycle takes a dense "
                "Transformer"
            )


def _multiply(
    parts: Sequence[MutableMapping[str, Any]], recipe: Recipe, layer: str, name: str, count: int
) -> None:
    """An entry of a feed-forward network becomes one for each expert."""
    originals = [part.pop(f"{layer}.{name}") for part in parts]
    deviation = recipe.noise * originals[0].float().std(unbiased=False)
    for expert in range(count):
        key = str(names.ExpertKey(f"{layer}.moe_layer", expert, name))
        change = None
        if recipe.noise > 0:
            change = deviation * _draw(recipe.seed, key, originals[0].shape)
        for part, original in zip(parts, originals, strict=True):
            made = original.clone() if change is None else original + change
            part[key] = made.to(original.dtype)


def _draw(seed: int, key: str, shape: Sequence[int]) -> torch.Tensor:
    """Normal draws of an entry's own generator, float32."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(tuple(shape), generator=generator)


def _with_experts(parameters: Sequence[str], layers: Sequence[str]) -> list[str]:
    """The names of parameters in their order, as the model with experts numbers them.

    A layer whose feed-forward network was not trained has no experts among them.
    """
    replaced = {f"{layer}.{name}" for layer in layers for name in FEED_FORWARD}
    made: list[str] = []
    for layer, group in groupby(parameters, lambda name: ".".join(name.split(".")[:3])):
        found = [name for name in group if not names.is_fast_path_copy(name)]
        made += [name for name in found if name not in replaced]
        if replaced.intersection(found):
            made += [f"{layer}.moe_layer.{name}" for name in _PARAMETERS]
    return made


def _upcycle_optimizer(state: dict[str, Any], moments: Moments, recipe: Recipe) -> None:
    """An expert gets the moments of the dense network; a gate those of a new parameter, zeros."""
    for entries in moments.values():
        for layer, count in recipe.experts.items():
            for name in FEED_FORWARD:
                if f"{layer}.{name}" in entries:
                    value = entries.pop(f"{layer}.{name}")
                    for expert in range(count):
                        entries[f"{layer}.moe_layer.experts.{expert}.{name}"] = value
            like = entries.get(f"{layer}.moe_layer.experts.0.fc1.weight")
            if like is not None:
                gate = names.gate_key(f"{layer}.moe_layer")
                entries[gate] = _zeros_of_gate(like, state["model"][gate])
    saved = state["last_optimizer_state"]
    parameters = state["task_state"]["parameters"]
    [group] = saved["param_groups"]
    state["last_optimizer_state"] = {
        **saved,
        "state": optimizer.by_number(moments, parameters, state["model"]),
        "param_groups": [{**group, "params": list(range(len(parameters)))}],
    }


def _zeros_of_gate(like: Any, gate: torch.Tensor) -> Any:
    """What the optimizer keeps for a gate that it has not moved yet, the count of steps, too."""
    if not torch.is_tensor(like):
        return type(like)(0)
    return like.new_zeros(gate.shape if like.dim() > 0 else ())
