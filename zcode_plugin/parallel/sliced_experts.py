"""Experts of which every tensor rank holds a slice, and the exchange of tokens between them.

fc1 is sliced by its outputs, fc2 by its inputs: a tensor rank has F/T hidden values of every expert
that lives here. All T ranks know all tokens, so each sends 1/T of a row's columns through the
all-to-all, and the whole row is put together among the tensor ranks that receive it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairscale.nn.model_parallel.mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
    scatter_to_model_parallel_region,
)
from torch import Tensor, nn

from zcode_plugin.moe.exchange import Exchange
from zcode_plugin.moe.experts import Experts
from zcode_plugin.moe.gradient_storage import GradientStorage
from zcode_plugin.moe.grouped import add_biases, counts_on
from zcode_plugin.parallel.tensor import TensorSlicing, mark_sliced, own_draws


class SlicedExperts(Experts):
    """This tensor rank's slice of the experts of this rank; the entries of a state dict are slices.

    Args:
        whole: experts as one process starts with them, whose weights are sliced.
        slicing: T > 1, which divides F.
    """

    def __init__(self, whole: Experts, slicing: TensorSlicing):
        nn.Module.__init__(self)
        self.num_local, self.first = whole.num_local, whole.first
        self.activation, self.dropout = whole.activation, whole.dropout
        # In the order that whole experts have: an optimizer numbers them, see `zcode reshard`.
        self.fc1_weight = _slice(whole.fc1_weight, 1, slicing)
        self.fc2_weight = _slice(whole.fc2_weight, 2, slicing)
        self.fc1_bias = None if whole.fc1_bias is None else _slice(whole.fc1_bias, 1, slicing)
        self.fc2_bias = whole.fc2_bias
        self._gradient_storages = GradientStorage(), GradientStorage()

    def forward(self, x_AM: Tensor, kept: list[int]) -> Tensor:
        """See `ExpertStacks.forward`; rows and outputs are the same on all tensor ranks."""
        x_AM = copy_to_model_parallel_region(x_AM)
        with own_draws(self.training and self.dropout > 0):
            y_AM = self.apply_networks(x_AM, kept, fc2_bias=None)
        y_AM = reduce_from_model_parallel_region(y_AM)
        if self.fc2_bias is None:
            return y_AM
        return add_biases(y_AM, self.fc2_bias, counts_on(y_AM.device, kept))


def _slice(weight: nn.Parameter, dim: int, slicing: TensorSlicing) -> nn.Parameter:
    part = weight.detach().chunk(slicing.size, dim)[slicing.rank].clone()
    sliced = mark_sliced(nn.Parameter(part, requires_grad=weight.requires_grad))
    if hasattr(weight, "expert"):
        sliced.expert = weight.expert  # type: ignore[attr-defined]
    return sliced


@dataclass(frozen=True)
class SlicedExchange:
    """The exchange of rows that all tensor ranks hold, each sending its 1/T of the columns.

    Attributes:
        own: between the ranks of the same place in their tensor groups.
    """

    own: Exchange

    @property
    def kept(self) -> list[int]:
        """Received rows of each local expert."""
        return self.own.kept

    def dispatch(self, x_AM: Tensor) -> Tensor:
        """See `Exchange.dispatch`: T all-to-alls of [A, M/T], then an all-gather of columns."""
        columns = scatter_to_model_parallel_region(x_AM)
        return gather_from_model_parallel_region(self.own.dispatch(columns))

    def combine(self, y_RM: Tensor) -> Tensor:
        """See `Exchange.combine`: the way back."""
        columns = scatter_to_model_parallel_region(y_RM)
        return gather_from_model_parallel_region(self.own.combine(columns))
