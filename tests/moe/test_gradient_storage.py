"""Gradients of stacked weights lie in the same memory again and again, and never share it."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zcode_plugin.moe import Experts
from zcode_plugin.moe.gradient_storage import GradientStorage

KEPT = [3, 0, 2]


def one_pass(experts: Experts, seed: int) -> Tensor:
    x_AM = torch.randn(sum(KEPT), 4, generator=torch.Generator().manual_seed(seed))
    return experts(x_AM, KEPT).square().sum()


def plain_gradient(experts: Experts, seed: int) -> Tensor:
    """Of fc1's weight, each expert by itself, by torch's own functions."""
    weights = [
        stack.detach().clone().requires_grad_()
        for stack in (experts.fc1_weight, experts.fc1_bias, experts.fc2_weight, experts.fc2_bias)
    ]
    x_AM = torch.randn(sum(KEPT), 4, generator=torch.Generator().manual_seed(seed))
    loss = torch.zeros(())
    for expert, rows in enumerate(x_AM.split(KEPT)):
        fc1, bias1, fc2, bias2 = (stack[expert] for stack in weights)
        hidden = torch.nn.functional.linear(rows, fc1, bias1).relu()
        loss = loss + torch.nn.functional.linear(hidden, fc2, bias2).square().sum()
    loss.backward()
    gradient = weights[0].grad
    assert gradient is not None
    return gradient


@pytest.fixture
def experts() -> Experts:
    torch.manual_seed(1)
    return Experts(4, 8, len(KEPT))


@pytest.mark.skipif(
    not hasattr(torch._C, "_storage_Use_Count"), reason="this torch does not count uses of memory"
)
def test_memory_is_used_again_once_the_gradient_is_gone(experts: Experts) -> None:
    addresses = set()
    for seed in range(4):
        one_pass(experts, seed).backward()
        assert experts.fc1_weight.grad is not None
        addresses.add(experts.fc1_weight.grad.data_ptr())
        experts.fc1_weight.grad = None
    assert len(addresses) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["drop", "keep", "view", "numpy", "accumulate"]), max_size=6))
def test_a_gradient_that_somebody_holds_is_never_overwritten(holds: list[str]) -> None:
    """Whatever is done with earlier gradients, each equals what torch computes without us."""
    torch.manual_seed(1)
    experts = Experts(4, 8, len(KEPT))
    held: list[tuple[Tensor, Tensor]] = []
    expected = torch.zeros_like(experts.fc1_weight)
    for seed, hold in enumerate(holds):
        one_pass(experts, seed).backward()
        expected = expected + plain_gradient(experts, seed)
        gradient = experts.fc1_weight.grad
        assert gradient is not None
        torch.testing.assert_close(gradient, expected)
        if hold == "accumulate":
            continue
        if hold == "keep":
            held.append((gradient, gradient.clone()))
        elif hold == "view":
            held.append((gradient[0], gradient[0].clone()))
        elif hold == "numpy":
            held.append((torch.from_numpy(gradient.numpy()), gradient.clone()))
        experts.fc1_weight.grad = None
        expected = torch.zeros_like(expected)
    for gradient, before in held:
        assert torch.equal(gradient, before)


def test_two_passes_in_one_update(experts: Experts) -> None:
    for _ in range(3):
        (one_pass(experts, 1) + one_pass(experts, 2)).backward()
        expected = plain_gradient(experts, 1) + plain_gradient(experts, 2)
        torch.testing.assert_close(experts.fc1_weight.grad, expected)
        experts.fc1_weight.grad = None


def test_results_of_autograd_grad_are_the_callers_own(experts: Experts) -> None:
    grads = [
        torch.autograd.grad(one_pass(experts, seed), experts.fc1_weight)[0] for seed in range(5)
    ]
    for seed, grad in enumerate(grads):
        torch.testing.assert_close(grad, plain_gradient(experts, seed))


@pytest.mark.parametrize("copy", [deepcopy, lambda experts: pickle.loads(pickle.dumps(experts))])
def test_a_copy_has_memory_of_its_own(experts: Experts, copy: object) -> None:
    one_pass(experts, 1).backward()
    experts.zero_grad()
    assert callable(copy)
    twin = copy(experts)
    one_pass(experts, 1).backward()
    one_pass(twin, 2).backward()
    torch.testing.assert_close(experts.fc1_weight.grad, plain_gradient(experts, 1))
    torch.testing.assert_close(twin.fc1_weight.grad, plain_gradient(experts, 2))


def test_another_dtype_or_size_gets_memory_that_fits() -> None:
    storage = GradientStorage()
    for weight in (torch.empty(2, 3), torch.empty(2, 3).bfloat16(), torch.empty(5, 3).double()):
        gradient = storage.empty_like(weight)
        assert (gradient.shape, gradient.dtype) == (weight.shape, weight.dtype)
