"""The shape of a model that is finetuned is that of the file: nobody has to repeat its flags."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, io
from zcode_plugin.errors import UserError
from zcode_plugin.models.expert_layout import expert_layout
from zcode_plugin.models.moe_config import MoEConfig

logger = logging.getLogger(__name__)

# With another value the weights do not fit, or, worse, fit and mean something else.
_SHAPE = (
    *("encoder_layers", "decoder_layers", "encoder_embed_dim", "decoder_embed_dim"),
    *("encoder_ffn_embed_dim", "decoder_ffn_embed_dim", "encoder_attention_heads"),
    *("decoder_attention_heads", "activation_fn", "encoder_normalize_before"),
    *("decoder_normalize_before", "encoder_learned_pos", "decoder_learned_pos"),
    *("no_token_positional_embeddings", "layernorm_embedding", "no_scale_embedding"),
    *("share_all_embeddings", "share_decoder_input_output_embed", "no_decoder_final_norm"),
)
_EXPERTS = (
    *("moe_freq", "encoder_moe_freq", "decoder_moe_freq", "moe_expert_count"),
    *("encoder_moe_expert_count", "decoder_moe_expert_count", "moe_residual"),
    *("moe_top_k", "moe_gate", "moe_gate_sees_token", "moe_normalize_gate_prob"),
    "moe_normalize_gate_prob_before_dropping",
)

# Of these, those that change which weights there are.
_WEIGHTS = ("moe_freq", "moe_residual", "moe_gate_sees_token")


def adopt_shape(args: Namespace, preset: Mapping[str, Any]) -> Namespace | None:
    """Take options that the user left open from the file of `--finetune-from-model`.

    Those of the model's shape and of its experts; a file of another model than `moe_transformer`,
    or none, says nothing.

    Args:
        args: options of the run, changed in place.
        preset: what the architecture says; what differs from it is logged.

    Returns:
        What the file says of those.

    Raises:
        UserError: a flag that is given contradicts the file.
    """
    path = getattr(args, "finetune_from_model", None)
    if not path or not Path(path).is_file():
        return None  # the start of the run says what is wrong
    stored = config.section(io.load_options(Path(path)), "model")
    if config.get(stored, "moe_freq") is None:
        return None
    taken = []
    for name in (*_SHAPE, *_EXPERTS):
        value, given = config.get(stored, name), getattr(args, name, None)
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if given is None:
            setattr(args, name, value)
            if str(preset.get(name, False)) != str(value):
                taken.append(f"{flag} {value}")
        elif name in (*_SHAPE, *_WEIGHTS) and str(given) != str(value):
            raise UserError(
                f"--finetune-from-model {path} has {flag} {value}, this run {given}: drop the flag"
            )
    if taken:
        logger.info("from %s: %s", path, ", ".join(taken))
    return Namespace(**{name: config.get(stored, name) for name in (*_SHAPE, *_EXPERTS)})


def check_experts(args: Namespace, stored: Namespace) -> None:
    """Refuse a learned gate where the file has none or the reverse, and experts placed otherwise.

    Args:
        args: all options of the run.
        stored: see `adopt_shape`.

    Raises:
        UserError: one line with the file, what it has and the remedy.
    """
    moe, moe_before = (MoEConfig.from_namespace(options) for options in (args, stored))
    own, other = _experts(moe, args), _experts(moe_before, stored)
    if own != other:
        raise UserError(
            f"--finetune-from-model {args.finetune_from_model} has experts in {other}, this run in "
            f"{own}: drop --moe-freq, --moe-expert-count and those of --encoder- and --decoder-"
        )
    # Of gates, a learned one alone has weights.
    if moe.gate_is_learned != moe_before.gate_is_learned:
        raise UserError(
            f"--finetune-from-model {args.finetune_from_model} has --moe-gate "
            f"{moe_before.moe_gate}, this run {moe.moe_gate}: drop the flag"
        )


def _experts(moe: MoEConfig, options: Namespace) -> str:
    """Layers from 1 on, with their experts."""
    layout = expert_layout(moe, options.encoder_layers, options.decoder_layers)
    layers = [
        f"{side} layer {index + 1} ({experts})"
        for side, places in layout.items()
        for index, experts in places.items()
    ]
    return ", ".join(layers) or "no layer"
