"""Aggregation of experts (AoE): several models to one with all their experts.

Source: "Scalable and Efficient MoE Training for Multitask Multilingual Models" (arXiv 2109.10465):
experts are kept, gates concatenated, all other weights averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zcode_plugin.checkpoint import config, names
from zcode_plugin.checkpoint.average import mean
from zcode_plugin.checkpoint.gather import Gathered
from zcode_plugin.checkpoint.names import HEADS
from zcode_plugin.checkpoint.tensors import WEIGHTS_IN_EXTRA_STATE
from zcode_plugin.checkpoint.vocabulary import check_alike, directions_of
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.models.stored import as_namespace
from zcode_plugin.moe.token_signs import SIGNS

# What a model computes, as far as no shape of its weights shows it.
_OPTIONS = (
    *("encoder_attention_heads", "decoder_attention_heads", "activation_fn", "layernorm_embedding"),
    *("encoder_normalize_before", "decoder_normalize_before", "no_scale_embedding"),
    *("encoder_learned_pos", "decoder_learned_pos", "no_token_positional_embeddings"),
    *("share_all_embeddings", "share_decoder_input_output_embed", "moe_top_k", "moe_gate"),
    *("moe_gate_sees_token", "moe_balance", "moe_normalize_gate_prob"),
    *("moe_normalize_gate_prob_before_dropping", "moe_residual"),
)
_TASK_OPTIONS = ("encoder_langtok", "decoder_langtok", "objective_token")
_SAMPLES = 2048
_MOST = 4.0


@dataclass(frozen=True)
class GateScale:
    """What an aggregated gate's rows were multiplied by.

    Attributes:
        factor: that.
        before: mean over tokens of the probability that goes to the chosen experts, in the models.
        joined: the same of the concatenated gate.
        after: and once it is scaled.
    """

    factor: float
    before: float
    joined: float
    after: float


def aggregate(
    models: Sequence[Gathered],
    paths: Sequence[Path],
    *,
    coefficients: Sequence[float],
    gate_scale: float | None,
    top_k: int | None = None,
) -> tuple[dict[str, Any], dict[str, GateScale]]:
    """One checkpoint for one process, without an optimizer's state or averaged copies (EMA).

    Args:
        models: checkpoints for one process.
        paths: of them, for errors.
        coefficients: of the mean of all that is neither expert nor gate; they sum to 1.
        gate_scale: factor of all gates; None finds that of each layer, see `fitting_scale`, or
            takes 1 where the weights of a token's experts sum to 1 whatever else there is.
        top_k: experts of a token, where it shall be another number.

    Returns:
        The checkpoint; and what became of the gate of each layer.

    Raises:
        UserError: the models do not fit together.
    """
    _check(models, paths)
    counts = {layer: sum(model.experts[layer] for model in models) for layer in models[0].experts}
    most = min(counts.values())
    if top_k is not None and not 1 <= top_k <= most:
        raise UserError(f"--top-k {top_k}: layers have {most} experts; give 1 to {most}")
    weights: dict[str, Any] = mean(_shared(models), paths, 0, coefficients)
    state = dict(models[0].state)
    options = config.section(state, "model")
    gate = MoEConfig.from_namespace(as_namespace(options)).gate
    k = top_k or gate.k
    if gate_scale is None and gate.normalizes:
        gate_scale = 1.0
    scales = {}
    for layer in models[0].experts:
        weights.update(_union(layer, models))
        weights.update(_biases(layer, models))
        gates = [model.state["model"][names.gate_key(layer)] for model in models]
        norms = _input_norm(layer, state, weights)
        scales[layer] = fitting_scale(gates, *norms, k, gate_scale)
        weights[names.gate_key(layer)] = torch.cat(gates) * scales[layer].factor
    _finish(state, counts, weights)
    _put_directions(models, state)
    if top_k is not None:
        # "auto" follows the number, and would change what the experts' outputs are weighted by.
        config.put(options, "moe_normalize_gate_prob", str(gate.normalizes).lower())
        config.put(options, "moe_top_k", top_k)
    return state, scales


def _shared(models: Sequence[Gathered]) -> list[dict[str, Any]]:
    """Of each model what is neither expert nor gate, without heads that only some have."""
    rows = {key for layer in models[0].experts for key in names.gate_rows(layer)}
    common = set.intersection(*({*model.state["model"]} for model in models))
    return [
        {
            key: value
            for key, value in model.state["model"].items()
            if key not in rows
            and names.parse_expert_key(key) is None
            and (key in common or not key.startswith(HEADS))
        }
        for model in models
    ]


def _union(layer: str, models: Sequence[Gathered]) -> dict[str, Any]:
    entries, first = {}, 0
    for model in models:
        for key, value in model.state["model"].items():
            parts = names.parse_expert_key(key)
            if parts is not None and parts.layer == layer:
                entries[str(names.ExpertKey(layer, first + parts.expert, parts.parameter))] = value
        first += model.experts[layer]
    return entries


def _biases(layer: str, models: Sequence[Gathered]) -> dict[str, Tensor]:
    """The selection biases of `--moe-balance bias`, one after the other."""
    key = names.gate_rows(layer)[1]
    found = [model.state["model"].get(key) for model in models]
    if any(bias is None for bias in found):
        return {}
    return {key: torch.cat(found)}


def _input_norm(
    layer: str, state: Mapping[str, Any], weights: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what the gate sees, as weight and bias of a normalisation.

    [M], or [M + 64] where it sees the token's signs, too.
    """
    block = layer.removesuffix(".moe_layer")
    side = block.partition(".")[0]
    options = config.section(state, "model")
    before = config.get(options, f"{side}_normalize_before", False)
    after_attention = "self_attn" if side == "encoder" else "encoder_attn"
    name = "final" if before else after_attention
    weight, bias = (
        weights[f"{block}.{name}_layer_norm.{part}"].float() for part in ("weight", "bias")
    )
    if config.get(options, "moe_gate_sees_token", False):
        weight = torch.cat((weight, torch.ones(SIGNS)))
        bias = torch.cat((bias, torch.zeros(SIGNS)))
    return weight, bias


def fitting_scale(
    gates: Sequence[Tensor], norm_M: Tensor, bias_M: Tensor, k: int, factor: float | None
) -> GateScale:
    """The factor of a concatenated gate with which it is as decided as the gates that it is of.

    A softmax over twice as many experts leaves each about half the probability, and what a token
    gets from its experts shrinks with it. The factor makes the mean probability of the k best
    experts what it was in the single gates, on inputs as the normalisation before would make them:
    its bias plus its weight times standard normal draws, 2,048 of them. It is at most 4: gates that
    are nearly the same stay undecided between their like, and one that is too sharp learns nothing.

    Args:
        gates: each [E, M].
        norm_M, bias_M: of the normalisation whose output the gate sees.
        k: experts of a token.
        factor: a given one, whose effect is told.
    """
    draw = torch.Generator().manual_seed(1)
    x_TM = bias_M + norm_M * torch.randn(_SAMPLES, len(norm_M), generator=draw)
    logits = [x_TM @ gate.float().t() for gate in gates]
    joined_TE = torch.cat(logits, dim=1)
    before = sum(_certainty(part, k, 1.0) for part in logits) / len(logits)
    if factor is None:
        low, high = 1.0, _MOST  # more experts never make a gate of the same factor more certain
        for _ in range(40):
            middle = (low * high) ** 0.5
            low, high = (
                (middle, high) if _certainty(joined_TE, k, middle) < before else (low, middle)
            )
        factor = low
    after = _certainty(joined_TE, k, factor)
    return GateScale(factor, before, _certainty(joined_TE, k, 1.0), after)


def _certainty(logits_TE: Tensor, k: int, factor: float) -> float:
    best_TK = (factor * logits_TE).softmax(1).topk(min(k, logits_TE.size(1)), dim=1).values
    return float(best_TK.sum(1).mean())


def _put_directions(models: Sequence[Gathered], state: dict[str, Any]) -> None:
    """The aggregate has the directions of all models, as far as all say theirs."""
    named = [directions_of(model.state) for model in models]
    if not all(named) or all(one == named[0] for one in named):
        return
    pairs = list(dict.fromkeys(pair for one in named for pair in one))
    state["task_state"] = {**(state.get("task_state") or {}), "lang_pairs": pairs}
    config.put(config.section(state, "task"), "lang_pairs", ",".join(pairs))


def _finish(state: dict[str, Any], counts: dict[str, int], weights: dict[str, Any]) -> None:
    state["model"] = weights
    extra = dict(state.get("extra_state") or {})
    for name in WEIGHTS_IN_EXTRA_STATE:
        extra.pop(name, None)
    state["extra_state"] = extra
    state.pop("kept_experts", None)
    config.set_expert_counts(state, counts)


def _check(models: Sequence[Gathered], paths: Sequence[Path]) -> None:
    for model, path in zip(models, paths, strict=True):
        _check_has_gates(model, path)
    for other, path in zip(models[1:], paths[1:], strict=True):
        _check_alike(models[0], other, paths[0], path)


def _check_has_gates(model: Gathered, path: Path) -> None:
    config.check_not_quantised(model.state, path, "to aggregate")
    if not model.experts:
        raise UserError(f"{path} has no experts: make some of its layers with zcode upcycle")
    if any(names.gate_key(layer) not in model.state["model"] for layer in model.experts):
        raise UserError(f"{path} has a gate that learns nothing, without rows to put together")


def _check_alike(first: Gathered, other: Gathered, first_path: Path, path: Path) -> None:
    """The models differ in nothing but weights and numbers of experts.

    Raises:
        UserError: naming what differs.
    """
    for part, options in (("model", _OPTIONS), ("task", _TASK_OPTIONS)):
        sections = [config.section(model.state, part) for model in (first, other)]
        for option in options:
            values = [str(config.get(section, option)) for section in sections]
            if values[0] != values[1]:
                raise UserError(
                    f"{path} and {first_path} are different models: {flag_of(option)} "
                    f"is {values[1]} in one and {values[0]} in the other"
                )
    if first.experts.keys() != other.experts.keys():
        layers = sorted(first.experts.keys() ^ other.experts.keys())
        raise UserError(f"{path} and {first_path}: only one of them has experts in {layers[0]}")
    check_alike(first.state, other.state, first_path, path)
    _check_shapes(first, other, first_path, path)


def _check_shapes(first: Gathered, other: Gathered, first_path: Path, path: Path) -> None:
    """Entries of experts and gates; `mean` looks at all others."""
    for layer in first.experts:
        # A gate has a row for each expert, of which there may be other numbers.
        for key, start in ((names.gate_key(layer), 1), (f"{layer}.experts.0.fc1.weight", 0)):
            shapes = [tuple(model.state["model"][key].shape[start:]) for model in (first, other)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"{path} and {first_path} are different models: {key} has {shapes[1]} in one "
                    f"and {shapes[0]} in the other"
                )
