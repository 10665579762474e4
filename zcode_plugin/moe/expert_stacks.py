"""What experts in stacked tensors have in common: how a state dict names them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ExpertStacks(nn.Module):
    """Experts of one layer that live on this rank; `stacks` are tensors with a row an expert.

    A state dict names each expert apart, by its number over all ranks: `N.fc1.weight` and so on. So
    a file does not depend on how many ranks wrote it, and loading takes the experts that live here
    out of whatever the file holds.

    Attributes:
        num_local: L, experts on this rank.
        first: global number of the first of them.
    """

    num_local: int
    first: int

    def forward(self, x_AM: Tensor, kept: list[int]) -> Tensor:
        """Apply expert e to its rows.

        Args:
            x_AM: [A, M], rows grouped by local expert.
            kept: rows of each local expert; sums to A.
        """
        raise NotImplementedError

    def stacks(self) -> list[tuple[str, Tensor]]:
        """Name of an expert's entry, `fc1.weight`, and the tensor [L, ...] of all experts'."""
        raise NotImplementedError

    def _own_stacks(self) -> list[tuple[str, Tensor]]:
        """Without those that are mere views of a flat parameter: who owns it saves and loads it."""
        own = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
        return [(name, stack) for name, stack in self.stacks() if id(stack) in own]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, stack in self._own_stacks():
            for local in range(self.num_local):
                row = stack[local] if keep_vars else stack.detach()[local]
                destination[f"{prefix}{self.first + local}.{name}"] = row

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, stack in self._own_stacks():
            for local in range(self.num_local):
                key = f"{prefix}{self.first + local}.{name}"
                if key not in state_dict:
                    missing_keys.append(key)
                elif mismatch := _mismatch(state_dict[key], stack):
                    error_msgs.append(f"{key} {mismatch}")
                else:
                    with torch.no_grad():
                        stack[local].copy_(state_dict[key])


def _mismatch(value: Tensor, stack: Tensor) -> str | None:
    """Why an entry does not fit; a weight that is quantised must not pass for one that is not."""
    if value.shape != stack.shape[1:]:
        return f"has shape {tuple(value.shape)}, this model needs {tuple(stack.shape[1:])}"
    both_float = value.is_floating_point() and stack.is_floating_point()
    if value.dtype != stack.dtype and not both_float:
        return f"is {value.dtype}, this model needs {stack.dtype} (see --moe-expert-bits)"
    return None
