"""What a layer's routing looked like, as one vector that survives any wrapper.

Activation checkpointing, DDP and FSDP pass tensors through and lose anything else, so a layer
hands its losses and statistics up as one float32 vector; `LayerStats` gives its entries names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SCALARS = ("balance_loss", "z_loss", "tokens", "dropped", "entropy")
# Share of the experts that "top" and "bottom" mean in the balance metrics, as in fairseq's MoE
# branch, whose names these metrics bear.
_SAMPLE_FRACTION = 0.2
# What `log_values` gives and `reduce_log` takes.
LOG_SUMS = (
    "moe_layer_tokens",
    "moe_assignments",
    "moe_dropped",
    "moe_gate_loss",
    "moe_z_loss",
    "entropy_gating",
    "expert1_balance_top",
    "expert1_balance_bottom",
    "unused_expert1_count",
)


@dataclass(frozen=True)
class LayerStats:
    """Losses and load of one MoE layer in one call on one rank.

    Attributes:
        balance_loss, z_loss: scalars with gradient, means over routed tokens.
        tokens: number of routed tokens (padding excluded).
        dropped: number of assignments that found their expert full.
        entropy: sum over tokens of the entropy of the gate's distribution, in nats.
        load_E: [E] assignments that asked for each expert, before dropping.
    """

    balance_loss: Tensor
    z_loss: Tensor
    tokens: Tensor
    dropped: Tensor
    entropy: Tensor
    load_E: Tensor

    def pack(self) -> Tensor:
        """One float32 vector of 5 + E entries; the losses keep their gradient."""
        scalars = torch.stack([getattr(self, name).float() for name in _SCALARS])
        return torch.cat((scalars, self.load_E.float()))

    @classmethod
    def empty(cls, num_experts: int, device: torch.device) -> LayerStats:
        """Of a call in which the gate had no say."""
        zero = torch.zeros((), device=device)
        return cls(zero, zero, zero, zero, zero, torch.zeros(num_experts, device=device))

    @classmethod
    def unpack(cls, vector: Tensor) -> LayerStats:
        """Inverse of `pack`."""
        scalars = dict(zip(_SCALARS, vector[: len(_SCALARS)].unbind(), strict=True))
        return cls(**scalars, load_E=vector[len(_SCALARS) :])


def log_values(layers: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sums over layers, under the names of fairseq's MoE branch, ready to be added over ranks.

    Each value is multiplied by the layer's token count where `reduce_log` divides by it.
    """
    values: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        values[name] = values[name] + value if name in values else value

    for vector in layers:
        stats = LayerStats.unpack(vector.detach())
        num_experts = stats.load_E.numel()
        sample = max(1, math.ceil(num_experts * _SAMPLE_FRACTION))
        share_E = stats.load_E.sort(descending=True).values / stats.load_E.sum().clamp(min=1)
        add("moe_layer_tokens", stats.tokens)
        add("moe_assignments", stats.load_E.sum())
        add("moe_dropped", stats.dropped)
        add("moe_gate_loss", stats.balance_loss * stats.tokens)
        add("moe_z_loss", stats.z_loss * stats.tokens)
        add("entropy_gating", stats.entropy)
        add("expert1_balance_top", share_E[:sample].sum() * stats.tokens)
        add("expert1_balance_bottom", share_E[-sample:].sum() * stats.tokens)
        add("unused_expert1_count", (stats.load_E == 0).sum() * stats.tokens)
    return values


def reduce_log(values: dict[str, float]) -> dict[str, float]:
    """Means per token and per layer from the sums of `log_values`; percentages where a share.

    `overflow_expert1` is the percentage of assignments that were dropped.
    """
    tokens = max(float(values["moe_layer_tokens"]), 1.0)
    means = {
        name: float(values[name]) / tokens
        for name in ("moe_gate_loss", "moe_z_loss", "entropy_gating", "unused_expert1_count")
    }
    for name in ("expert1_balance_top", "expert1_balance_bottom"):
        means[name] = 100 * float(values[name]) / tokens
    assignments = max(float(values["moe_assignments"]), 1.0)
    means["overflow_expert1"] = 100 * float(values["moe_dropped"]) / assignments
    return means
