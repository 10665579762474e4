"""ZeRO-1 beside experts: `--zero-sharding os` when ranks hold different experts.

Stock hands all parameters to one OSS of fairscale, which takes every rank to hold the same ones: it
would broadcast the experts of one rank over those of the others. Here shared parameters have an OSS
over the world and experts one over the ranks that hold the same. What a rank saves is its own part
of the state: no rank ever holds the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from fairscale.optim import OSS
from fairseq import optim
from torch import Tensor, nn
from torch.optim import Optimizer

from zcode_plugin.errors import UserError
from zcode_plugin.parallel.topology import ExpertTopology
from zcode_plugin.parallel.zero_owners import OWNED, owners

_SUPPORTS = ("memory_efficient_fp16", "step_with_scale", "groups", "flat_params")


def shard_optimizer_by_experts(topology: ExpertTopology) -> None:
    """Make the trainer shard the optimizer's state rightly, in a run whose ranks differ in experts.

    The one patch of fairseq in this package, of the name that its trainer calls for
    `--zero-sharding os`. That comes right after it has built the optimizer, and right before it
    loads the optimizer's state: no hook of task, model or criterion lies in between.

    Args:
        topology: of the model's experts.
    """

    def shard(optimizer: Any, group: dist.ProcessGroup) -> None:
        optimizer.optimizer = ShardedOptimizer(
            optimizer.optimizer, optimizer.optimizer_config, group, topology.data_group
        )

    optim.shard_ = shard


class ShardedOptimizer(Optimizer):
    """Steps the parameters that a rank owns, and fetches the others from their owners.

    Gradients must be reduced before: each rank has all of its parameters'.

    Args:
        whole: an optimizer of all parameters that has not stepped yet; replaced by this one.
        options: to make others of its class with.
        group: the ranks that hold the shared parameters.
        data_group: those that hold the same experts; None where there is only this one.
    """

    # MemoryEfficientFP16Optimizer would put the state of all parameters into `state`.
    disable_mem_eff_fp16_loading_hack = True

    def __init__(
        self,
        whole: Optimizer,
        options: Mapping[str, Any],
        group: dist.ProcessGroup,
        data_group: dist.ProcessGroup | None,
    ):
        super().__init__(whole.param_groups, dict(options))
        for name in (f"supports_{what}" for what in _SUPPORTS):
            if hasattr(whole, name):  # what fairseq asks of an optimizer
                setattr(self, name, getattr(whole, name))
        # Parts, each with its groups beside those of this optimizer.
        self._parts: list[tuple[Optimizer, list[tuple[dict, dict]]]] = []
        for is_expert, members in ((False, group), (True, data_group)):
            pairs = [(one, _select(one, is_expert)) for one in self.param_groups]
            pairs = [(one, part) for one, part in pairs if part["params"]]
            if pairs:
                part = _build(type(whole), [part for _, part in pairs], options, members)
                groups = [one for one, _ in pairs]
                self._parts.append((part, list(zip(groups, part.param_groups, strict=True))))

    @property
    def shards(self) -> list[Optimizer]:
        """The optimizers of the parameters that this rank owns."""
        return [part.optim if isinstance(part, OSS) else part for part, _ in self._parts]

    def step(self, closure: Callable[[], float] | None = None, **options: Any) -> Any:
        """One step of all parameters; all ranks must call it. `options` go to the optimizers."""
        loss = None if closure is None else closure()
        for part, groups in self._parts:
            _copy_settings((one, other) for one, other in groups)  # a scheduler may have been here
            part.step(**options)
            _copy_settings((other, one) for one, other in groups)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of the parameters that this rank owns, as torch has it, and their numbers."""
        numbers = self._numbers()
        state = {
            numbers[parameter]: entries
            for shard in self.shards
            for parameter, entries in shard.state.items()
        }
        groups = [
            {**group, "params": [numbers[parameter] for parameter in group["params"]]}
            for group in self.param_groups
        ]
        return {
            "state": dict(sorted(state.items())),
            "param_groups": groups,
            OWNED: sorted(self._owned()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take what this rank owns out of its own state, or out of one of all its parameters.

        Raises:
            UserError: the state was divided in another way.
        """
        owned, saved = self._owned(), state_dict["param_groups"]
        sizes = [[len(group["params"]) for group in one] for one in (self.param_groups, saved)]
        if sizes[0] != sizes[1] or state_dict.get(OWNED, sorted(owned)) != sorted(owned):
            raise UserError(
                "the optimizer's state in the checkpoint is of other parameters than this rank's, "
                "or divided in another way: zcode reshard divides it anew, and --reset-optimizer "
                "begins with a new one"
            )
        _copy_settings(zip(saved, self.param_groups, strict=True))
        for _, groups in self._parts:
            _copy_settings(groups)
        for number, (parameter, shard) in owned.items():
            if number in state_dict["state"]:
                entries = state_dict["state"][number]
                shard.state[parameter] = {
                    key: _beside(parameter, value) for key, value in entries.items()
                }

    def _numbers(self) -> dict[Tensor, int]:
        parameters = (one for group in self.param_groups for one in group["params"])
        return {parameter: number for number, parameter in enumerate(parameters)}

    def _owned(self) -> dict[int, tuple[nn.Parameter, Optimizer]]:
        """Parameters of this rank's shards by number, with the optimizer of each."""
        numbers = self._numbers()
        return {
            numbers[parameter]: (parameter, shard)
            for shard in self.shards
            for group in shard.param_groups
            for parameter in group["params"]
        }


class _EvenOSS(OSS):
    """OSS that divides by `owners`, so that a checkpoint can be divided without a run."""

    _partition_parameters: list[list[dict]]

    def partition_parameters(self) -> list[list[dict]]:
        """See OSS: for each rank, the groups with the parameters that it owns."""
        if not self._partition_parameters:
            parameters = [one for group in self.param_groups for one in group["params"]]
            places = owners([one.numel() for one in parameters], self.world_size)
            owner = dict(zip(parameters, places, strict=True))
            self._partition_parameters = [
                [
                    {**group, "params": [one for one in group["params"] if owner[one] == rank]}
                    for group in self.param_groups
                ]
                for rank in range(self.world_size)
            ]
        return self._partition_parameters


def _build(
    kind: type[Optimizer],
    groups: Sequence[dict],
    options: Mapping[str, Any],
    members: dist.ProcessGroup | None,
) -> Optimizer:
    if members is None:
        return kind(groups, **options)
    return _EvenOSS(groups, optim=kind, group=members, **options)


def _select(group: dict, is_expert: bool) -> dict:
    """A parameter group without the experts, or with them alone."""
    return {
        **group, "params": [one for one in group["params"] if hasattr(one, "expert") == is_expert]
    }  # fmt: skip


def _copy_settings(pairs: Iterator[tuple[dict, dict]] | Sequence[tuple[dict, dict]]) -> None:
    """Give the second group of each pair the learning rate and whatever else the first has."""
    for source, target in pairs:
        target.update({key: value for key, value in source.items() if key != "params"})


def _beside(parameter: nn.Parameter, value: Any) -> Any:
    """Moments to the parameter's device; a count of steps stays where it is."""
    return value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
