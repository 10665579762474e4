"""Which entries of a checkpoint tensor slicing divides, how they are joined and taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.tensors import bit_equal, identity
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.tensor import TensorSlicing

_SIDE = r"(?:encoder|decoder)\."
_NETWORK = r"layers\.\d+\.(?:moe_layer\.(?:experts\.\d+|residual)\.)?"
_BY_ROWS = re.compile(
    rf"{_SIDE}(?:layers\.\d+\.(?:self_attn|encoder_attn)\.[qkv]_proj\.(?:weight|bias)"
    rf"|{_NETWORK}fc1\.(?:weight|bias)|embed_tokens\.weight|output_projection\.weight)"
    r"|heads\.mlm\.weight"
)
_BY_COLUMNS = re.compile(
    rf"{_SIDE}(?:layers\.\d+\.(?:self_attn|encoder_attn)\.out_proj\.weight|{_NETWORK}fc2\.weight)"
)


def sliced_dim(key: str) -> int | None:
    """The dimension of an entry that is divided over tensor ranks; None for what is replicated."""
    if _BY_ROWS.fullmatch(key):
        return 0
    return 1 if _BY_COLUMNS.fullmatch(key) else None


def join(parts: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> dict[str, Any]:
    """Whole entries from those of all tensor ranks.

    Args:
        parts: weights of each tensor rank, in their order.
        paths: a file of each, for errors.

    Raises:
        UserError: replicated entries differ, or an entry is missing.
    """
    joined: dict[str, Any] = {}
    tied: dict[tuple[Any, ...], Tensor] = {}
    for part, path in zip(parts, paths, strict=True):
        if part.keys() != parts[0].keys():
            [key, *_] = part.keys() ^ parts[0].keys()
            raise UserError(f"{path} is of another run than {paths[0]}: one of them has no {key}")
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        dim = sliced_dim(key)
        if dim is None:
            joined[key] = first
            for value, path in zip(values, paths, strict=True):
                if not key.endswith(UNSET_BUFFER) and not bit_equal(value, first):
                    raise UserError(
                        f"{path}: {key} differs from the same entry of {paths[0]}: the files are "
                        "not of one save"
                    )
        else:
            # A weight under several names stays one.
            known = identity(first)
            joined[key] = tied[known] = tied[known] if known in tied else torch.cat(values, dim)
    return joined


def take_slices(
    weights: MutableMapping[str, Any], own: Mapping[str, Tensor], slicing: TensorSlicing
) -> None:
    """Take this tensor rank's slices out of whole entries, in place.

    Args:
        weights: of a checkpoint; entries that are slices already stay.
        own: those of the model.
        slicing: T > 1.
    """
    for key, value in weights.items():
        dim = sliced_dim(key)
        if dim is None or key not in own or value.shape == own[key].shape:
            continue
        # Rows are rounded up to a multiple of T: the last rank has fewer.
        whole = value.size(dim)
        length = -(-whole // slicing.size)
        start = min(slicing.rank * length, whole)
        part = value.narrow(dim, start, min(length, whole - start))
        if part.shape == own[key].shape:
            weights[key] = part
