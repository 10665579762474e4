"""The shape of a model is that of the file it starts from: nobody has to repeat its flags."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, io
from zcode_plugin.checkpoint.sets import first_file, start_name
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of
from zcode_plugin.models.layer_experts import layer_experts
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
    *("moe_balance", "moe_top_k", "moe_gate", "moe_gate_sees_token", "moe_normalize_gate_prob"),
    "moe_normalize_gate_prob_before_dropping",
)

# Of these, those that change which weights there are.
_WEIGHTS = ("moe_freq", "moe_residual", "moe_gate_sees_token")


@dataclass(frozen=True)
class Stored:
    """What a file says of its model.

    Attributes:
        path: the file.
        flag: that names it; empty for the checkpoint that the run goes on from.
        options: of the model's shape and its experts.
    """

    path: Path
    flag: str
    options: Namespace

    @property
    def name(self) -> str:
        """For errors."""
        return f"{self.flag} {self.path}".lstrip()


def adopt_shape(args: Namespace, preset: Mapping[str, Any]) -> Stored | None:
    """Take options that the user left open from the file that the run starts from.

    That is the checkpoint it goes on from, or else the file of `--finetune-from-model`. Taken are
    options of the model's shape and of its experts; a file of another model than
    `moe_transformer`, or none, says nothing. Options are looked at once: those that a checkpoint
    holds are complete, whatever became of the files since.

    Args:
        args: options of the run, changed in place.
        preset: what the architecture says; what differs from it is logged.

    Raises:
        UserError: a flag that is given contradicts the file.
    """
    if getattr(args, "shape_is_set", False):
        return None
    args.shape_is_set = True  # saved with the others
    stored = _stored(args)
    if stored is None:
        return None
    taken = []
    for name, value in vars(stored.options).items():
        given = getattr(args, name, None)
        flag = flag_of(name)
        if value is None:
            continue
        if given is None:
            setattr(args, name, value)
            if str(preset.get(name, False)) != str(value):
                taken.append(f"{flag} {value}")
        elif name in (*_SHAPE, *_WEIGHTS) and str(given) != str(value):
            raise UserError(f"{stored.name} has {flag} {value}, this run {given}: drop the flag")
    if taken:
        logger.info("from %s: %s", stored.path, ", ".join(taken))
    return stored


def _stored(args: Namespace) -> Stored | None:
    """Options of the file that the run starts from; None where it is missing or cannot be read.

    The start of the run then says what is wrong with it.
    """
    resumed, pretrained = _resumed(args), getattr(args, "finetune_from_model", None)
    path = resumed or Path(pretrained or "")
    if not path.is_file():
        return None
    try:
        stored = config.section(io.load_options(path), "model")
    except UserError:
        return None
    if config.get(stored, "moe_freq") is None:
        return None
    options = Namespace(**{name: config.get(stored, name) for name in (*_SHAPE, *_EXPERTS)})
    return Stored(path, "" if resumed else "--finetune-from-model", options)


def _resumed(args: Namespace) -> Path | None:
    """A file of the checkpoint that the run goes on from."""
    if getattr(args, "save_dir", None) is None:
        return None
    return first_file(start_name(args))


def check_experts(args: Namespace, stored: Stored) -> None:
    """Refuse a learned gate where the file has none or the reverse, and experts placed otherwise.

    Args:
        args: all options of the run.
        stored: see `adopt_shape`.

    Raises:
        UserError: one line with the file, what it has and the remedy.
    """
    moe, moe_before = (MoEConfig.from_namespace(options) for options in (args, stored.options))
    own, other = _experts(moe, args), _experts(moe_before, stored.options)
    if own != other:
        raise UserError(
            f"{stored.name} has experts in {other}, this run in {own}: drop --moe-freq, "
            "--moe-expert-count and those of --encoder- and --decoder-"
        )
    # Of gates, a learned one alone has weights.
    if moe.gate_is_learned != moe_before.gate_is_learned:
        raise UserError(
            f"{stored.name} has --moe-gate {moe_before.moe_gate}, this run {moe.moe_gate}: drop "
            "the flag"
        )


def _experts(moe: MoEConfig, options: Namespace) -> str:
    """Layers from 1 on, with their experts."""
    layout = layer_experts(moe, options.encoder_layers, options.decoder_layers)
    layers = [
        f"{side} layer {index + 1} ({experts})"
        for side, places in layout.items()
        for index, experts in places.items()
    ]
    return ", ".join(layers) or "no layer"
