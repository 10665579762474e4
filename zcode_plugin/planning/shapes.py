"""Counts of a model's parameters, without making any."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import nn

from zcode_plugin.checkpoint.slices import sliced_dim
from zcode_plugin.models.moe_transformer import MoETransformer


@dataclass(frozen=True)
class ModelShape:
    """Numbers of trained parameters; tied ones count once.

    Attributes:
        dense: of all but experts.
        sliced: those of `dense` that tensor slicing divides among its ranks.
        experts: of all experts.
        largest: of the largest parameter outside of experts, which is never divided: an embedding.
        expert_layers: experts of each MoE layer, in the order of layers.
        encoder_layers, decoder_layers: layers.
        width: d_model.
        top_k, capacity_factor: experts of a token, and room for them.
        active: through which a token passes.
    """

    dense: int
    sliced: int
    experts: int
    largest: int
    expert_layers: tuple[int, ...]
    encoder_layers: int
    decoder_layers: int
    width: int
    top_k: int
    capacity_factor: float
    active: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.dense + self.experts

    def with_experts(self, count: int) -> ModelShape:
        """The same with so many experts in each MoE layer."""
        layers = len(self.expert_layers)
        of_each = self.experts / max(1, sum(self.expert_layers))
        return replace(
            self, experts=round(of_each * layers * count), expert_layers=(count,) * layers
        )


class Vocabulary(Dictionary):
    """A dictionary of so many symbols, of which only the number counts."""

    def __init__(self, size: int):
        super().__init__()
        self._size = size

    def __len__(self) -> int:
        return self._size


def build(args: Namespace, vocabulary: int) -> MoETransformer:
    """A model for a dictionary of so many symbols, on torch's current device.

    Args:
        args: options, as an architecture fills them.
        vocabulary: symbols.
    """
    dictionary = Vocabulary(vocabulary)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary, objectives=())
    return MoETransformer.build(args, task)


def measure_shape(args: Namespace, vocabulary: int) -> ModelShape:
    """Build the model of these options on torch's meta device, where no tensor has values.

    Raises:
        UserError: options that no model can have.
    """
    with torch.device("meta"):
        model = build(args, vocabulary)
    experts = _experts(model)
    of_experts = {id(p) for layer in experts for p in layer.parameters()}
    dense = {name: p for name, p in model.named_parameters() if id(p) not in of_experts}
    counts = tuple(layer.num_local for layer in experts)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in experts]
    top_k = args.moe_top_k
    idle = sum(
        size * (count - min(top_k, count)) // count
        for size, count in zip(sizes, counts, strict=True)
    )
    return ModelShape(
        dense=sum(p.numel() for p in dense.values()),
        sliced=sum(p.numel() for name, p in dense.items() if sliced_dim(name) is not None),
        experts=sum(sizes),
        largest=max(p.numel() for p in dense.values()),
        expert_layers=counts,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        width=args.encoder_embed_dim,
        top_k=top_k,
        capacity_factor=args.moe_capacity_factor,
        active=sum(p.numel() for p in dense.values()) + sum(sizes) - idle,
    )


def _experts(model: nn.Module) -> list[Any]:
    from zcode_plugin.moe import Experts

    return [module for module in model.modules() if isinstance(module, Experts)]
