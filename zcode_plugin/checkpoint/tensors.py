"""Entries of checkpoints: compared bit for bit, given storage of their own, counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from zcode_plugin.checkpoint import names

# Names in which entries with a row for each symbol end: embeddings, projections, heads.
_TABLES = ("embed_tokens.weight", "output_projection.weight", "heads.mlm.weight")


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


def tied_entries(model: Mapping[str, Any]) -> set[str]:
    """The entries that are others under a second name, such as an output projection.

    Tied tensors are saved once, but not by stock from a GPU, where each name gets a copy of its
    own; so embeddings and projections are compared bit for bit, too.
    """
    seen: dict[tuple[Any, ...], str] = {}
    tables: list[torch.Tensor] = []
    tied = set()
    for key, value in model.items():
        if not torch.is_tensor(value):
            continue
        is_table = key.endswith(_TABLES) and value.dim() == 2
        if seen.setdefault(identity(value), key) != key or (
            is_table and any(bit_equal(value, table) for table in tables)
        ):
            tied.add(key)
        elif is_table:
            tables.append(value)
    return tied


def count_parameters(model: Mapping[str, Any]) -> int:
    """Trained parameters of a model without quantised experts; tied ones count once."""
    left_out = tied_entries(model)
    return sum(
        value.numel()
        for key, value in model.items()
        if torch.is_tensor(value)
        and key not in left_out
        and not names.is_buffer(key)
        and not names.is_fast_path_copy(key)
    )
