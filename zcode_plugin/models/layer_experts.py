"""How many experts each layer has."""

from __future__ import annotations

from zcode_plugin.errors import UserError
from zcode_plugin.models.moe_config import MoEConfig

# Experts by the index of the layer, for each side; dense layers are absent.
LayerExperts = dict[str, dict[int, int]]


def layer_experts(moe: MoEConfig, encoder_layers: int, decoder_layers: int) -> LayerExperts:
    """Experts of each MoE layer of the encoder and the decoder.

    `--moe-expert-count` gives one number for all layers, or one for each, the encoder's first; the
    flags of one side go before it.

    Raises:
        UserError: a list of the wrong length, or a number that is none.
    """
    places = {
        "encoder": _moe_layers(moe, "encoder", encoder_layers),
        "decoder": _moe_layers(moe, "decoder", decoder_layers),
    }
    total = sum(len(indices) for indices in places.values())
    both = _counts("--moe-expert-count", moe.moe_expert_count, total, "encoder and decoder have")
    layout: LayerExperts = {}
    start = 0
    for side, indices in places.items():
        counts = both[start : start + len(indices)]
        start += len(indices)
        own = getattr(moe, f"{side}_moe_expert_count")
        if own is not None:
            counts = _counts(f"--{side}-moe-expert-count", own, len(indices), f"the {side} has")
        layout[side] = dict(zip(indices, counts, strict=True))
    return layout


def _moe_layers(moe: MoEConfig, side: str, layers: int) -> list[int]:
    return [index for index in range(layers) if moe.is_moe_layer(side, index)]


def _counts(flag: str, text: object, layers: int, where: str) -> list[int]:
    """`"32,64"` -> [32, 64], one number for each of `layers` layers."""
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{flag} {text} must be a number, or several with commas between")
    counts = [int(part) for part in parts]
    if min(counts) < 1:
        raise UserError(f"{flag} {text} is too small: give at least 1")
    if len(counts) == 1:
        return counts * layers
    if len(counts) != layers:
        raise UserError(
            f"{flag} {text} has {len(counts)} numbers, but {where} {layers} MoE layers: give "
            f"one number for all, or {layers}"
        )
    return counts
