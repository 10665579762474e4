"""Looks at the checkpoint that a training run is about to start from, before stock loads it.

Stock asks each rank for its own file alone. A rank that finds none starts with random experts
beside others that resume, and files of other updates, runs or numbers of ranks are mixed without a
word.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from zcode_plugin.checkpoint import config, io, names, shards, vocabulary
from zcode_plugin.checkpoint.checks import check_ranks, check_same_save
from zcode_plugin.checkpoint.join_shards import check_shards
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.slices import sliced_dim
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.errors import UserError

logger = logging.getLogger(__name__)

_LAST = "checkpoint_last.pt"  # stock's default of --restore-file, a name in --save-dir


@dataclass(frozen=True)
class _Layout:
    """How a run is spread, and so which files it has.

    Attributes:
        world: ranks.
        parallel: P, `--expert-parallel-size`.
        tensor: T, `--model-parallel-size`.
    """

    world: int
    parallel: int
    tensor: int

    @classmethod
    def of(cls, options: Any, world: int) -> _Layout:
        """That of a run with these options."""
        if world == 1:
            return cls(1, 1, 1)
        sizes = ("expert_parallel_size", "model_parallel_size")
        return cls(world, *(config.get(options, name, 1) for name in sizes))

    def paths(self, whole: Path) -> list[Path]:
        """All files of a checkpoint, in the order of their ranks."""
        if self.parallel > 1:
            return [names.with_rank(whole, rank) for rank in range(self.world)]
        if self.tensor > 1:
            return [names.with_part(whole, part) for part in range(self.tensor)]
        return [whole]

    @property
    def flags(self) -> str:
        """Those that say so."""
        sliced = f"--model-parallel-size {self.tensor}" if self.tensor > 1 else ""
        if sliced and self.parallel == 1:
            return sliced
        return f"--expert-parallel-size {self.parallel}{' and ' * bool(sliced)}{sliced}"


def check_start(options: Any, symbols: Sequence[str]) -> Path | None:
    """Refuse a checkpoint that this run must not start from; every rank must call it.

    A save that was interrupted while its files got their names is completed. The first rank looks
    for all.

    Args:
        options: of the run; fairseq hands a model without a dataclass all of them.
        symbols: its vocabulary.

    Returns:
        The file of `--finetune-from-model` where it is what the run starts from.

    Raises:
        UserError: on every rank, the same one.
    """
    if config.get(options, "save_dir") is None:
        return None
    several = dist.is_initialized() and dist.get_world_size() > 1
    world = dist.get_world_size() if several else 1
    problem, pretrained = None, None
    if not several or dist.get_rank() == 0:
        try:
            pretrained = _check(options, world, symbols)
        except UserError as error:
            problem = str(error)
    if several:
        found = [problem, pretrained]
        dist.broadcast_object_list(found, src=0)
        problem, pretrained = found
    if problem is not None:
        raise UserError(problem)
    return None if pretrained is None else Path(pretrained)


def _check(options: Any, world: int, symbols: Sequence[str]) -> str | None:
    restore = config.get(options, "restore_file", _LAST)
    whole = Path(config.get(options, "save_dir")) / _LAST if restore == _LAST else Path(restore)
    layout = _Layout.of(options, world)
    if config.get(options, "use_sharded_state"):
        _check_name(whole, restore)
        first_shard = _check_shards(options, whole, world, layout.parallel)
        if first_shard is not None:
            _check_contents(options, first_shard, symbols)
        return None
    paths = layout.paths(whole)
    if len(paths) > 1:
        _check_name(whole, restore)
        finish_save(whole, paths)
    files = {
        rank: path
        for rank, path in names.find_rank_files(paths[0]).items()
        if names.is_part(path) == names.is_part(paths[0])
    }
    if not (files if len(paths) > 1 else whole.is_file()):
        return _check_first_start(options, whole, layout)
    first = _check_ranks_files(whole, files, layout) if len(paths) > 1 else whole
    if layout.parallel > 1 and not config.get(options, "reset_optimizer"):
        _check_owned(options, files, layout)
    _check_contents(options, first, symbols)
    return None


def _check_owned(options: Any, files: Mapping[int, Path], layout: _Layout) -> None:
    """Each file has the part of the optimizer's state that its rank will look for."""
    sharded = config.asks_for_zero_sharding(options)
    for rank, path in files.items():
        part = io.load_options(path)
        shards.check_start(
            part, path, world=layout.world, parallel=layout.parallel, rank=rank, sharded=sharded
        )


def _check_contents(options: Any, first: Path, symbols: Sequence[str]) -> None:
    state = io.load_options(first)
    config.check_not_quantised(state, first, "to train on")
    if not (state.get("last_optimizer_state") or config.get(options, "reset_optimizer")):
        raise UserError(
            f"{first} holds no optimizer's state, as after zcode merge or "
            "--no-save-optimizer-state: add --reset-optimizer to begin with a new one"
        )
    vocabulary.check_same(state, symbols, str(first), "start from it with --finetune-from-model")


def _check_shards(options: Any, whole: Path, world: int, parallel: int) -> Path | None:
    """With `--use-sharded-state`: the first shard of a whole set; None at a first start."""
    shards = names.find_shards(whole)
    if shards:
        check_shards(shards, world)
        saved = config.expert_parallel_size(io.load_options(shards[0]))
        if saved != parallel:
            raise UserError(
                f"{shards[0]} is of a run with --expert-parallel-size {saved}, and this one has "
                f"{parallel}: go on with {saved}, or from the weights alone: zcode merge "
                f"{shards[0]} and --finetune-from-model"
            )
        return shards[0]
    files = [whole] if whole.is_file() else list(names.find_rank_files(whole).values())
    if files or whole.name != _LAST or config.get(options, "finetune_from_model"):
        what = files[0] if files else config.get(options, "finetune_from_model") or whole
        raise UserError(
            f"{what} is no shard, and --use-sharded-state starts from shards alone: leave it out"
        )
    return None


def _check_name(whole: Path, restore: str) -> None:
    """Each rank's own name comes from putting -rank-N before `.pt`, wherever that stands."""
    if names.rank_of(whole) is not None:
        raise UserError(
            f"--restore-file {restore}: give the name without "
            f"{whole.stem.removeprefix(names.without_rank(whole).stem)}, each rank adds its own"
        )
    if restore.count(".pt") != 1 or not restore.endswith(".pt"):
        raise UserError(
            f"--restore-file {restore}: the name must end in .pt and have no other .pt in it, or "
            "stock does not find the files of ranks: rename the file or its folder"
        )


def _check_first_start(options: Any, whole: Path, layout: _Layout) -> str | None:
    """There is no checkpoint of this layout; without finetuning nor may there be one of another.

    Returns:
        The file to finetune.
    """
    for shard in names.find_shards(whole).values():
        raise UserError(
            f"{shard} and the like are of a run with --use-sharded-state: add that, or move them "
            f"away and start from their weights alone, zcode merge {shard}"
        )
    pretrained = config.get(options, "finetune_from_model")
    if pretrained is not None and whole.name == _LAST:
        if not Path(pretrained).is_file():
            in_ranks = names.find_rank_files(Path(pretrained))
            remedy = "join its rank files with zcode merge" if in_ranks else "name another"
            raise UserError(f"--finetune-from-model {pretrained}: there is no such file; {remedy}")
        config.check_not_quantised(
            io.load_options(Path(pretrained)), Path(pretrained), "to train on"
        )
        return str(pretrained)
    _check_no_other_layout(whole, layout)
    if whole.name != _LAST:
        raise UserError(f"--restore-file {whole}: there is no such checkpoint")
    return None


def _check_no_other_layout(whole: Path, layout: _Layout) -> None:
    """There are no files of another layout, beside which stock would begin anew."""
    files = names.find_rank_files(whole)
    if layout.tensor > 1 and (files or whole.is_file()):
        first = next(iter(files.values()), whole)
        raise UserError(
            f"{first} is not of a run with {layout.flags}: to start from its weights, name it with "
            "--finetune-from-model, after zcode merge where it is of several files"
        )
    reshard = (
        f"zcode reshard {{}} --ranks {layout.world} --expert-parallel-size {layout.parallel} "
        "--out DIR"
    )
    if whole.is_file():
        raise UserError(
            f"{whole} is one file for all ranks, but with {layout.flags} each "
            f"has its own: divide it with {reshard.format(whole)}, or start from its weights "
            "alone with --finetune-from-model"
        )
    if files:
        first = next(iter(files.values()))
        if names.is_part(first):
            raise UserError(
                f"{first} and the like are of a run with --model-parallel-size: join them with "
                "zcode merge, and start from the weights with --finetune-from-model"
            )
        raise UserError(
            f"{first} and the like are of a run whose ranks had different experts, and this one "
            f"has --expert-parallel-size 1: {reshard.format(first)}"
        )


def _check_ranks_files(whole: Path, files: Mapping[int, Path], layout: _Layout) -> Path:
    """The files are all ranks' of one save of this layout; the first of them."""
    first = next(iter(files.values()))
    state = io.load_options(first)
    saved = config.world_size(state), config.expert_parallel_size(state)
    world, parallel = layout.world, layout.parallel
    tensor = config.model_parallel_size(state)
    if tensor != layout.tensor:
        raise UserError(
            f"{first} is of a run with --model-parallel-size {tensor}, and this one has "
            f"{layout.tensor}: start from its weights with zcode merge and --finetune-from-model"
        )
    # Ranks that only see other data have no files of their own.
    if saved != (world, parallel) and not names.is_part(first):
        raise UserError(
            f"{first} is of a run on {saved[0]} ranks with --expert-parallel-size {saved[1]}, and "
            f"this one has {world} and {parallel}: divide it anew with zcode reshard {whole} "
            f"--ranks {world} --expert-parallel-size {parallel} --out DIR"
        )
    try:
        check_ranks(list(files.values()), state)
        shared = _shared_vectors(state)
        for path in files.values():
            part = io.load_options(path)
            check_same_save(state, first, part, path)
            _check_own(part, path)
            for key, value in _shared_vectors(part).items():
                if not bit_equal(value, shared.get(key)):
                    raise UserError(
                        f"{path} is of another run than {first}: their {key} differ; put the file "
                        "of this run in its place"
                    )
    except UserError as error:
        raise UserError(f"{error}{_other_set(whole, layout)}") from None
    return first


def _check_own(state: Mapping[str, Any], path: Path) -> None:
    suffix = config.get(config.section(state, "checkpoint"), "checkpoint_suffix")
    if suffix != path.stem.removeprefix(names.without_rank(path).stem):
        raise UserError(
            f"{path} was saved as {suffix}: put the file of rank {names.rank_of(path)} in its place"
        )


def _shared_vectors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Biases and norms that all ranks have: small, and the same in no two runs."""
    return {
        key: value
        for key, value in state["model"].items()
        if value.dim() == 1
        and names.parse_expert_key(key) is None
        and (config.model_parallel_size(state) == 1 or sliced_dim(key) is None)
        and not key.endswith(UNSET_BUFFER)
    }


def _other_set(whole: Path, layout: _Layout) -> str:
    """Names the newest whole set beside, if there is one."""
    sets = []
    for path in whole.parent.glob(layout.paths(Path("*.pt"))[0].name):
        files, other = names.find_rank_files(path), names.without_rank(path)
        if list(files.values()) == layout.paths(other) and other != whole:
            updates = {_updates(file) for file in files.values()}
            if len(updates) == 1 and None not in updates:
                sets.append((updates.pop(), other))
    if not sets:
        return ""
    updates_done, other = max(sets)
    return f"; --restore-file {other} has the files of all ranks after {updates_done} updates"


def _updates(path: Path) -> int | None:
    """Updates done at the time of a checkpoint; None where there is no whole file."""
    try:
        return config.num_updates(io.load_options(path))
    except UserError:
        return None


def finish_save(whole: Path, paths: Sequence[Path]) -> None:
    """Complete a save that ended while its files got their names; see `zcode_mends.saving`.

    Args:
        whole: their name without a rank, for the log.
        paths: of all ranks.

    All files were whole then. Those that have no name yet are those of the newest update, under
    their temporary names; a mixture that is anything else stays as it is.
    """
    updates = dict.fromkeys(paths, -1)
    for path in updates:
        if path.is_file():
            found = _updates(path)
            updates[path] = -1 if found is None else found
    newest = max(updates.values())
    behind = [path for path, number in updates.items() if number < newest]
    partials = [path.with_name(f"{path.name}.tmp") for path in behind]
    if not behind or any(_updates(partial) != newest for partial in partials):
        return
    for partial, path in zip(partials, behind, strict=True):
        os.replace(partial, path)
    logger.warning("completed the interrupted save of %s after %d updates", whole, newest)
