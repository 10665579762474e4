"""Named shapes of `moe_transformer`: each a delta on the base shape.

A dense twin has the same shape without experts. A token passes one expert of the size of the
twin's feed-forward network, so that the two cost the same arithmetic per token.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from fairseq.models import register_model_architecture
from fairseq.models.transformer.transformer_legacy import base_architecture

from zcode_plugin.errors import exits_on_user_error
from zcode_plugin.models import moe_transformer  # noqa: F401 (registers the model first)
from zcode_plugin.models.moe_checks import check_base_layers
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.models.pretrained import adopt_shape, check_experts

# Transformer base of "Attention Is All You Need", with the choices of the Z-code M3 paper:
# normalisation before each block and one embedding for source, target and output.
BASE: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_embed_dim": 512,
        "encoder_ffn_embed_dim": 2048,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
        "moe_jitter_eps": 0.01,
    }
)
TINY: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_layers": 4,
        "decoder_layers": 2,
        "encoder_embed_dim": 128,
        "encoder_ffn_embed_dim": 256,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
)
# Transformer big of the same paper.
BIG: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
    }
)
# What stock's own `transformer` is without flags, where that differs from BASE: flags can switch
# these on and not off, so that a stock model with experts needs a name from which to start.
STOCK: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
        "share_all_embeddings": False,
    }
)
# The paper's models of 10 and 5 billion parameters: a deep encoder and a shallow decoder.
M3: Mapping[str, Any] = MappingProxyType(
    {
        **BIG,
        "encoder_layers": 24,
        "decoder_layers": 12,
        "moe_expert_count": "64",
    }
)
DENSE: Mapping[str, Any] = MappingProxyType({"moe_freq": 0})

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "moe_transformer": {},
        "moe_transformer_base": {},
        "moe_transformer_stock": STOCK,
        "moe_transformer_base_dense": DENSE,
        "moe_transformer_big": BIG,
        "moe_transformer_big_dense": {**BIG, **DENSE},
        "moe_transformer_tiny": TINY,
        "moe_transformer_tiny_dense": {**TINY, **DENSE},
        "zcode_m3_10b": M3,
        "zcode_m3_5b": {**M3, "moe_expert_count": "32"},
        "zcode_m3_dense": {**M3, **DENSE},
    }
)


@exits_on_user_error
def fill(args: Namespace, preset: Mapping[str, Any]) -> None:
    """Give every option that the user left open the value of the preset, of BASE, or the default.

    What the file that the run starts from says of the model's shape goes before the preset.
    When experts are spread over ranks, `base_layers` is set: stock fairseq's own sign that every
    rank saves and loads a file of its own, `-rank-N`.
    """
    defaults = {item.name: item.default for item in fields(MoEConfig) if item.name[0] != "_"}
    stored = adopt_shape(args, {**defaults, **BASE, **preset})
    for name, value in {**defaults, **BASE, **preset}.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if stored is not None:
        check_experts(args, stored)
    base_architecture(args)
    spread = 1 if args.expert_parallel_size > 1 else 0
    check_base_layers(args, spread)
    args.base_layers = spread
    if getattr(args, "model_parallel_size", 1) > 1:
        # Stock's other way is a broadcast from rank 0, which is not among those of every slice.
        args.load_checkpoint_on_all_dp_ranks = True


def _filler(preset: Mapping[str, Any]) -> Callable[[Namespace], None]:
    return lambda args: fill(args, preset)


for _name, _preset in ARCHITECTURES.items():
    register_model_architecture("moe_transformer", _name)(_filler(_preset))
