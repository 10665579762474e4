"""Entries of checkpoints: compared bit for bit, given storage of their own, counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def bit_equal(a: Any, b: Any) -> bool:
    """Whether two entries are the same bit for bit: NaN equals NaN, and 0.0 is not -0.0."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)))


def with_own_storage(value: Any) -> Any:
    """The tensor itself, or a copy where it is a part of more: saving would write all of that."""
    if not isinstance(value, torch.Tensor):
        return value
    shares = value.untyped_storage().nbytes() > value.numel() * value.element_size()
    return value.clone() if shares else value


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The same for tied tensors, which are saved once under several names."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape


def count_bytes(values: Iterable[Any]) -> int:
    """Bytes of all tensors among the values; tied ones count once."""
    tensors = {identity(value): value.nbytes for value in values if torch.is_tensor(value)}
    return sum(tensors.values())


def count_elements(values: Iterable[Any]) -> int:
    """Elements of all tensors among the values; tied ones count once."""
    tensors = {identity(value): value.numel() for value in values if torch.is_tensor(value)}
    return sum(tensors.values())
