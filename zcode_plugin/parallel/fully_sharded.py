"""Weights, gradients and optimizer state in shards: `--ddp-backend fully_sharded`, with experts.

fairscale's FullyShardedDataParallel (FSDP) keeps of the parameters that it wraps one flat tensor,
and on each rank of a group a shard of it; it gathers the whole for a forward or backward pass. What
is no expert is divided over all ranks. Experts that are spread over ranks are wrapped by themselves
over those that hold the same ones. Files are the same as without it, but for `--use-sharded-state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from fairscale.internal.parallel import ProcessGroupName, get_process_group_cached
from fairscale.nn.data_parallel import FullyShardedDataParallel as FairscaleFSDP
from fairscale.nn.data_parallel.fully_sharded_data_parallel import TrainingState
from fairscale.nn.wrap.auto_wrap import ConfigAutoWrap
from fairseq.distributed import FullyShardedDataParallel, fsdp_wrap
from torch import Tensor, nn

from zcode_plugin.parallel.faults import set_timeout
from zcode_plugin.parallel.gradients import (
    expert_parameters,
    optimizer_parameters,
    refuse_unless_finite,
)
from zcode_plugin.parallel.shards import gather_state, shard_state
from zcode_plugin.parallel.topology import ExpertTopology, current_timeout

_CHUNK = 1 << 20  # elements whose float64 copies are in memory at a time


class ShardedModel(FullyShardedDataParallel):
    """fairseq's FSDP, for a model in which ranks may hold experts of their own.

    Args:
        every_rank_saves: every rank has a checkpoint file: with the weights of its own experts,
            and all others.
    """

    def __init__(self, *args: Any, every_rank_saves: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.every_rank_saves = every_rank_saves

    def state_dict(
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Stock's; and where every rank saves, what the first one gets on every rank."""
        options = {"destination": destination, "prefix": prefix, "keep_vars": keep_vars}
        if self.every_rank_saves and not self.use_sharded_state:
            return FairscaleFSDP.state_dict(self, **options)
        return super().state_dict(**options)

    def load_state_dict(
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None
    ) -> Any:
        """Stock's; and weights of another vocabulary or other heads are made to fit, as without.

        Where every rank saves, each loads its own; stock would give all of them the first one's.
        """
        if self.use_sharded_state:
            return super().load_state_dict(state_dict, strict, model_cfg)
        self._upgrade(state_dict)
        if self.every_rank_saves:
            return FairscaleFSDP.load_state_dict(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict, model_cfg)

    def _upgrade(self, state_dict: dict[str, Any]) -> None:
        is_uninitialized = self._is_root is None
        with self.summon_full_params(volatile=True):
            self.unwrapped_module.upgrade_state_dict(state_dict)
        if is_uninitialized:  # as fairscale's own load_state_dict leaves it
            for wrapper in _wrappers(self):
                wrapper._reset_lazy_init()

    def _wait_for_post_backward(self) -> None:
        """fairscale's, at the end of a backward pass; wrappers that took no part are no error.

        An update without `mt` and `dae`, for one, has no decoder, and gating dropout may leave
        experts out; on all ranks alike.
        """
        idle = [one for one in _wrappers(self) if one.training_state == TrainingState.IDLE]
        untouched = [p for one in idle for p in one.params if p.grad is None]
        for wrapper in idle:
            wrapper._lazy_init()
            wrapper.training_state = TrainingState.BACKWARD_POST
        super()._wait_for_post_backward()
        for parameter in untouched:  # with --cpu-offload it would get that of an earlier pass
            parameter.grad = None

    def gather_full_optim_state_dict(self, optim: Any, **ignored: Any) -> dict[str, Any] | None:
        """State of the optimizer as without shards; None on ranks that do not save it.

        fairscale's would collect from all ranks alike, and for the first one alone.
        """
        is_kept = self.every_rank_saves or self.rank == 0
        return gather_state(self, optim.state_dict(), is_kept)

    def get_shard_from_optim_state_dict(self, full_optim_state_dict: dict[str, Any]) -> dict:
        """This rank's shards of such a state."""
        return shard_state(self, full_optim_state_dict)


def is_wanted() -> bool:
    """Whether stock's train is building a model for `--ddp-backend fully_sharded`."""
    return bool(ConfigAutoWrap.in_autowrap_context)


def prepare(topology: ExpertTopology) -> None:
    """Have stock's train wrap the model that is being built in `ShardedModel`.

    Every rank must call it. Does nothing without `--ddp-backend fully_sharded`.
    """
    if not is_wanted():
        return
    ConfigAutoWrap.wrapper_cls = ShardedModel
    ConfigAutoWrap.kwargs["every_rank_saves"] = topology.size > 1
    # fairscale would make this group with a timeout of its own when it wraps the first module.
    group = get_process_group_cached(ProcessGroupName.reduce_scatter)
    set_timeout(current_timeout().total_seconds(), [group])


class _Alone:
    """The process group of a rank that shares its experts with no other: nothing to communicate."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


def wrap_experts(layer: Any, topology: ExpertTopology) -> None:
    """Shard the experts of an `MOELayer` over the ranks that hold the same ones.

    Nothing happens without `--ddp-backend fully_sharded`, or where all ranks hold all experts:
    those are divided with all else.
    """
    if topology.size == 1 or not is_wanted():
        return
    group = topology.data_group or _Alone()
    layer.experts = fsdp_wrap(
        layer.experts, process_group=group, process_group_reduce_scatter=group
    )
    for parameter in layer.experts.params:
        parameter.expert = True  # of the flat one that has taken the place of those marked


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is one of `--ddp-backend fully_sharded`."""
    return isinstance(model, ShardedModel)


def attach(optimizer: Any, topology: ExpertTopology) -> None:
    """What `gradients.attach` does, for parameters in shards; for one instance, and only once.

    The gradient of a shard is a mean over the ranks of its group already.
    """
    if getattr(optimizer, "expert_topology", None) is topology:
        return
    stock_reduce, stock_clip = optimizer.all_reduce_grads, optimizer.clip_grad_norm

    def all_reduce_grads(module: nn.Module) -> None:
        stock_reduce(module)
        for parameter in expert_parameters(module.parameters()):
            if parameter.grad is not None:
                # With --fp16 fairscale leaves those of a group of one rank in half precision.
                grad = parameter.grad.to(parameter.dtype)
                # 1 / ranks of the group x 1 / expert parallel size = 1 / world size
                parameter.grad = grad.div_(topology.size)

    def clip_grad_norm(max_norm: float, aggregate_norm_fn: Callable | None = None) -> Tensor:
        parameters = optimizer_parameters(optimizer)

        def over_ranks(own_norm: Tensor) -> Tensor:
            return _norm_over_ranks(parameters).to(own_norm.device)

        norm = stock_clip(max_norm, aggregate_norm_fn=over_ranks)
        if getattr(optimizer, "scaler", None) is None:  # a loss scaler skips such an update
            refuse_unless_finite(norm, parameters)
        return norm

    optimizer.all_reduce_grads = all_reduce_grads
    optimizer.clip_grad_norm = clip_grad_norm
    optimizer.expert_topology = topology


def _norm_over_ranks(parameters: list[nn.Parameter]) -> Tensor:
    """float32 scalar, the norm over all gradients: every element of them is on one rank.

    Computed anew: stock's norm of a flat gradient, in float32, is wrong in the fifth digit.
    """
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    square = torch.zeros((), dtype=torch.float64, device=device)
    for parameter in parameters:
        if parameter.grad is not None:
            for part in parameter.grad.view(-1).split(_CHUNK):
                norm = torch.linalg.vector_norm(part, dtype=torch.float64)
                square += norm.to(device) ** 2
    dist.all_reduce(square)
    return square.sqrt().float()


def _wrappers(model: nn.Module) -> Iterator[FairscaleFSDP]:
    return (module for module in model.modules() if isinstance(module, FairscaleFSDP))
