"""The layers that `moe_layer.py` times, built alike: [tokens, dim] in, [tokens, dim] out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a contest; `dtype` is a name of torch's."""

    tokens: int
    dim: int
    ffn: int
    experts: int
    k: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


def feed_forward(dim: int, ffn: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, ffn), nn.ReLU(), nn.Linear(ffn, dim))


class Limit(nn.Module):
    """The experts in a loop over equal shares of the tokens, K times: no gate, no routing."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.k = shape.k
        self.experts = nn.ModuleList(
            feed_forward(shape.dim, shape.ffn) for _ in range(shape.experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        shares = x.repeat(self.k, 1).chunk(len(self.experts))
        outputs = [expert(share) for expert, share in zip(self.experts, shares, strict=True)]
        return torch.cat(outputs).view(self.k, *x.shape).sum(0)


def dense(shape: Shape) -> nn.Module:
    """A feed-forward network of equal compute per token."""
    return feed_forward(shape.dim, shape.k * shape.ffn)


def ours(shape: Shape, capacity_factor: float = 1.0) -> nn.Module:
    from zcode_plugin.moe import Experts, GateOptions, MOELayer, TopKGate

    options = GateOptions(k=shape.k, capacity_factor=capacity_factor)
    gate = TopKGate(shape.dim, shape.experts, options)
    return MOELayer(gate, Experts(shape.dim, shape.ffn, shape.experts))


def fairscale(shape: Shape) -> nn.Module | None:
    """fairscale's layer and its only gate, which is top-2, in float32."""
    from fairscale.nn import MOELayer, Top2Gate

    if shape.k != 2 or shape.dtype != "float32":
        return None
    _single_process_group()
    experts = nn.ModuleList(feed_forward(shape.dim, shape.ffn) for _ in range(shape.experts))
    return ThreeDimensions(MOELayer(Top2Gate(shape.dim, shape.experts), experts), at=1)


def deepspeed(shape: Shape, drop: bool = True) -> nn.Module:
    from deepspeed.moe.experts import Experts
    from deepspeed.moe.sharded_moe import MOELayer, TopKGate

    gate = TopKGate(
        shape.dim, shape.experts, k=shape.k, capacity_factor=1.0, drop_tokens=drop, use_rts=True
    )
    experts = Experts(feed_forward(shape.dim, shape.ffn), shape.experts)
    return TwoArguments(MOELayer(gate, experts, "one", 1, shape.experts))


def switch(shape: Shape) -> nn.Module | None:
    """Hugging Face's Switch Transformers, which is top-1; experts without bias."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersSparseMLP,
    )

    if shape.k != 1:
        return None
    config = SwitchTransformersConfig(
        d_model=shape.dim,
        d_ff=shape.ffn,
        num_experts=shape.experts,
        expert_capacity=-(-shape.tokens // shape.experts),
        dropout_rate=0.0,
        router_jitter_noise=0.0,  # nobody here jitters
    )
    return ThreeDimensions(SwitchTransformersSparseMLP(config))


class ThreeDimensions(nn.Module):
    """For layers that want [batch, length, dim]; `at` says which of the two is 1."""

    def __init__(self, layer: nn.Module, at: int = 0):
        super().__init__()
        self.layer = layer
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x.unsqueeze(self.at))
        return (output[0] if isinstance(output, tuple) else output).view_as(x)


class TwoArguments(nn.Module):
    """For layers that want a mask of used tokens, or None."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, None)


def _single_process_group() -> None:
    import tempfile

    import torch.distributed as dist

    if not dist.is_initialized():
        store = f"file://{tempfile.mkdtemp()}/store"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)


CONTESTANTS: Mapping[str, Callable[[Shape], nn.Module | None]] = {
    "limit": Limit,
    "dense": dense,
    "ours": ours,
    "ours dropless": lambda shape: ours(shape, capacity_factor=0),
    "fairscale": fairscale,
    "deepspeed": deepspeed,
    "deepspeed dropless": lambda shape: deepspeed(shape, drop=False),
    "switch": switch,
}
