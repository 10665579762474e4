"""Gradients and their norm when every rank holds experts of its own.

fairseq's trainer averages the gradients of shared parameters over all ranks and then multiplies
every gradient by world size / sample size. The gradient of an expert already holds the sum over
the ranks of its expert group, since the exchange of tokens brought their share; it lacks the
factor 1 / world size, and the share of the other ranks that hold the same expert. And stock's
gradient norm leaves experts out, while its clipping scales them by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zcode_plugin.errors import UserError, exits_on_user_error
from zcode_plugin.parallel.faults import RankError
from zcode_plugin.parallel.tensor import (
    WHOLE,
    TensorSlicing,
    average_replicated,
    is_sliced,
    square_norm,
)
from zcode_plugin.parallel.topology import ExpertTopology, collective_device


def expert_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that ranks do not share: marked `expert`, as fairscale and fairseq mark them."""
    return [parameter for parameter in parameters if hasattr(parameter, "expert")]


def hide_experts_from_ddp(model: nn.Module) -> None:
    """Make data parallel wrappers leave experts alone."""
    # torch's DistributedDataParallel looks here for what it must not broadcast and reduce.
    model._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        name for name, parameter in model.named_parameters() if hasattr(parameter, "expert")
    ]


def patch_optimizer(
    optimizer: Any, topology: ExpertTopology, slicing: TensorSlicing = WHOLE
) -> None:
    """Make a fairseq optimizer treat experts and slices rightly; for one instance, and only once.

    Its `all_reduce_grads`, which the trainer calls once per update after the last micro-batch,
    averages expert gradients, see `reduce_expert_gradients`. Its `clip_grad_norm` gets stock's own
    hook for norms that are spread over ranks, so that the norm, clipping and the overflow check
    see all parameters and agree on all ranks. With tensor slicing it replaces the one that stock's
    trainer hands in, which counts what is replicated once for each tensor rank.
    """
    if topology.size == 1 and slicing.size == 1:
        end_when_spoilt(optimizer)
        return
    if getattr(optimizer, "expert_topology", None) is topology:
        return
    optimizer_parameters(optimizer)  # refuses a layout that cannot work before anything is wrapped
    clip_experts_alone(optimizer)
    stock_reduce, stock_clip = optimizer.all_reduce_grads, optimizer.clip_grad_norm

    def all_reduce_grads(module: nn.Module) -> None:
        stock_reduce(module)
        if topology.size > 1:
            reduce_expert_gradients(expert_parameters(module.parameters()), topology)
        if slicing.size > 1:
            average_replicated(module.parameters(), slicing)

    def clip_grad_norm(max_norm: float, aggregate_norm_fn: Callable | None = None) -> Tensor:
        def with_experts(dense_norm: Tensor) -> Tensor:
            if slicing.size > 1:
                return sliced_norm(dense_norm, optimizer, topology, slicing)
            if aggregate_norm_fn is not None:
                dense_norm = aggregate_norm_fn(dense_norm)
            return add_expert_norm(dense_norm, optimizer_parameters(optimizer), topology)

        return clip_together(optimizer, stock_clip, max_norm, with_experts)

    optimizer.all_reduce_grads = all_reduce_grads
    optimizer.clip_grad_norm = clip_grad_norm
    optimizer.expert_topology = topology


def ends_at_overflow(optimizer: Any) -> bool:
    """Whether an infinite gradient ends the run: a loss scaler skips such an update."""
    return getattr(optimizer, "scaler", None) is None


def clip_together(
    optimizer: Any,
    stock_clip: Callable[..., Tensor],
    max_norm: float,
    aggregate_norm_fn: Callable[[Tensor], Tensor],
) -> Tensor:
    """Stock's clipping where all ranks end with the same line when the gradients are spoilt.

    Raises:
        RankError: on every rank, see `ended_by_loss_scale` and `refuse_unless_finite`.
    """
    with ended_by_loss_scale(RankError):
        norm = stock_clip(max_norm, aggregate_norm_fn=aggregate_norm_fn)
    if ends_at_overflow(optimizer):
        refuse_unless_finite(norm, optimizer_parameters(optimizer))
    return norm


@contextmanager
def ended_by_loss_scale(kind: type[UserError] | type[RankError]) -> Iterator[None]:
    """End the run, in one line, when the loss scale has fallen to its least.

    Stock would look for infinities in another pass; an `OverflowError`, which skips an update, is
    its own business. All ranks scale alike.

    Raises:
        kind: what ends it.
    """
    try:
        yield
    except FloatingPointError as error:
        raise kind(str(error).splitlines()[0]) from error


def end_when_spoilt(optimizer: Any) -> None:
    """End a run whose ranks hold the same, in one line; for one instance, and only once.

    Stock would save `crash.pt` and look for the place in another pass, whose hooks know neither
    gates nor what else is no tensor: it ends in an error of its own.
    """
    if getattr(optimizer, "ends_when_spoilt", False):
        return
    stock_clip = optimizer.clip_grad_norm

    @exits_on_user_error
    def clip_grad_norm(max_norm: float, aggregate_norm_fn: Callable | None = None) -> Tensor:
        with ended_by_loss_scale(UserError):
            norm: Tensor = stock_clip(max_norm, aggregate_norm_fn)
        if ends_at_overflow(optimizer) and not torch.isfinite(norm):
            raise UserError("gradients are infinite or NaN: lower --lr, or give --clip-norm 1")
        return norm

    optimizer.clip_grad_norm = clip_grad_norm
    optimizer.ends_when_spoilt = True


def clip_experts_alone(optimizer: Any) -> None:
    """Make a fairseq optimizer of nothing but experts clip them; `patch_optimizer` does so, once.

    Where no gradient is of a shared parameter, as with `--freeze-except experts`, stock takes the
    norm for 0 and asks no hook: nothing is clipped, and no overflow is seen.
    """
    inner = optimizer
    while (wrapped := _wrapped(inner)) is not None:
        inner = wrapped
    stock_clip = inner.clip_grad_norm

    def clip_grad_norm(max_norm: float, aggregate_norm_fn: Callable | None = None) -> Tensor:
        parameters = list(inner.params)
        experts = expert_parameters(parameters)
        if aggregate_norm_fn is None or len(experts) < len(parameters):
            return stock_clip(max_norm, aggregate_norm_fn=aggregate_norm_fn)
        norm = aggregate_norm_fn(parameters[0].new_zeros((), dtype=torch.float32))
        if max_norm > 0:
            factor = (max_norm / (norm + 1e-6)).clamp(max=1)
            for parameter in experts:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return norm

    inner.clip_grad_norm = clip_grad_norm


def _wrapped(optimizer: Any) -> Any:
    """What `--fp16` and `--memory-efficient-fp16` put around the optimizer of float32."""
    for name in ("fp32_optimizer", "wrapped_optimizer"):
        if getattr(optimizer, name, None) is not None:
            return getattr(optimizer, name)
    return None


def optimizer_parameters(optimizer: Any) -> list[nn.Parameter]:
    """The parameters whose gradients the optimizer clips: float32 copies where it keeps some.

    Raises:
        UserError: the copies are one flat tensor, in which experts cannot be told apart.
    """
    copies = getattr(optimizer, "fp32_params", None)
    if isinstance(copies, (Tensor, dict)):
        raise UserError(
            "--fp16 flattens all gradients into one tensor, which cannot hold experts of one rank "
            "apart: add --fp16-no-flatten-grads or --memory-efficient-fp16"
        )
    return list(optimizer.params if copies is None else copies)


def reduce_expert_gradients(experts: list[nn.Parameter], topology: ExpertTopology) -> None:
    """Sum each expert gradient over the ranks that hold the same expert; divide by the world size.

    In place and once an update: on experts, a copy costs as much as the gradient.
    """
    for parameter in experts:
        if not parameter.requires_grad:  # --freeze-except
            continue
        if parameter.grad is None and topology.data_group is not None:
            parameter.grad = torch.zeros_like(parameter)  # a replica may have one
        if parameter.grad is not None:
            parameter.grad /= topology.world_size
        if topology.data_group is not None:
            dist.all_reduce(parameter.grad, group=topology.data_group)


def add_expert_norm(
    dense_norm: Tensor, parameters: Iterable[nn.Parameter], topology: ExpertTopology
) -> Tensor:
    """The norm over shared and all ranks' expert gradients, the same number on every rank."""
    grads = [p.grad for p in expert_parameters(parameters) if p.grad is not None]
    square = dense_norm.new_zeros((), dtype=torch.float32)
    for grad in grads:
        square = square + torch.linalg.vector_norm(grad, dtype=torch.float32) ** 2
    # An expert group holds every expert once; its replicas elsewhere hold the same gradients.
    dist.all_reduce(square, group=topology.group)
    return (dense_norm.float() ** 2 + square).sqrt()


def sliced_norm(
    dense_norm: Tensor, optimizer: Any, topology: ExpertTopology, slicing: TensorSlicing
) -> Tensor:
    """The norm over all slices of all weights, the same number on every rank.

    Args:
        dense_norm: of this rank's gradients, those of experts left out.
        optimizer: whose gradients they are.
        topology, slicing: T > 1.
    """
    gradients = optimizer_parameters(optimizer)
    # Where the optimizer keeps float32 copies, only the weights themselves are marked.
    weights = getattr(optimizer, "fp16_params", gradients)
    pairs = [
        (weight, p.grad) for weight, p in zip(weights, gradients, strict=True) if p.grad is not None
    ]
    replicated = [
        [grad for w, grad in pairs if not is_sliced(w) and hasattr(w, "expert") == kind]
        for kind in (False, True)
    ]
    dense = square_norm(dense_norm.float() ** 2, replicated[0], slicing)
    if topology.size == 1:
        return dense.sqrt()
    square = torch.zeros_like(dense)
    for weight, grad in pairs:
        if hasattr(weight, "expert"):
            square = square + torch.linalg.vector_norm(grad, dtype=torch.float32) ** 2
    experts = square_norm(square, replicated[1], slicing)
    dist.all_reduce(experts, group=topology.group)
    return (dense + experts).sqrt()


def refuse_unless_finite(norm: Tensor, parameters: Iterable[nn.Parameter]) -> None:
    """End the run on all ranks when a gradient is infinite or NaN, with the rank that it is on.

    Stock would have every rank save the same `crash.pt`, and look for the place in another pass.

    Args:
        norm: the same on every rank.
        parameters: those that the norm is of.

    Raises:
        RankError: the norm is not finite.
    """
    if torch.isfinite(norm):
        return
    grads = [p.grad for p in expert_parameters(parameters) if p.grad is not None]
    spoilt = torch.tensor(float(not all(bool(grad.isfinite().all()) for grad in grads)))
    spoilt = spoilt.to(collective_device())
    spoilt_W = [torch.zeros_like(spoilt) for _ in range(dist.get_world_size())]
    dist.all_gather(spoilt_W, spoilt)
    ranks = [str(rank) for rank, flag in enumerate(spoilt_W) if flag]
    where = f"experts of rank {', '.join(ranks)}" if ranks else "shared parameters"
    raise RankError(f"gradients of {where} are infinite or NaN: lower --lr, or give --clip-norm 1")
