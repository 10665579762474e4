"""Averages the weights of several checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.gather import gather, gather_pieces
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.tensors import bit_equal, identity, weights
from zcode_plugin.checkpoint.vocabulary import check_alike
from zcode_plugin.errors import UserError

# What stock names the checkpoints of each epoch, and of every so many updates in it.
EPOCHS = re.compile(r"checkpoint(\d+)\.pt")
UPDATES = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def newest(folder: Path, pattern: re.Pattern[str], number: int, bound: int | None) -> list[Path]:
    """The newest checkpoints of a folder, oldest first; sets of rank files by the first of them.

    Args:
        pattern: `EPOCHS` or `UPDATES`.
        number: how many.
        bound: none above this epoch or number of updates.

    Raises:
        UserError: there are not that many.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(names.without_rank(path).name)
        if match and (bound is None or int(match[1]) <= bound):
            found.setdefault(int(match[1]), path)
    if len(found) < number:
        kind = "epochs" if pattern is EPOCHS else "numbers of updates"
        up_to = "" if bound is None else f" up to {bound}"
        raise UserError(
            f"{folder} has checkpoints of {len(found)} {kind}{up_to}, not {number}: ask for fewer"
        )
    return [found[key] for key in sorted(found)][-number:]


def average_whole(checkpoints: Sequence[list[Path]]) -> dict[str, Any]:
    """The mean of checkpoints, each one file or all rank files, as one checkpoint for one process.

    Raises:
        UserError: the files do not belong together; and as `gather`.
    """
    states = [gather(files).state for files in checkpoints]
    mean = _average(states, [files[0] for files in checkpoints])
    config.set_layout(mean, config.world_size(mean), expert_parallel=1, rank=0)
    return mean


def average_ranks(checkpoints: Sequence[list[Path]]) -> Iterator[dict[str, Any]]:
    """The mean of sets of rank files, rank by rank.

    Raises:
        UserError: as `average_whole`; all files are looked at before the first mean is made.
    """
    sizes = set()
    for files in checkpoints:
        state = gather_pieces(files, with_optimizer=False).state  # mapped; for its checks
        sizes.add((len(files), config.expert_parallel_size(state)))
    if len(sizes) > 1:
        raise UserError(
            "the checkpoints are of different numbers of ranks: add --merge for one file, or "
            "divide them alike with zcode reshard"
        )
    return (_average_files(paths) for paths in zip(*checkpoints, strict=True))


def _average_files(paths: Sequence[Path]) -> dict[str, Any]:
    states = [io.load_mapped(path) for path in paths]
    for state in states:
        state.pop("last_optimizer_state", None)
    return _average(states, paths)


def _average(states: list[dict[str, Any]], paths: Sequence[Path]) -> dict[str, Any]:
    """All but the weights is that of the newest; without an optimizer's state."""
    for path, state in zip(paths, states, strict=True):
        config.check_not_quantised(state, path, "to average")
    latest = max(range(len(states)), key=lambda index: config.num_updates(states[index]))
    for path, state in zip(paths[1:], states[1:], strict=True):
        check_alike(states[0], state, paths[0], path)
    _check_same_experts(states, paths)
    parts = [weights(state) for state in states]
    for path, part in zip(paths, parts, strict=True):
        if len(part) != len(parts[latest]):
            raise UserError(f"{path} is of another run than {paths[latest]}: their options differ")
    for index, tensors in enumerate(parts[latest]):
        others = [part[index] for part in parts]
        tensors.update(mean(others, paths, latest))
    return states[latest]


def _check_same_experts(states: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    """Pruned models number what is left of their experts anew: equal numbers may be of others."""
    pruned = [(path, kept) for path, state in zip(paths, states, strict=True)
              if (kept := state.get("kept_experts"))]  # fmt: skip
    for path, kept in pruned[1:]:
        first_path, first = pruned[0]
        for layer in sorted(first.keys() & kept.keys()):
            if first[layer] != kept[layer]:
                raise UserError(
                    f"{path} and {first_path} keep different experts of {layer}: average first, "
                    "then prune the mean"
                )


def mean(
    models: Sequence[Mapping[str, Any]],
    paths: Sequence[Path],
    latest: int,
    coefficients: Sequence[float] | None = None,
) -> dict[str, torch.Tensor]:
    """The mean of each entry, in its own dtype; tied entries stay tied.

    Args:
        models: weights by name.
        paths: of their checkpoints, for errors.
        latest: the model of which whole numbers are.
        coefficients: of each model, summing to 1; without them all count alike.

    Raises:
        UserError: the models differ in more than values.
    """
    made: dict[tuple[Any, ...], torch.Tensor] = {}
    result = {}
    shares = coefficients or [1 / len(models)] * len(models)
    for path, model in zip(paths, models, strict=True):
        for key in sorted(models[latest].keys() ^ model.keys()):
            raise UserError(
                f"{path} and {paths[latest]} are of different models: only one has {key}"
            )
    for key, value in models[latest].items():
        place = identity(value)
        if place not in made:
            made[place] = _mean_of([model[key] for model in models], paths, latest, key, shares)
        result[key] = made[place]
    return result


def _mean_of(
    values: list[torch.Tensor],
    paths: Sequence[Path],
    latest: int,
    key: str,
    shares: Sequence[float],
) -> torch.Tensor:
    newest_value = values[latest]
    for path, value in zip(paths, values, strict=True):
        floating = value.is_floating_point() and value.dtype == newest_value.dtype
        same = floating or bit_equal(value, newest_value)
        if value.shape != newest_value.shape or not same:
            raise UserError(
                f"{path} and {paths[latest]} are of different models: {key} is "
                f"{value.dtype} {tuple(value.shape)} in one and "
                f"{newest_value.dtype} {tuple(newest_value.shape)} in the other"
            )
    if key.endswith(UNSET_BUFFER) or not newest_value.is_floating_point():
        return newest_value
    total = torch.zeros(newest_value.shape, dtype=torch.float64)
    for share, value in zip(shares, values, strict=True):
        total += share * value.double()
    return total.to(newest_value.dtype)
