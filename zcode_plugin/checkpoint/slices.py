"""Which entries of a checkpoint tensor slicing divides, how they are joined and taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.optimizer import Moments
from zcode_plugin.checkpoint.tensors import Pieces, bit_equal, identity, whole
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of
from zcode_plugin.parallel.tensor import TensorSlicing

_SIDE = r"(?:encoder|decoder)\."
_NETWORK = r"layers\.\d+\.(?:moe_layer\.(?:experts\.\d+|residual)\.)?"
# A row for each symbol; in memory their number is rounded up to a multiple of T.
_SYMBOLS = re.compile(rf"{_SIDE}(?:embed_tokens|output_projection)\.weight|heads\.mlm\.weight")
_BY_ROWS = re.compile(
    rf"{_SIDE}(?:layers\.\d+\.(?:self_attn|encoder_attn)\.[qkv]_proj\.(?:weight|bias)"
    rf"|{_NETWORK}fc1\.(?:weight|bias))"
)
_BY_COLUMNS = re.compile(
    rf"{_SIDE}(?:layers\.\d+\.(?:self_attn|encoder_attn)\.out_proj\.weight|{_NETWORK}fc2\.weight)"
)


def sliced_dim(key: str) -> int | None:
    """The dimension of an entry that is divided over tensor ranks; None for what is replicated."""
    if _BY_ROWS.fullmatch(key) or _SYMBOLS.fullmatch(key):
        return 0
    return 1 if _BY_COLUMNS.fullmatch(key) else None


def check_divides(options: Any, size: int) -> None:
    """Refuse a T that does not divide what is sliced evenly; symbols are rounded up.

    Args:
        options: of the model.
        size: T.

    Raises:
        UserError: naming the flag.
    """
    for side in ("encoder", "decoder"):
        for name in ("attention_heads", "ffn_embed_dim"):
            value = config.get(options, f"{side}_{name}", size)
            if value % size:
                raise UserError(
                    f"--model-parallel-size {size} must divide {flag_of(f'{side}_{name}')} "
                    f"{value}: change one of them"
                )


def join(parts: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> dict[str, Any]:
    """Whole entries from those of all tensor ranks; what was sliced is in pieces.

    Args:
        parts: weights of each tensor rank, in their order.
        paths: a file of each, for errors.

    Raises:
        UserError: replicated entries differ, or an entry is missing.
    """
    joined: dict[str, Any] = {}
    tied: dict[tuple[Any, ...], Pieces] = {}
    for part, path in zip(parts, paths, strict=True):
        if part.keys() != parts[0].keys():
            [key, *_] = part.keys() ^ parts[0].keys()
            raise UserError(f"{path} is of another run than {paths[0]}: one of them has no {key}")
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        dim = sliced_dim(key)
        if dim is not None and _has_dims(first):
            # A weight under several names stays one.
            joined[key] = tied.setdefault(identity(first), _in_pieces(values, dim))
            continue
        joined[key] = first
        for value, path in zip(values, paths, strict=True):
            if not key.endswith(UNSET_BUFFER) and not bit_equal(value, first):
                raise UserError(
                    f"{path}: {key} differs from the same entry of {paths[0]}: the files are "
                    "not of one save"
                )
    return joined


def join_moments(
    parts: Sequence[Moments], models: Sequence[Mapping[str, Any]], paths: Sequence[Path]
) -> Moments:
    """The optimizer's state of whole parameters from that of all tensor ranks.

    Args:
        parts: of each tensor rank, in their order.
        models: their weights.
        paths: a file of each, for errors.

    Raises:
        UserError: as `join`, or the optimizer does not treat each weight alike.
    """
    for part, path in zip(parts, paths, strict=True):
        if part.keys() != parts[0].keys():
            raise UserError(f"{path} is of another run than {paths[0]}: their optimizers differ")
    return {
        slot: join(
            [
                {
                    key: _without_padding(value, model[key], f"{path}: {slot} of {key}")
                    for key, value in part[slot].items()
                }
                for part, model, path in zip(parts, models, paths, strict=True)
            ],
            paths,
        )
        for slot in parts[0]
    }


def _has_dims(value: Any) -> bool:
    """Whether it is a tensor, and no number of steps."""
    return isinstance(value, (Tensor, Pieces)) and len(value.shape) > 0


def _in_pieces(values: Sequence[Tensor], dim: int) -> Pieces:
    shape = list(values[0].shape)
    shape[dim] = sum(value.size(dim) for value in values)
    return Pieces(values, dim, torch.Size(shape))


def _without_padding(value: Any, weight: Tensor, what: str) -> Any:
    """A moment of the weight's shape: those of symbols have rows that round their number up."""
    if not _has_dims(value):
        return value
    if value.shape[1:] != weight.shape[1:] or len(value) < len(weight):
        raise UserError(
            f"{what} has the shape {tuple(value.shape)}, which is not sliced as its weight is: "
            "slices can be joined with adam, sgd and others that treat each weight alike, or "
            "without the optimizer (zcode merge)"
        )
    return value[: len(weight)]


def slice_of(key: str, value: Any, slicing: TensorSlicing) -> Any:
    """A tensor rank's part of an entry of whole layers, a view of it.

    Of symbols the last ranks have fewer, where T does not divide their number. What is replicated
    is given back as it is, or put together.
    """
    dim, value = sliced_dim(key), whole(value)
    if slicing.size == 1 or dim is None or not _has_dims(value):
        return value
    length = -(-value.size(dim) // slicing.size)
    start = min(slicing.rank * length, value.size(dim))
    return value.narrow(dim, start, min(length, value.size(dim) - start))


def moment_slice_of(key: str, value: Any, slicing: TensorSlicing) -> Any:
    """A tensor rank's part of the optimizer's state of an entry, with storage of its own.

    In memory a parameter has the same number of symbols on every rank, and so has its state.
    """
    part = slice_of(key, value, slicing)
    if slicing.size == 1 or sliced_dim(key) is None or not _has_dims(part):
        return part
    is_padded = _SYMBOLS.fullmatch(key) is not None
    missing = -(-value.shape[0] // slicing.size) - len(part) if is_padded else 0
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])])


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
        if sliced_dim(key) is None or key not in own or value.shape == own[key].shape:
            continue
        part = slice_of(key, value, slicing)
        if part.shape == own[key].shape:
            weights[key] = part
