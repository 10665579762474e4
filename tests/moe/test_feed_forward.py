"""The experts' one autograd function against torch's own functions, in float64."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zcode_plugin.moe import Experts

KEPT = [3, 0, 4]
ACTIVATIONS = [functional.relu, functional.gelu, functional.silu, torch.tanh]


def make(activation: Callable[[Tensor], Tensor], *, bias: bool = True, dropout: float = 0.0):
    torch.manual_seed(1)
    experts = Experts(
        4, 6, len(KEPT), activation=activation, bias=bias, dropout=dropout
    ).double()  # fmt: skip
    return experts, torch.randn(sum(KEPT), 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_linear_maps_of_each_expert(
    activation: Callable[[Tensor], Tensor], bias: bool
) -> None:
    experts, x_AM = make(activation, bias=bias)
    parts = []
    for expert, rows in enumerate(x_AM.split(KEPT)):
        biases = (experts.fc1_bias[expert], experts.fc2_bias[expert]) if bias else (None, None)
        hidden = activation(functional.linear(rows, experts.fc1_weight[expert], biases[0]))
        parts.append(functional.linear(hidden, experts.fc2_weight[expert], biases[1]))
    expected = torch.cat(parts)
    wanted = [x_AM, *experts.parameters()]
    weight = torch.randn_like(expected)
    reference = torch.autograd.grad((expected * weight).sum(), wanted)
    output = experts(x_AM, KEPT)
    torch.testing.assert_close(output, expected)
    for grad, other in zip(
        torch.autograd.grad((output * weight).sum(), wanted), reference, strict=True
    ):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_with_dropout(activation: Callable[[Tensor], Tensor]) -> None:
    experts, x_AM = make(activation, dropout=0.4)
    weight, bias = experts.fc1_weight.flatten(0, 1), experts.fc1_bias.flatten()
    hidden_ALF = functional.linear(x_AM, weight, bias)
    assert hidden_ALF.abs().min() > 1e-4, "a value lies at the corner of ReLU"

    def same_draws(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        return experts(x, KEPT)

    assert torch.autograd.gradcheck(same_draws, (x_AM, *experts.parameters()))


def test_dropout_keeps_the_mean_and_rests_in_evaluation() -> None:
    experts, x_AM = make(functional.relu, dropout=0.5)
    mean = torch.stack([experts(x_AM, KEPT) for _ in range(4000)]).mean(0)
    experts.eval()
    still = experts(x_AM, KEPT)
    assert torch.equal(still, experts(x_AM, KEPT))
    torch.testing.assert_close(mean, still, rtol=0, atol=0.05)


def test_weights_start_as_those_of_linear_layers() -> None:
    experts = Experts(16, 64, 3)
    pairs = ((experts.fc1_weight, experts.fc1_bias, 16), (experts.fc2_weight, experts.fc2_bias, 64))
    for weight, bias, inputs in pairs:
        bound = inputs**-0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert 0.8 * bound < bias.abs().max() <= bound


def test_only_what_is_asked_for_is_computed() -> None:
    """Frozen experts: the gradient of the input alone; no gradient at all: nothing is kept."""
    experts, x_AM = make(functional.gelu)
    experts.requires_grad_(False)
    experts(x_AM, KEPT).sum().backward()
    assert x_AM.grad is not None
    assert all(parameter.grad is None for parameter in experts.parameters())
    with torch.no_grad():
        assert experts(x_AM, KEPT).grad_fn is None


def test_hidden_values_are_released_with_the_graph() -> None:
    experts, x_AM = make(functional.gelu)
    output = experts(x_AM, KEPT)
    node = weakref.ref(output.grad_fn)
    del output
    gc.collect()
    assert node() is None


def test_without_gradients_hidden_values_are_those_of_one_expert() -> None:
    hidden: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def activation(x: Tensor) -> Tensor:
        alive.append(sum(earlier() is not None for earlier in hidden))
        hidden.append(weakref.ref(x))
        return torch.tanh(x)

    experts, x_AM = make(activation)
    with torch.no_grad():
        experts(x_AM, [2, 2, 3])
    assert alive == [0, 1, 1]  # those of the expert before, until there are others
    hidden.clear()
    alive.clear()
    output = experts(x_AM, [2, 2, 3])
    assert alive == [0, 1, 2]
    output.sum().backward()
