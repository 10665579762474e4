"""fairscale's fully sharded data parallelism (--ddp-backend fully_sharded): no GPU, no ranks."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, StandIn, refuse


def _is_needed(_: ModuleType) -> bool:
    import torch

    return not torch.cuda.is_available()


class _Stream:
    """A CPU does one thing after the other: there is nothing to wait for."""

    def wait_stream(self, stream: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _without_streams() -> ModuleType:
    """torch as fairscale's module sees it: with CUDA streams, which are all one and the same."""
    import torch

    only = _Stream()
    cuda = StandIn(
        torch.cuda,
        is_available=lambda: True,  # or no streams are made, which every backward pass looks up
        Stream=lambda: only,
        current_stream=lambda: only,
        stream=lambda stream: contextlib.nullcontext(),
        synchronize=lambda: None,
    )
    return StandIn(torch, cuda=cuda)


def _itself(tensor: Any, device: Any = None) -> Any:
    return tensor


def _keep_on_cpu(sharded: Any) -> None:
    """Let fairscale's module, `sharded`, live with what torch does not do on a CPU."""
    import torch

    buckets = sys.modules["fairscale.internal.reduce_scatter_bucketer"]
    sharded.torch = _without_streams()
    # It takes every parameter that is not on a GPU to be on its way to one.
    sharded._get_default_cuda_device = lambda module: torch.device("cpu")
    # gloo does not have the collectives of flat tensors in all versions; those of lists it has.
    sharded.enable_nccl_base_collectives = False
    buckets.enable_nccl_base_collectives = False  # type: ignore[attr-defined]
    # Methods of tensors, so for the whole process: memory in use by a stream, or to be copied to a
    # GPU (--cpu-offload). Without a GPU they do nothing but raise.
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[assignment]
    torch.Tensor.pin_memory = _itself  # type: ignore[assignment]


def _gather_apart(sharded: Any) -> None:
    """Gather each kind of the optimizer's state into memory of its own.

    fairscale gathers one after the other into one buffer and takes a copy to the CPU of each; of a
    buffer that is there already `cpu()` is no copy, and all would be the last one.
    """
    stock = sharded._gather_optim_state

    @functools.wraps(stock)
    def gather(self: Any, states: dict[int, dict[str, Any]]) -> tuple[dict, dict]:
        tensors: dict[int, dict[str, Any]] = {number: {} for number in states}
        scalars: dict[int, dict[str, Any]] = {number: {} for number in states}
        for number, state in states.items():
            for name, value in state.items():
                for found, union in zip(
                    stock(self, {number: {name: value}}), (tensors, scalars), strict=True
                ):
                    union[number].update(found[number])
        return tensors, scalars

    sharded._gather_optim_state = gather


def _keep_norm_on_cpu(utils: Any) -> None:
    """The trainer moves the norm of all ranks' shards to a GPU in order to add it up."""
    stock = utils.clip_grad_norm_

    @functools.wraps(stock)
    def clip_grad_norm_(
        params: Iterable[Any], max_norm: float, aggregate_norm_fn: Callable | None = None
    ) -> Any:
        def aggregate(norm: Any) -> Any:
            assert aggregate_norm_fn is not None
            vars(norm)["cuda"] = lambda: norm
            return aggregate_norm_fn(norm)

        return stock(params, max_norm, None if aggregate_norm_fn is None else aggregate)

    utils.clip_grad_norm_ = clip_grad_norm_


def _mend(module: Any) -> None:
    if module.__name__ == "fairseq.utils":
        _keep_norm_on_cpu(module)
    elif module.has_FSDP:
        _keep_on_cpu(sys.modules[module.FSDP.__module__])
        _gather_apart(module.FSDP)


FULLY_SHARDED_ON_CPU = Mend(
    name="fully-sharded-on-cpu",
    reason=(
        "fairscale's FullyShardedDataParallel and the norm of its gradients ask for CUDA streams, "
        "pinned memory and a CUDA device, and what it gathers of the optimizer's state is right "
        "only where that is not on the CPU: --ddp-backend fully_sharded with --cpu would fail, or "
        "resume with a wrong state"
    ),
    is_needed=_is_needed,
    apply=_mend,
    after=("fairseq.distributed.fully_sharded_data_parallel", "fairseq.utils"),
)


def _lacks_stand_in(module: ModuleType) -> bool:
    return module.has_FSDP and importlib.util.find_spec("fairscale.utils") is None


def _refuse_one_process(module: Any) -> None:
    stock = module.fsdp_enable_wrap

    @functools.wraps(stock)
    def fsdp_enable_wrap(cfg: Any) -> Any:
        if module.dist_utils.get_data_parallel_group() is None:
            refuse(
                "--ddp-backend fully_sharded needs a process group, and this is one process by "
                "itself: start it with torchrun, if need be with --nproc-per-node=1, or drop the "
                "flag"
            )
        return stock(cfg)

    module.fsdp_enable_wrap = fsdp_enable_wrap


FULLY_SHARDED_ALONE = Mend(
    name="fully-sharded-alone",
    reason=(
        "in one process --ddp-backend fully_sharded ends in the traceback of an import from "
        "fairscale's tests, which its package lacks"
    ),
    is_needed=_lacks_stand_in,
    apply=_refuse_one_process,
    after=("fairseq.distributed.fully_sharded_data_parallel",),
)
