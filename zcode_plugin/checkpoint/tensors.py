"""Entries of checkpoints: compared, put together, given storage of their own, counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zcode_plugin.checkpoint import names

# Entries of extra_state that are model weights too, experts included (--store-ema).
WEIGHTS_IN_EXTRA_STATE = ("ema", "ema_fp32_params")
# Names in which entries with a row for each symbol end: embeddings, projections, heads.
_TABLES = ("embed_tokens.weight", "output_projection.weight", "heads.mlm.weight")


@dataclass(frozen=True, eq=False)
class Pieces:
    """A tensor that lies in several files: it takes memory when it is put together.

    Attributes:
        parts: that follow each other.
        dim: along which they do.
        shape: of the whole.
    """

    parts: Sequence[torch.Tensor]
    dim: int
    shape: torch.Size

    def numel(self) -> int:
        """Elements of the whole."""
        return self.shape.numel()

    def whole(self) -> torch.Tensor:
        """The tensor."""
        return torch.cat(list(self.parts), self.dim).view(self.shape)


def whole(value: Any) -> Any:
    """An entry that may be in pieces, put together."""
    return value.whole() if isinstance(value, Pieces) else value


def put_together(tensors: MutableMapping[str, Any]) -> None:
    """Put together all entries that are in pieces, in place; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for key, value in tensors.items():
        if isinstance(value, Pieces):
            if id(value) not in made:
                made[id(value)] = value.whole()
            tensors[key] = made[id(value)]


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


def identity(tensor: torch.Tensor | Pieces) -> tuple[Any, ...]:
    """The same for tied tensors, which are saved once under several names."""
    if isinstance(tensor, Pieces):
        return (id(tensor),)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape


def count_bytes(values: Iterable[Any]) -> int:
    """Bytes of all tensors among the values; tied ones count once."""
    tensors = {identity(value): value.nbytes for value in values if torch.is_tensor(value)}
    return sum(tensors.values())


def count_elements(values: Iterable[Any]) -> int:
    """Elements of all tensors among the values; tied ones count once."""
    kinds = (torch.Tensor, Pieces)
    tensors = {identity(value): value.numel() for value in values if isinstance(value, kinds)}
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


def weights(state: Mapping[str, Any]) -> list[MutableMapping[str, Any]]:
    """The model's weights, then each copy of them in the extra state."""
    extra = state.get("extra_state") or {}
    return [state["model"], *(extra[name] for name in WEIGHTS_IN_EXTRA_STATE if extra.get(name))]
