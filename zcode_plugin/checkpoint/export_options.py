"""The options of a checkpoint in terms of the exported model, and what that cannot represent."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_legacy import base_architecture
from omegaconf import DictConfig, OmegaConf

from zcode_plugin.checkpoint import config, names
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.models.stored import OURS

REMEDY = "--format safetensors writes the weights as they are"

# Options with another meaning than their absence; those of training alone are no matter.
_REFUSED = (
    "adaptive_input",
    "adaptive_softmax_cutoff",
    "alignment_heads",
    "base_layers",
    "char_inputs",
    "cross_self_attention",
    "decoder_layers_to_keep",
    "decoder_xformers_att_config",
    "encoder_layers_to_keep",
    "encoder_xformers_att_config",
    "moe_eval_capacity_factor",
    "no_cross_attention",
    "quant_noise_pq",
    "quant_noise_scalar",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
)
# fairseq's names; two of them mean the same.
_ACTIVATIONS = {
    name: name for name in ("relu", "relu_squared", "gelu", "gelu_accurate", "tanh", "linear")
} | {"gelu_fast": "gelu_accurate"}

_SIDES = ("encoder", "decoder")
_ATTENTION = [
    f"{projection}_proj.{kind}" for projection in "kvq" for kind in ("weight", "bias")
] + ["out_proj.weight", "out_proj.bias"]


def all_options(state: Mapping[str, Any]) -> Namespace:
    """All options of the model, with the defaults that loading gives to those of older files.

    Raises:
        UserError: the checkpoint is of another model.
    """
    section = config.section(state, "model")
    if isinstance(section, DictConfig):
        section = OmegaConf.to_container(section, resolve=True)
    args = Namespace(**(section if isinstance(section, dict) else vars(section)))
    arch = str(getattr(args, "arch", None) or getattr(args, "_name", None))
    if ARCH_MODEL_NAME_REGISTRY.get(arch) != OURS:
        raise UserError(f"--arch {arch} is no {OURS}, which alone can be exported")
    base_architecture(args)
    moe = MoEConfig.from_namespace(args)
    for field in _public_fields(moe):
        setattr(args, field, getattr(moe, field))
    return args


def plain_options(args: Namespace) -> dict[str, Any]:
    """The options of fairseq's Transformer and of the experts, as JSON has them."""
    transformer = TransformerConfig.from_namespace(args)
    options = {"arch": args.arch, **dict(_flat(transformer))}
    options |= {name: getattr(args, name) for name in _public_fields(MoEConfig())}
    return {
        name: value if isinstance(value, (bool, int, float, list, type(None))) else str(value)
        for name, value in sorted(options.items())
    }


def model_options(
    args: Namespace, experts: Mapping[str, int], weights: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Arguments of the exported model's configuration, `ZcodeMoeConfig`.

    Args:
        args: as `all_options` gives them.
        experts: of each MoE layer, by its name in the checkpoint.
        weights: the model's.

    Raises:
        UserError: naming an option that the exported model does not have.
    """
    _refuse(args)
    moe = MoEConfig.from_namespace(args)
    learned = moe.gate_is_learned
    options = {
        "vocab_size": len(weights[names.EMBEDDINGS]),
        "activation_function": _ACTIVATIONS[str(args.activation_fn)],
        "scale_embedding": not args.no_scale_embedding,
        "layernorm_embedding": bool(args.layernorm_embedding),
        "share_all_embeddings": bool(args.share_all_embeddings),
        "share_decoder_input_output_embed": bool(
            args.share_all_embeddings or args.share_decoder_input_output_embed
        ),
        "gate": "learned" if learned else "hash",  # random gates are hash gates in evaluation
        "gate_sees_token": learned and moe.moe_gate_sees_token,
        "experts_per_token": int(moe.moe_top_k),
        "normalize_gate": learned and moe.gate.normalizes,
        "selection_bias": learned and moe.balance == "bias",
        "gate_in_float32": moe.gate.fp32,
        "residual_expert": bool(moe.moe_residual),
        "dropout": float(args.dropout),
        "attention_dropout": float(args.attention_dropout),
        "activation_dropout": float(args.activation_dropout or getattr(args, "relu_dropout", 0)),
    }
    for side in _SIDES:
        options |= _side_options(args, side, experts, weights)
    return options


def _side_options(
    args: Namespace,
    side: str,
    experts: Mapping[str, int],
    weights: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    layers = int(getattr(args, f"{side}_layers"))
    normalize_before = bool(getattr(args, f"{side}_normalize_before"))
    bare = side == "decoder" and bool(getattr(args, "no_decoder_final_norm", False))
    longest = "max_source_positions" if side == "encoder" else "max_target_positions"
    positions, count = "sinusoidal", int(getattr(args, longest, None) or 1024)
    if args.no_token_positional_embeddings:
        positions = "none"
    elif getattr(args, f"{side}_learned_pos"):
        positions = "learned"
        # Rows up to that of padding, which is number 1, are no positions.
        count = len(weights[f"{side}.embed_positions.weight"]) - 2
    return {
        f"{side}_layers": layers,
        f"{side}_embed_dim": int(getattr(args, f"{side}_embed_dim")),
        f"{side}_ffn_dim": int(getattr(args, f"{side}_ffn_embed_dim")),
        f"{side}_attention_heads": int(getattr(args, f"{side}_attention_heads")),
        f"{side}_normalize_before": normalize_before,
        f"{side}_final_norm": normalize_before and not bare,
        f"{side}_positions": positions,
        f"{side}_experts": [
            experts.get(f"{side}.layers.{index}.moe_layer", 0) for index in range(layers)
        ],
        longest: count,
    }


def _refuse(args: Namespace) -> None:
    for name in _REFUSED:
        value = getattr(args, name, None)
        if value:
            flag = flag_of(name)
            given = flag if value is True else f"{flag} {value}"
            raise UserError(f"{given} has no counterpart in the exported model: {REMEDY}")
    if str(args.activation_fn) not in _ACTIVATIONS:
        raise UserError(
            f"--activation-fn {args.activation_fn} is none of {', '.join(_ACTIVATIONS)}: {REMEDY}"
        )
    if int(args.decoder_output_dim) != int(args.decoder_embed_dim):
        raise UserError(
            f"--decoder-output-dim {args.decoder_output_dim} is not --decoder-embed-dim "
            f"{args.decoder_embed_dim}, as in the exported model: {REMEDY}"
        )


def weight_names(options: Mapping[str, Any]) -> set[str]:
    """Names of all weights of the exported model; tables that are shared have one."""
    found = {names.EMBEDDINGS}
    if not options["share_all_embeddings"]:
        found.add("decoder.embed_tokens.weight")
        if not options["share_decoder_input_output_embed"]:
            found.add("decoder.output_projection.weight")
    for side in _SIDES:
        modules = ["layer_norm"] if options[f"{side}_final_norm"] else []
        if options["layernorm_embedding"]:
            modules.append("layernorm_embedding")
        found |= {f"{side}.{module}.{kind}" for module in modules for kind in ("weight", "bias")}
        if options[f"{side}_positions"] == "learned":
            found.add(f"{side}.embed_positions.weight")
        for index, experts in enumerate(options[f"{side}_experts"]):
            layer = _layer_weights(side, experts, options)
            found |= {f"{side}.layers.{index}.{name}" for name in layer}
    return found


def _layer_weights(side: str, experts: int, options: Mapping[str, Any]) -> Iterator[str]:
    attentions = ("self_attn",) if side == "encoder" else ("self_attn", "encoder_attn")
    for attention in attentions:
        yield from (f"{attention}.{name}" for name in _ATTENTION)
    linear = [] if experts else ["fc1", "fc2"]
    linear += [f"moe_layer.experts.{e}.{fc}" for e in range(experts) for fc in ("fc1", "fc2")]
    if experts and options["residual_expert"]:
        linear += [f"moe_layer.residual.{name}" for name in ("fc1", "fc2", "coefficient")]
    if experts and options["gate"] == "learned":
        yield names.gate_key("moe_layer")
        if options["selection_bias"]:
            yield "moe_layer.gate.selection_bias"
    norms = [*(f"{attention}_layer_norm" for attention in attentions), "final_layer_norm"]
    yield from (f"{module}.{kind}" for module in linear + norms for kind in ("weight", "bias"))


def _public_fields(options: Any) -> list[str]:
    return [field.name for field in fields(options) if not field.name.startswith("_")]


def _flat(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`encoder.layers` becomes `encoder_layers`, as flags have it."""
    for name in _public_fields(options):
        value = getattr(options, name)
        if is_dataclass(value):
            yield from _flat(value, f"{name}_")
        else:
            yield prefix + name, value
