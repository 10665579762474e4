"""Experts of any kind: modules that map rows to rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExpertList(nn.ModuleList):
    """The modules of this rank's experts, called as `Experts` is; keys are those of the list.

    A module gets [1, 1, rows, M], the four dimensions in which fairscale's layer hands rows over.
    """

    @property
    def num_local(self) -> int:
        """L, experts on this rank."""
        return len(self)

    def forward(self, x_AM: Tensor, kept: list[int]) -> Tensor:
        """Apply expert e to its rows.

        Args:
            x_AM: [A, M], rows grouped by local expert.
            kept: rows of each local expert; sums to A.
        """
        outputs = [
            expert(rows_AM[None, None])[0, 0]
            for expert, rows_AM in zip(self, x_AM.split(kept), strict=True)
        ]
        return torch.cat(outputs)
