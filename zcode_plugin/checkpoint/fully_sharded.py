"""Joins the files of a run with `--use-sharded-state`: flat pieces of all weights, one a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zcode_plugin.checkpoint import config, io, names, optimizer
from zcode_plugin.checkpoint.checks import check_name, check_same_save
from zcode_plugin.checkpoint.optimizer import Moments
from zcode_plugin.checkpoint.tensors import Pieces
from zcode_plugin.errors import UserError


def check_shards(files: Sequence[Path]) -> dict[str, Any]:
    """All shards of one save are there, and no other.

    Args:
        files: in the order of shards, as `names.find_shards` gives them; at least one.

    Returns:
        What is in the first; its weights are mapped.

    Raises:
        UserError: naming the file that is missing, too many, or of another save.
    """
    first, state = files[0], io.load_options(files[0])
    shards = [names.shard_of(path) for path in files]
    saved = config.world_size(state)
    if shards != list(range(saved)):
        raise UserError(
            f"the run of {first} had {saved} ranks, each of which wrote a shard; there are "
            f"those of ranks {', '.join(map(str, shards))}"
        )
    check_name(state, first)
    for path in files[1:]:
        other = io.load_options(path)
        check_same_save(state, first, other, path)
        check_name(other, path)
    return state


def join_shards(files: Sequence[Path], with_optimizer: bool) -> tuple[dict[str, Any], Moments]:
    """A checkpoint as one process would have saved it, its entries in pieces.

    Args:
        files: all shards, in their order.
        with_optimizer: whether the optimizer's state is wanted.

    Returns:
        The checkpoint, without the optimizer's state for parameters, and that by name.

    Raises:
        UserError: as `check_shards`; or the optimizer's state is of other parameters.
    """
    check_shards(files)
    states = [io.load_mapped(path) for path in files]
    flats = list(_flat_parameters(states[0], config.expert_parallel_size(states[0])))
    whole = {key: value for key, value in states[0].items() if key != "fsdp_metadata"}
    whole["model"] = _join_weights(states, flats)
    config.put(config.section(whole, "distributed_training"), "use_sharded_state", False)
    own, moments = whole.pop("last_optimizer_state", None), {}
    if own and with_optimizer:
        moments = _join_moments(states, flats)
        whole["last_optimizer_state"] = _whole_groups(own, whole, files[0])
    return whole, moments


def _whole_groups(own: Mapping[str, Any], whole: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A rank's optimizer state without that for parameters, and as if it numbered whole ones."""
    parameters = optimizer.parameter_names(whole, path)
    for name in parameters:
        if names.parse_stack(name) is None and name not in whole["model"]:
            raise UserError(f"{path} and the like hold no {name}, which was trained: damaged")
    [group] = own["param_groups"]
    groups = [{**group, "params": list(range(len(parameters)))}]
    rest = {key: value for key, value in own.items() if key != "state"}
    return {**rest, "param_groups": groups}


@dataclass(frozen=True)
class _Flat:
    """A flat parameter, of which every rank has a piece: what it is made of.

    Attributes:
        wrapper: its number in the metadata.
        key: its entry in the model of a rank.
        backing: its name in the metadata.
        number: in the optimizer.
        path: of the module whose parameters it has.
        names, shapes: of these.
        step: P for experts that are spread, which every P-th rank shares; else 1.
    """

    wrapper: int
    key: str
    backing: str
    number: int
    path: str
    names: Sequence[str]
    shapes: Sequence[Sequence[int]]
    step: int

    def entries(
        self, states: Sequence[Mapping[str, Any]], piece: Callable[[Mapping[str, Any]], Tensor]
    ) -> Iterator[tuple[str, Pieces]]:
        """Its parameters; of stacks an entry for each expert.

        Args:
            states: checkpoints of all ranks.
            piece: what a rank has of it, or of its like in the optimizer's state, padded.
        """
        for place in range(self.step):
            flat = [
                self._without_padding(state, piece(state)) for state in states[place :: self.step]
            ]
            start = 0
            for key, shape in self._entries(place):
                yield key, Pieces(_span(flat, start, shape.numel()), 0, shape)
                start += shape.numel()

    def keys(self) -> list[str]:
        """The names of its parameters, and of single experts."""
        return [key for place in range(self.step) for key, _ in self._entries(place)]

    def _entries(self, place: int) -> Iterator[tuple[str, torch.Size]]:
        """What lies in it, one after the other, on the ranks of a place in their expert groups."""
        for name, sizes in zip(self.names, self.shapes, strict=True):
            key, shape = _under(self.path, name), torch.Size(sizes)
            stack = names.parse_stack(key)
            if stack is None:
                yield key, shape
                continue
            for local in range(shape[0]):
                yield stack.key(place * shape[0] + local), shape[1:]

    def _without_padding(self, state: Mapping[str, Any], piece: Tensor) -> Tensor:
        wrapper = state["fsdp_metadata"]["param_metadata"][self.wrapper]
        return piece[: piece.numel() - wrapper["params"][self.backing]["padding"]]


def _flat_parameters(state: Mapping[str, Any], size: int) -> Iterator[_Flat]:
    """All, as the optimizer numbers them; `size` is P."""
    number = 0
    for index, wrapper in enumerate(state["fsdp_metadata"]["param_metadata"]):
        path = wrapper["fsdp_path"]
        for backing, flat in wrapper["params"].items():
            is_stack = [names.parse_stack(_under(path, name)) is not None for name in flat["names"]]
            # Experts that are spread are wrapped by themselves, over every size-th rank.
            yield _Flat(
                index, _under(path, backing), backing, number, path, flat["names"], flat["shapes"],
                size if all(is_stack) else 1,
            )  # fmt: skip
            number += 1


def _join_weights(states: Sequence[Mapping[str, Any]], flats: Sequence[_Flat]) -> dict[str, Any]:
    metadata = states[0]["fsdp_metadata"]
    model: dict[str, Any] = {}
    for flat in flats:
        model.update(flat.entries(states, partial(_weight, flat)))
    for wrapper in metadata["param_metadata"]:
        path = wrapper["fsdp_path"]
        for source, target in wrapper["shared_param_info"]:  # tied weights
            model[_under(path, target)] = model[_under(path, source)]
    for key in metadata["buffer_names"]:
        model[key] = states[0]["model"][key]
    for key, twin in names.ONE_EMBEDDING.items():
        if key not in model and twin in model:
            model[key] = model[twin]
    return model


def _join_moments(states: Sequence[Mapping[str, Any]], flats: Sequence[_Flat]) -> Moments:
    """The optimizer's state by slot and entry, single experts by their own names."""
    moments: Moments = {}
    for flat in flats:
        for slot, value in states[0]["last_optimizer_state"]["state"].get(flat.number, {}).items():
            entries = moments.setdefault(slot, {})
            if torch.is_tensor(value) and value.dim() > 0:
                entries.update(flat.entries(states, partial(_moment, flat, slot)))
            else:  # a number of steps, which all have alike
                entries.update(dict.fromkeys(flat.keys(), value))
    return dict(sorted(moments.items()))


def _weight(flat: _Flat, state: Mapping[str, Any]) -> Tensor:
    return state["model"][flat.key]


def _moment(flat: _Flat, slot: str, state: Mapping[str, Any]) -> Tensor:
    return state["last_optimizer_state"]["state"][flat.number][slot]


def _span(pieces: Sequence[Tensor], start: int, length: int) -> list[Tensor]:
    """The elements from `start` on of all pieces in a row."""
    found = []
    for piece in pieces:
        first, last = max(start, 0), min(start + length, len(piece))
        if first < last:
            found.append(piece[first:last])
        start -= len(piece)
    return found


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
