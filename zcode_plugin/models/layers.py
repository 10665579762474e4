"""Transformer layers of fairseq with experts in the place of the feed-forward network."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from fairseq.utils import get_activation_fn
from torch import Tensor, nn

from zcode_plugin.checkpoint.config import FLOAT_BITS
from zcode_plugin.checkpoint.names import FAST_PATH_COPIES
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.moe import (
    CallContext,
    Experts,
    Gate,
    HashGate,
    MOELayer,
    QuantisedExperts,
    RandomGate,
    ResidualExpert,
    TopKGate,
)
from zcode_plugin.moe.tape import is_recording
from zcode_plugin.parallel.topology import ExpertTopology


def _identity(x: Tensor) -> Tensor:
    return x


class LeanEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer without the fast-path copies; equal in all else.

    The copies cost memory and checkpoint space, and torch's kernel knows no experts.
    """

    def __init__(self, cfg: TransformerConfig, return_fc: bool = False):
        super().__init__(cfg, return_fc=return_fc)
        self.can_use_fastpath = False
        for name in FAST_PATH_COPIES:
            delattr(self, name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of the stock model hold the copies; stock's own override would make them anew.
        for name in FAST_PATH_COPIES:
            state_dict.pop(prefix + name, None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


class _ExpertFeedForward:
    """Puts an `MOELayer` where a stock layer's forward calls fc1, activation, dropout and fc2.

    The stock forward runs unchanged: `fc1` applies the experts, the rest passes on. What it cannot
    pass, the padding mask, the context and the statistics, is held here for the duration of one
    call.
    """

    moe_layer: MOELayer
    _padding: Tensor | None = None
    _context: CallContext | None = None
    _stats: Tensor | None = None

    def _install(self, moe_layer: MOELayer) -> None:
        del self.fc1, self.fc2  # type: ignore[has-type]
        self.fc1, self.fc2 = self._apply_experts, _identity
        self.moe_layer = moe_layer
        self.activation_fn = _identity
        self.activation_dropout_module = nn.Identity()

    def _apply_experts(self, x: Tensor) -> Tensor:
        padding = None if self._padding is None else self._padding.t()
        inputs = x, padding, self._context
        if not is_recording() and not torch.is_grad_enabled():
            # Translation: in a step of one token statistics would take longer than experts.
            self._stats = x.new_empty(0)
            return self.moe_layer.forward_without_stats(*inputs)
        output, self._stats = self.moe_layer.forward_with_stats(*inputs)
        return output

    def _take_stats(self) -> Tensor:
        stats, self._stats, self._padding, self._context = self._stats, None, None, None
        assert stats is not None
        return stats


class MoEEncoderLayer(_ExpertFeedForward, LeanEncoderLayer):
    """Encoder layer with experts; returns (x, packed `LayerStats`), empty ones in translation."""

    def __init__(
        self,
        cfg: TransformerConfig,
        moe: MoEConfig,
        topology: ExpertTopology,
        num_experts: int,
        return_fc: bool = False,
    ):
        super().__init__(cfg, return_fc=return_fc)
        self.masks_padding = moe.masks_padding
        self._install(build_moe_layer(cfg, cfg.encoder, moe, topology, num_experts))

    def forward(
        self,
        x: Tensor,
        encoder_padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
        context: CallContext | None = None,
    ) -> tuple[Tensor, Tensor]:
        self._padding = encoder_padding_mask if self.masks_padding else None
        self._context = context
        output = LeanEncoderLayer.forward(self, x, encoder_padding_mask, attn_mask)
        return (output[0] if isinstance(output, tuple) else output), self._take_stats()


class MoEDecoderLayer(_ExpertFeedForward, TransformerDecoderLayerBase):
    """Decoder layer with experts; returns (x, attention, packed `LayerStats`), as the encoder's."""

    def __init__(
        self,
        cfg: TransformerConfig,
        moe: MoEConfig,
        topology: ExpertTopology,
        num_experts: int,
        no_encoder_attn: bool = False,
    ):
        super().__init__(cfg, no_encoder_attn=no_encoder_attn)
        self.masks_padding = moe.masks_padding
        self._install(build_moe_layer(cfg, cfg.decoder, moe, topology, num_experts))

    def forward(
        self,
        x: Tensor,
        *args: Any,
        self_attn_padding_mask: Tensor | None = None,
        context: CallContext | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        self._padding = self_attn_padding_mask if self.masks_padding else None
        self._context = context
        output, attention, _ = TransformerDecoderLayerBase.forward(
            self, x, *args, self_attn_padding_mask=self_attn_padding_mask, **kwargs
        )
        return output, attention, self._take_stats()


def build_moe_layer(
    cfg: TransformerConfig, side: Any, moe: MoEConfig, topology: ExpertTopology, num_experts: int
) -> MOELayer:
    """Gate and local experts for one layer; `side` is the encoder's or the decoder's config."""
    local = topology.local_experts(num_experts)
    shape = (side.embed_dim, side.ffn_embed_dim)
    activation = get_activation_fn(cfg.activation_fn)
    dropout = cfg.activation_dropout or cfg.relu_dropout or 0.0
    gate = _build_gate(side.embed_dim, num_experts, moe)
    experts: nn.Module
    if moe.moe_expert_bits == FLOAT_BITS:
        experts = Experts(
            *shape, len(local), first=local.start, activation=activation, dropout=dropout
        )
    else:
        experts = QuantisedExperts(*shape, num_experts, moe.moe_expert_bits, activation=activation)
    residual = None
    if moe.moe_residual:
        residual = ResidualExpert(*shape, activation=activation, dropout=dropout)
    return MOELayer(
        gate, experts, topology.group, residual=residual, gating_dropout=moe.gating_dropout
    )


def _build_gate(model_dim: int, num_experts: int, moe: MoEConfig) -> Gate:
    if moe.gate_is_learned:
        return TopKGate(model_dim, num_experts, moe.gate)
    fixed = HashGate if str(moe.moe_gate) == "hash" else RandomGate
    return fixed(num_experts, moe.gate)
