"""Linear maps of several experts in one kernel; torch's kernel runs in bf16 on a CPU, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zcode_plugin.moe import experts
from zcode_plugin.moe.grouped import grouped_linear

pytestmark = pytest.mark.skipif(
    not hasattr(nn.functional, "grouped_mm"), reason="needs a torch with functional.grouped_mm"
)
KEPT = [3, 0, 6, 1]


def _one_by_one(x_AI: Tensor, weight_LOI: Tensor, bias_LO: Tensor) -> Tensor:
    parts = x_AI.split(KEPT)
    return torch.cat(
        [nn.functional.linear(*one) for one in zip(parts, weight_LOI, bias_LO, strict=True)]
    )


def test_it_equals_one_expert_after_the_other() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().requires_grad_()

    inputs = draw(10, 16), draw(4, 24, 16), draw(4, 24)
    grad = draw(10, 24).detach()
    precise = [one.detach().double().requires_grad_() for one in inputs]
    found = grouped_linear(*inputs, torch.tensor(KEPT))
    expected = _one_by_one(*precise)
    gradients = torch.autograd.grad(found, inputs, grad)
    wanted = torch.autograd.grad(expected, precise, grad.double())
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        assert (one.double() - other).norm() < 5e-3 * other.norm()  # bf16 has 8 bits
    assert not gradients[2][1].any()  # the second expert was sent nothing


def test_dropout_between_the_maps_of_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA, taken on a CPU: only one with a kernel for it has it of its own accord."""
    monkeypatch.setattr(experts, "can_use_grouped_mm", lambda *_: True)
    torch.manual_seed(0)
    layer = experts.Experts(16, 512, len(KEPT), dropout=0.5).bfloat16()
    x_AM = torch.randn(sum(KEPT), 16).bfloat16()
    plain = layer.eval()(x_AM, KEPT)
    dropped = torch.stack([layer.train()(x_AM, KEPT) for _ in range(200)])
    assert dropped.std(0).min() > 0
    # Kept ones count twice: the mean stays.
    torch.testing.assert_close(dropped.mean(0), plain, atol=0.1, rtol=0)
