"""The experts of one layer that live on this rank, as stacked weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zcode_plugin.moe.expert_stacks import ExpertStacks
from zcode_plugin.moe.feed_forward import Between, ExpertFeedForward
from zcode_plugin.moe.gradient_storage import GradientStorage
from zcode_plugin.moe.grouped import can_use_grouped_mm, counts_on, grouped_linear


class Experts(ExpertStacks):
    """`num_local` feed-forward networks: fc1, activation, dropout, fc2.

    Entries of an expert: `N.fc1.weight`, `N.fc1.bias`, `N.fc2.weight`, `N.fc2.bias`.

    Args:
        model_dim, hidden_dim: M and F.
        num_local: L, experts on this rank.
        first: global number of the first of them.
        activation: elementwise function between fc1 and fc2.
        dropout: probability after the activation.
        bias: whether fc1 and fc2 have biases.
    """

    def __init__(
        self,
        model_dim: int,
        hidden_dim: int,
        num_local: int,
        *,
        first: int = 0,
        activation: Callable[[Tensor], Tensor] = nn.functional.relu,
        dropout: float = 0.0,
        bias: bool = True,
    ):
        super().__init__()
        self.num_local = num_local
        self.first = first
        self.activation = activation
        self.dropout = dropout
        self.fc1_weight = nn.Parameter(torch.empty(num_local, hidden_dim, model_dim))
        self.fc2_weight = nn.Parameter(torch.empty(num_local, model_dim, hidden_dim))
        self.fc1_bias = nn.Parameter(torch.empty(num_local, hidden_dim)) if bias else None
        self.fc2_bias = nn.Parameter(torch.empty(num_local, model_dim)) if bias else None
        self._gradient_storages = GradientStorage(), GradientStorage()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The default of `nn.Linear`, as fairseq's own feed-forward layers have it.

        Each expert draws from a generator of its own, seeded by one draw of the default generator
        and its global number: an expert starts the same on however many ranks, and the default
        generator moves the same distance on all of them.
        """
        if self.fc1_weight.is_meta:
            return  # a model of shapes alone has nothing to draw
        seed = int(torch.randint(2**31, (1,)))
        for local in range(self.num_local):
            generator = torch.Generator().manual_seed(seed + self.first + local)
            for weight, bias in (
                (self.fc1_weight, self.fc1_bias),
                (self.fc2_weight, self.fc2_bias),
            ):
                bound = 1 / math.sqrt(weight.size(2))
                with torch.no_grad():
                    draw = torch.empty(weight.shape[1:])
                    weight[local].copy_(draw.uniform_(-bound, bound, generator=generator))
                    if bias is not None:
                        draw = torch.empty(bias.shape[1:])
                        bias[local].copy_(draw.uniform_(-bound, bound, generator=generator))

    def forward(self, x_AM: Tensor, kept: list[int]) -> Tensor:
        """See `ExpertStacks.forward`."""
        return self.apply_networks(x_AM, kept, self.fc2_bias)

    def apply_networks(self, x_AM: Tensor, kept: list[int], fc2_bias: Tensor | None) -> Tensor:
        """`forward`, with another bias [L, M] at the end, or none."""
        dropout = self.dropout if self.training else 0.0
        if can_use_grouped_mm(x_AM, self.fc1_weight, self.fc2_weight):
            kept_L = counts_on(x_AM.device, kept)
            hidden_AF = grouped_linear(x_AM, self.fc1_weight, self.fc1_bias, kept_L)
            hidden_AF = nn.functional.dropout(self.activation(hidden_AF), dropout)
            return grouped_linear(hidden_AF, self.fc2_weight, fc2_bias, kept_L)
        return ExpertFeedForward.apply(
            x_AM,
            self.fc1_weight,
            self.fc1_bias,
            self.fc2_weight,
            fc2_bias,
            kept,
            Between(self.activation, dropout),
            self._gradient_storages,
            torch.is_grad_enabled(),
        )

    @torch.no_grad()
    def gather(self, group: dist.ProcessGroup) -> Experts:
        """Copies of the experts of all ranks of a group, by their numbers; all must call it."""
        copy = deepcopy(self)
        copy.num_local, copy.first = self.num_local * group.size(), 0
        for mine in copy.parameters():
            mine.requires_grad_(False)
            parts = [torch.empty_like(mine) for _ in range(group.size())]
            dist.all_gather(parts, mine.detach(), group=group)
            mine.data = torch.cat(parts)
        return copy

    def stacks(self) -> list[tuple[str, Tensor]]:
        """See `ExpertStacks.stacks`."""
        stacks = (
            ("fc1.weight", self.fc1_weight),
            ("fc1.bias", self.fc1_bias),
            ("fc2.weight", self.fc2_weight),
            ("fc2.bias", self.fc2_bias),
        )
        return [(name, stack) for name, stack in stacks if stack is not None]
