"""The residual expert."""

from __future__ import annotations

import torch

from zcode_plugin.moe import Experts, GateOptions, MOELayer, ResidualExpert, TopKGate

M, F, E = 6, 10, 4


def build() -> MOELayer:
    torch.manual_seed(0)
    gate, experts = TopKGate(M, E, GateOptions(capacity_factor=0)), Experts(M, F, E)
    return MOELayer(gate, experts, residual=ResidualExpert(M, F, dropout=0.5))


def test_output_is_the_mixture() -> None:
    layer = build().eval()
    plain = MOELayer(layer.gate, layer.experts).eval()
    x = torch.randn(2, 5, M)
    residual = layer.residual
    assert residual is not None
    dense = (x @ residual.fc1.weight.t() + residual.fc1.bias).relu()
    dense = dense @ residual.fc2.weight.t() + residual.fc2.bias
    logits = x @ residual.coefficient.weight.t() + residual.coefficient.bias
    share = (logits[..., :1] - logits[..., 1:]).sigmoid()
    torch.testing.assert_close(layer(x), share * plain(x) + (1 - share) * dense)


def test_dropout_acts_in_training_only() -> None:
    layer = build()
    x = torch.randn(5, M)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_keys_lie_beside_those_of_the_experts() -> None:
    keys = [key for key in build().state_dict() if not key.startswith("experts.")]
    assert sorted(keys) == [
        "gate.wg.weight",
        "residual.coefficient.bias",
        "residual.coefficient.weight",
        "residual.fc1.bias",
        "residual.fc1.weight",
        "residual.fc2.bias",
        "residual.fc2.weight",
    ]
