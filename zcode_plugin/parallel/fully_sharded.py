"""Weights, gradients and optimizer state in shards: `--ddp-backend fully_sharded`, with experts.

fairscale's FullyShardedDataParallel (FSDP) keeps of the parameters that it wraps one flat tensor,
and on each rank of a group a shard of it; it gathers the whole for a forward or backward pass. What
is no expert is divided over all ranks, or, where layers are sliced, over those that hold the same
slice. Experts that are spread over ranks are wrapped by themselves over those that hold the same
ones. Files are the same as without it, but for `--use-sharded-state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from fairscale.internal.parallel import ProcessGroupName, get_process_group_cached
from fairscale.nn.data_parallel import FullyShardedDataParallel as FairscaleFSDP
from fairscale.nn.data_parallel.fully_sharded_data_parallel import (
    TrainingState,
    get_fsdp_instances,
)
from fairscale.nn.wrap.auto_wrap import ConfigAutoWrap
from fairseq.distributed import FullyShardedDataParallel, fsdp_wrap
from torch import Tensor, nn

from zcode_plugin.errors import exits_on_user_error
from zcode_plugin.parallel.faults import set_timeout
from zcode_plugin.parallel.fully_sharded_state import gather_state, shard_state
from zcode_plugin.parallel.gradients import clip_together, optimizer_parameters
from zcode_plugin.parallel.tensor import (
    TensorSlicing,
    average_replicated,
    is_sliced,
    replicated_gradients,
)
from zcode_plugin.parallel.topology import ExpertTopology, collective_device, current_timeout

_CHUNK = 1 << 20  # elements whose float64 copies are in memory at a time


class ShardedModel(FullyShardedDataParallel):
    """fairseq's FSDP, for a model in which ranks may hold experts and slices of their own.

    Its flat parameters know what of this rank's shard is replicated on tensor ranks, see `tensor`.

    Args:
        module: what to wrap; the weights that are sliced are marked.
        every_rank_saves: every rank has a checkpoint file: with the weights of its own experts,
            and all others.
        every_rank_loads: every rank has read a checkpoint file before it loads the weights.
    """

    def __init__(
        self,
        module: nn.Module,
        *args: Any,
        every_rank_saves: bool = False,
        every_rank_loads: bool = False,
        **kwargs: Any,
    ):
        sliced = _sliced_weights(module)
        super().__init__(module, *args, **kwargs)
        self.every_rank_saves, self.every_rank_loads = every_rank_saves, every_rank_loads
        for flat in self.params:
            flat.replicated = _replicated_ranges(flat, sliced, self.rank * flat.numel())

    def state_dict(
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The weights on every rank that saves; stock gives them to the first alone.

        And on all ranks while weights are gathered anyway, for `upgrade_state_dict`.
        """
        options = {"destination": destination, "prefix": prefix, "keep_vars": keep_vars}
        is_gathered = self.training_state == TrainingState.SUMMON_FULL_PARAMS
        if (self.every_rank_saves or is_gathered) and not self.use_sharded_state:
            return FairscaleFSDP.state_dict(self, **options)
        return super().state_dict(**options)

    def load_state_dict(
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None
    ) -> Any:
        """As stock's; weights of another vocabulary or other heads are made to fit first.

        Where every rank has read a file, it loads that; stock would give all of them the first
        one's.
        """
        if self.use_sharded_state:
            return super().load_state_dict(state_dict, strict, model_cfg)
        self._upgrade(state_dict)
        if self.every_rank_loads:
            return FairscaleFSDP.load_state_dict(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict, model_cfg)

    def _upgrade(self, state_dict: dict[str, Any]) -> None:
        is_uninitialized = self._is_root is None
        with self.summon_full_params(volatile=True):
            self.unwrapped_module.upgrade_state_dict(state_dict)
        if is_uninitialized:  # as fairscale's own load_state_dict leaves it
            for wrapper in get_fsdp_instances(self):
                wrapper._reset_lazy_init()

    def _wait_for_post_backward(self) -> None:
        """fairscale's, at the end of a backward pass; wrappers that took no part are no error.

        An update without `mt` and `dae`, for one, has no decoder, and gating dropout may leave
        experts out; on all ranks alike.
        """
        idle = [one for one in get_fsdp_instances(self) if one.training_state == TrainingState.IDLE]
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

    @exits_on_user_error
    def get_shard_from_optim_state_dict(self, full_optim_state_dict: dict[str, Any]) -> dict:
        """This rank's shards of such a state."""
        return shard_state(self, full_optim_state_dict)


def _sliced_weights(module: nn.Module) -> set[tuple[int, str]]:
    """The weights of which each tensor rank holds a slice: id of the owner, and name in it."""
    return {
        (id(owner), name)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if is_sliced(parameter)
    }


def _replicated_ranges(flat: Any, sliced: set[tuple[int, str]], first: int) -> list[slice]:
    """Where in a shard the weights are that are not sliced.

    Tensor ranks of a group have equal shapes, and so the same ranges.

    Args:
        flat: the shard, with what fairscale notes of the weights in the flat parameter.
        sliced: see `_sliced_weights`.
        first: place of the shard's first element in the flat parameter.
    """
    ranges, start = [], -first
    for (_, owner, name), numel in zip(flat._param_infos, flat._param_numels, strict=True):
        part = slice(max(start, 0), min(start + numel, flat.numel()))
        if part.start < part.stop and (id(owner), name) not in sliced:
            ranges.append(part)
        start += numel
    return ranges


def is_wanted() -> bool:
    """Whether stock's train is building a model for `--ddp-backend fully_sharded`."""
    return bool(ConfigAutoWrap.in_autowrap_context)


def use_sharded_model(topology: ExpertTopology, slicing: TensorSlicing) -> None:
    """Have stock's train wrap the model that is being built in `ShardedModel`.

    Every rank must call it. Does nothing without `--ddp-backend fully_sharded`.
    """
    if not is_wanted():
        return
    ConfigAutoWrap.wrapper_cls = ShardedModel
    ConfigAutoWrap.kwargs.update(
        every_rank_saves=topology.size > 1,
        every_rank_loads=topology.size > 1 or slicing.size > 1,
    )
    if slicing.size > 1:  # stock shards over the ranks with the same slice, and reduces over all
        ConfigAutoWrap.kwargs["process_group_reduce_scatter"] = slicing.data_group
        return
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


def patch_optimizer(optimizer: Any, topology: ExpertTopology, slicing: TensorSlicing) -> None:
    """What `gradients.patch_optimizer` does, for parameters in shards.

    The gradient of a shard is a mean over the ranks of its group already.
    """
    if getattr(optimizer, "expert_topology", None) is topology:
        return
    stock_reduce, stock_clip = optimizer.all_reduce_grads, optimizer.clip_grad_norm

    def all_reduce_grads(module: nn.Module) -> None:
        stock_reduce(module)
        for parameter in module.parameters():
            if parameter.grad is not None:
                # With --fp16 fairscale leaves those of a group of one rank in half precision.
                grad = parameter.grad.to(parameter.dtype)
                # 1 / ranks of the group x 1 / expert parallel size = 1 / ranks with other data
                parameter.grad = grad.div_(topology.size) if hasattr(parameter, "expert") else grad
        if slicing.size > 1:
            average_replicated(module.parameters(), slicing)

    def clip_grad_norm(max_norm: float, aggregate_norm_fn: Callable | None = None) -> Tensor:
        parameters = optimizer_parameters(optimizer)

        def over_ranks(own_norm: Tensor) -> Tensor:
            # Where gradients lie, which may be the host: stock multiplies them by it.
            return _norm_over_ranks(parameters, slicing).to(parameters[0].device)

        return clip_together(optimizer, stock_clip, max_norm, over_ranks)

    optimizer.all_reduce_grads = all_reduce_grads
    optimizer.clip_grad_norm = clip_grad_norm
    optimizer.expert_topology = topology


def _norm_over_ranks(parameters: list[nn.Parameter], slicing: TensorSlicing) -> Tensor:
    """float32 scalar, the norm over all gradients: every element of them is on one rank.

    What is replicated is on all ranks of a tensor group, each of which adds its share. Computed
    anew: stock's norm of a flat gradient, in float32, is wrong in the fifth digit.
    """
    square = _square_norm(p.grad for p in parameters if p.grad is not None)
    if slicing.size > 1:
        square -= (1 - 1 / slicing.size) * _square_norm(replicated_gradients(parameters))
    dist.all_reduce(square)
    return square.sqrt().float()


def _square_norm(gradients: Iterable[Tensor]) -> Tensor:
    """float64 scalar, of all of them together."""
    device = collective_device()
    square = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        for part in gradient.view(-1).split(_CHUNK):
            square += torch.linalg.vector_norm(part, dtype=torch.float64).to(device) ** 2
    return square
