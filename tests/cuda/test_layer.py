"""The layer on a GPU against the layer on a CPU, and what it waits for."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from zcode_plugin.moe import Experts, GateOptions, MOELayer, TopKGate
from zcode_plugin.moe.exchange import plan_exchange

# Relative errors of outputs and gradients; bf16 takes torch's grouped product.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}


def _layer(k: int, capacity_factor: float) -> MOELayer:
    torch.manual_seed(0)
    options = GateOptions(k=k, capacity_factor=capacity_factor)
    return MOELayer(TopKGate(64, 8, options), Experts(64, 256, 8))


def _pass(layer: MOELayer, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of all weights."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_layer_equals_that_of_a_cpu(k: int, dtype: torch.dtype) -> None:
    layer = _layer(k, capacity_factor=0).eval()
    on_gpu = deepcopy(layer).to("cuda", dtype)
    x, grad = torch.randn(2, 333, 64)
    expected = _pass(layer, x, grad)
    found = _pass(on_gpu, x.to("cuda", dtype), grad.to("cuda", dtype))
    for one, other in zip(found, expected, strict=True):
        error = (one.cpu().double() - other.double()).norm() / other.double().norm()
        assert float(error) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_waits_once(dtype: torch.dtype) -> None:
    """For the numbers of rows of the experts; the backward pass not at all."""
    layer = _layer(1, capacity_factor=1).to("cuda", dtype).train()
    x, grad = torch.randn(2, 512, 64, device="cuda", dtype=dtype)
    _pass(layer, x, grad)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            _pass(layer, x, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in seen if "synchroniz" in str(one.message)]) == 1


def test_exchange_over_nccl(tmp_path: Path) -> None:
    """One rank, which sends to itself."""
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        kept = [3, 0, 5, 2]
        exchange = plan_exchange(torch.tensor(kept, device="cuda"), kept, dist.group.WORLD)
        x = torch.randn(10, 16, device="cuda", requires_grad=True)
        y = exchange.combine(2 * exchange.dispatch(x))
        y.sum().backward()
        assert torch.equal(y, 2 * x)
        assert torch.equal(x.grad, torch.full_like(x, 2))
    finally:
        dist.destroy_process_group()
