"""What a layer keeps for its backward pass grows with tokens, not with tokens x experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zcode_plugin.moe import Experts, GateOptions, MOELayer, TopKGate


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes of activations that autograd keeps, memory that tensors share counted once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x)
    assert output.shape == x.shape
    return sum(kept.values())


def test_16384_tokens_and_128_experts_take_under_twice_the_dense_layers_activations() -> None:
    tokens, dim, ffn = 16384, 256, 1024
    x = torch.randn(tokens, dim)
    dense = nn.Sequential(nn.Linear(dim, ffn), nn.ReLU(), nn.Linear(ffn, dim))
    gate = TopKGate(dim, 128, GateOptions(capacity_factor=0))
    layer = MOELayer(gate, Experts(dim, ffn, 128))
    # x and the hidden values: the counting itself is right.
    assert kept_bytes(dense, x) == 4 * tokens * (dim + ffn)
    assert kept_bytes(layer, x) < 2 * kept_bytes(dense, x)
