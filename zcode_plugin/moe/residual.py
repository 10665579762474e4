"""The residual expert of PR-MoE."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn


class ResidualExpert(nn.Module):
    """A dense feed-forward network beside the routed experts (PR-MoE, arXiv 2201.05596).

    output = c0 * routed + c1 * dense with (c0, c1) = softmax(coefficient(x)), as in DeepSpeed's
    layer. In a state dict: `fc1.*`, `fc2.*`, `coefficient.*`, beside the keys of the experts.

    Args:
        model_dim, hidden_dim: M and F.
        activation: elementwise function between fc1 and fc2.
        dropout: probability after the activation.

    Attributes:
        draws: makes the context in which dropout draws, given whether it is active: each tensor
            rank then draws a mask of its own. None unless fc1 and fc2 are sliced.
    """

    draws: Callable[[bool], AbstractContextManager[None]] | None = None

    def __init__(
        self,
        model_dim: int,
        hidden_dim: int,
        *,
        activation: Callable[[Tensor], Tensor] = nn.functional.relu,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.fc1 = nn.Linear(model_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, model_dim)
        self.coefficient = nn.Linear(model_dim, 2)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor, routed: Tensor) -> Tensor:
        """Mix the output of the routed experts with that of the dense network; all [..., M]."""
        hidden = self.activation(self.fc1(x))
        is_random = self.training and self.dropout > 0
        with nullcontext() if self.draws is None else self.draws(is_random):
            hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        coefficient = self.coefficient(x).softmax(dim=-1)
        return routed * coefficient[..., :1] + self.fc2(hidden) * coefficient[..., 1:]
