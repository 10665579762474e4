"""Memory for the gradients of stacked weights, used again by every backward pass on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


class GradientStorage:
    """Hands out the memory of a weight's last gradient once nobody holds that gradient any more.

    The gradient of a stack is one large block. The C library takes such a block from the kernel
    and gives it back each time, and the kernel clears every page of it anew: for 128 experts that
    costs as much as the arithmetic. A GPU's allocator keeps its memory by itself, so there, and
    wherever it cannot be told who holds the memory, `empty_like` is torch's.

    A copy or a pickle of it starts empty.
    """

    # A batch of two objectives passes the layer twice before either gradient is released.
    MOST = 2

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []

    def __reduce__(self) -> tuple[type[GradientStorage], tuple[()]]:
        return GradientStorage, ()

    def empty_like(self, weight: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of the weight's shape, dtype and device."""
        if weight.device.type != "cpu":
            return torch.empty_like(weight, memory_format=torch.contiguous_format)
        size = weight.numel() * weight.element_size()
        self._storages = [kept for kept in self._storages if kept.nbytes() == size]
        for storage in self._storages:
            if not _is_held(storage):
                return weight.new_empty(0).set_(storage, 0, weight.shape)  # type: ignore[call-overload]
        gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
        if len(self._storages) < self.MOST:
            self._storages.append(gradient.untyped_storage())
        return gradient


def _is_held(storage: torch.UntypedStorage) -> bool:
    """Whether a tensor, or anything that a tensor lent its memory to, still uses the storage."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    # One use is the Python object itself.
    return count is None or count(storage._cdata) > 1
