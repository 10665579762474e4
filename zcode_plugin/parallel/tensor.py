"""Tensor slicing (`--model-parallel-size`): ranks that hold slices of the same layers.

T consecutive ranks are a tensor group, as stock fairseq and Megatron have it. They see the same
batches and hold the same activations between layers; within a layer each computes its slice.
Parameters of which each holds a slice are marked `model_parallel`; all others are replicated, and
every rank computes their whole gradient. A shard of a flat parameter has some of both: its
`replicated` lists the ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zcode_plugin.errors import UserError
from zcode_plugin.parallel.topology import collective_device


@dataclass(frozen=True)
class TensorSlicing:
    """The place of this rank in its tensor group.

    Attributes:
        size: T, ranks of a tensor group.
        rank: place of this rank in it, which slice it holds.
        group: the tensor group; None when T is 1.
        data_group: ranks that hold the same slice and see different data; None when T is 1.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> TensorSlicing:
        return self  # process groups are of the process, they cannot be copied


WHOLE = TensorSlicing()


def tensor_slicing(size: int) -> TensorSlicing:
    """The slicing of this process for `--model-parallel-size`, whose groups fairseq has made.

    Without a process group, as in `fairseq-generate`, one process holds whole layers whatever
    `size` says.

    Raises:
        UserError: the groups are of another size.
    """
    if size <= 1 or not dist.is_initialized() or dist.get_world_size() == 1:
        return WHOLE
    from fairseq.model_parallel.megatron import mpu

    if not _is_initialized(mpu) or mpu.get_model_parallel_world_size() != size:
        raise UserError(
            f"--model-parallel-size {size} does not fit the world size {dist.get_world_size()}: "
            "choose a divisor, or another number of ranks"
        )
    return TensorSlicing(
        size,
        mpu.get_model_parallel_rank(),
        mpu.get_model_parallel_group(),
        mpu.get_data_parallel_group(),
    )


def _is_initialized(mpu: Any) -> bool:
    try:
        return mpu.get_model_parallel_group() is not None
    except AssertionError:
        return False


def is_sliced(parameter: Tensor) -> bool:
    """Whether each tensor rank holds a slice of the parameter, not a replica."""
    return getattr(parameter, "model_parallel", False)


def mark_sliced(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, marked: each tensor rank holds a slice of it."""
    parameter.model_parallel = True  # type: ignore[attr-defined]
    return parameter


@contextmanager
def own_draws(is_random: bool) -> Iterator[None]:
    """For dropout on slices: draws of this tensor rank; all ranks draw alike before and after."""
    if not is_random:
        yield
        return
    from fairseq.model_parallel.megatron.mpu import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        yield


def replicated_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients, or views of parts of them, that are equal on all tensor ranks."""
    found: list[Tensor] = []
    for parameter in parameters:
        ranges: list[slice] | None = getattr(parameter, "replicated", None)
        if parameter.grad is None:
            continue
        if ranges is not None:
            found += [parameter.grad[part] for part in ranges]
        elif not is_sliced(parameter):
            found.append(parameter.grad)
    return found


def average_replicated(parameters: Iterable[nn.Parameter], slicing: TensorSlicing) -> None:
    """Make the gradients of replicated parameters the same, bit for bit, on all tensor ranks.

    They are equal on paper, but a GPU need not add up in the same order twice; replicas of a gate
    that drift apart would send a token to different experts. In place; one all-reduce per dtype, of
    norms, gates and biases, which are few.
    """
    grads: dict[torch.dtype, list[Tensor]] = {}
    for grad in replicated_gradients(parameters):
        grads.setdefault(grad.dtype, []).append(grad)
    for same_dtype in grads.values():
        flat = torch.cat([grad.reshape(-1) for grad in same_dtype]).to(collective_device())
        dist.all_reduce(flat, group=slicing.group)
        flat /= slicing.size
        parts = flat.split([grad.numel() for grad in same_dtype])
        for grad, part in zip(same_dtype, parts, strict=True):
            grad.copy_(part.view_as(grad))


def square_norm(square: Tensor, replicated: Iterable[Tensor], slicing: TensorSlicing) -> Tensor:
    """The square norm over all slices, replicated gradients counted once; the same on all ranks.

    Args:
        square: that of this rank's gradients, replicated ones included; float32 scalar.
        replicated: those among the gradients, equal on all tensor ranks.
        slicing: T > 1.
    """
    share = 1 - 1 / slicing.size
    for grad in replicated:
        square = square - share * torch.linalg.vector_norm(grad, dtype=torch.float32) ** 2
    square = square.clone()
    dist.all_reduce(square, group=slicing.group)
    return square
