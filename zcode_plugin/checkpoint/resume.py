"""Looks at the checkpoint that a training run is about to start from, before stock loads it.

Stock asks each rank for its own file alone. A rank that finds none starts with random experts
beside others that resume, and files of other updates, runs or numbers of ranks are mixed without a
word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from zcode_plugin.checkpoint import config, io, names, vocabulary, zero_parts
from zcode_plugin.checkpoint.checks import check_name, check_ranks, check_same_save
from zcode_plugin.checkpoint.fully_sharded import check_shards
from zcode_plugin.checkpoint.layout import Layout
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.sets import LAST, finish_save, other_set, start_name
from zcode_plugin.checkpoint.slices import sliced_dim
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.topology import world_size


def check_start(options: Any, symbols: Sequence[str], trained: Sequence[str] = ()) -> Path | None:
    """Refuse a checkpoint that this run must not start from; every rank must call it.

    A save that was interrupted while its files got their names is completed. The first rank looks
    for all.

    Args:
        options: of the run; fairseq hands a model without a dataclass all of them.
        symbols: its vocabulary.
        trained: names of its parameters; empty where they are not those of checkpoints.

    Returns:
        The file of `--finetune-from-model` where it is what the run starts from.

    Raises:
        UserError: on every rank, the same one.
    """
    if config.get(options, "save_dir") is None:
        return None
    world = world_size()
    several = world > 1
    problem, pretrained = None, None
    if not several or dist.get_rank() == 0:
        try:
            pretrained = _check(options, world, symbols, trained)
        except UserError as error:
            problem = str(error)
    if several:
        found = [problem, pretrained]
        dist.broadcast_object_list(found, src=0)
        problem, pretrained = found
    if problem is not None:
        raise UserError(problem)
    return None if pretrained is None else Path(pretrained)


def _check(options: Any, world: int, symbols: Sequence[str], trained: Sequence[str]) -> str | None:
    restore, whole = config.get(options, "restore_file", LAST), start_name(options)
    layout = Layout.of_run(options, world)
    is_sharded = config.get(options, "use_sharded_state")
    once = config.get(options, "continue_once")
    if once and whole == Path(once):
        if is_sharded or len(layout.paths(whole)) > 1:
            raise UserError(
                f"--continue-once {whole} is read by all ranks alike, and here each has a file of "
                "its own: name it as --restore-file"
            )
        if not whole.is_file():
            raise UserError(f"--continue-once {whole}: there is no such checkpoint")
    if is_sharded:
        _check_restore_name(whole, restore)
        found = _check_shards(options, whole, layout)
        if found is not None:
            _check_contents(options, *found, symbols, trained)
        return None
    paths = layout.paths(whole)
    if len(paths) > 1:
        _check_restore_name(whole, restore)
        finish_save(whole, paths)
    files = {
        rank: path
        for rank, path in names.find_rank_files(paths[0]).items()
        if names.is_part(path) == names.is_part(paths[0])
    }
    if not (files if len(paths) > 1 else whole.is_file()):
        return _check_first_start(options, whole, layout)
    if len(paths) > 1:
        first, state = _check_ranks_files(options, whole, files, layout)
    else:
        first, state = whole, io.load_options(whole)
    _check_contents(options, first, state, symbols, trained)
    return None


def _check_contents(
    options: Any,
    first: Path,
    state: Mapping[str, Any],
    symbols: Sequence[str],
    trained: Sequence[str],
) -> None:
    config.check_not_quantised(state, first, "to train on")
    if not config.get(options, "reset_optimizer"):
        if not state.get("last_optimizer_state"):
            raise UserError(
                f"{first} holds no optimizer's state, as after zcode merge or "
                "--no-save-optimizer-state: add --reset-optimizer to begin with a new one"
            )
        _check_trained(first, state, trained)
    _check_averages(options, first, state)
    vocabulary.check_same(state, symbols, str(first), "start from it with --finetune-from-model")


def _check_trained(first: Path, state: Mapping[str, Any], trained: Sequence[str]) -> None:
    """The optimizer's state is of these parameters: it knows them by their numbers alone."""
    saved = (state.get("task_state") or {}).get("parameters") or ()
    if not saved or not trained:
        return
    for name in sorted({*saved} ^ {*trained}):
        which = "trained" if name in saved else "did not train"
        raise UserError(
            f"{first} is of a run that {which} {name}, unlike this one, as after another "
            "--freeze-except or --multitask: add --reset-optimizer to begin with a new one"
        )


def _check_averages(options: Any, path: Path, state: Mapping[str, Any]) -> None:
    if config.get(options, "store_ema") and "ema" not in (state.get("extra_state") or {}):
        raise UserError(
            f"--store-ema: {path} holds no averages for stock to go on from: leave the flag out"
        )


def _check_float_averages(
    options: Any, path: Path, state: Mapping[str, Any], layout: Layout
) -> None:
    """Stock takes these as they are in the file, of all experts and whole layers."""
    has_them = "ema_fp32_params" in (state.get("extra_state") or {})
    if (
        has_them
        and config.get(options, "ema_fp32")
        and (layout.expert_parallel > 1 or layout.tensor_parallel > 1)
    ):
        raise UserError(
            f"--ema-fp32: the averages in {path} are of all experts and whole layers, which a rank "
            "has not: leave the flag out"
        )


def _check_shards(options: Any, whole: Path, layout: Layout) -> tuple[Path, dict[str, Any]] | None:
    """With `--use-sharded-state`: the first shard of a whole set; None at a first start."""
    finish_save(whole, layout.shards(whole))
    found = names.find_shards(whole)
    if found:
        first = found[0] if 0 in found else next(iter(found.values()))
        state = check_shards(list(found.values()))
        saved = Layout.of_checkpoint(state)
        if (saved.world, saved.expert_parallel) != (layout.world, layout.expert_parallel):
            raise UserError(
                f"{first} is of a run with --use-sharded-state on {saved.world} ranks with "
                f"--expert-parallel-size {saved.expert_parallel}, and this one has {layout.world} "
                f"and {layout.expert_parallel}: go on with as many, or without --use-sharded-state "
                f"after {layout.reshard(first)}"
            )
        return first, state
    files = [whole] if whole.is_file() else list(names.find_rank_files(whole).values())
    if files or _is_named(options, whole) or config.get(options, "finetune_from_model"):
        what = files[0] if files else config.get(options, "finetune_from_model") or whole
        raise UserError(
            f"{what} is no shard, and --use-sharded-state starts from shards alone, which nothing "
            "else makes: leave it out"
        )
    return None


def _check_restore_name(whole: Path, restore: str) -> None:
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


def _check_first_start(options: Any, whole: Path, layout: Layout) -> str | None:
    """There is no checkpoint of this layout; without finetuning nor may there be one of another.

    Returns:
        The file to finetune.
    """
    for shard in names.find_shards(whole).values():
        raise UserError(
            f"{shard} and the like are of a run with --use-sharded-state: add that, or join them "
            f"with {layout.reshard(shard)}"
        )
    pretrained = config.get(options, "finetune_from_model")
    is_named = _is_named(options, whole)
    if pretrained is not None and not is_named:
        if not Path(pretrained).is_file():
            in_ranks = names.find_rank_files(Path(pretrained))
            remedy = "join its rank files with zcode merge" if in_ranks else "name another"
            raise UserError(f"--finetune-from-model {pretrained}: there is no such file; {remedy}")
        state = io.load_options(Path(pretrained))
        config.check_not_quantised(state, Path(pretrained), "to train on")
        _check_averages(options, Path(pretrained), state)
        _check_float_averages(options, Path(pretrained), state, layout)
        return str(pretrained)
    _check_no_other_layout(whole, layout)
    if is_named:
        raise UserError(f"--restore-file {whole}: there is no such checkpoint")
    return None


def _is_named(options: Any, whole: Path) -> bool:
    """Whether `--restore-file` asks for this checkpoint, rather than for whatever there is.

    Scripts that start a run again name `checkpoint_last.pt` of its own folder, the first time too.
    """
    own = Path(config.get(options, "save_dir"), LAST)
    return config.get(options, "restore_file", LAST) != LAST and whole.resolve() != own.resolve()


def _check_no_other_layout(whole: Path, layout: Layout) -> None:
    """There are no files of another layout, beside which stock would begin anew."""
    files = names.find_rank_files(whole)
    if whole.is_file():
        raise UserError(
            f"{whole} is one file for all ranks, but with {layout.flags} each "
            f"has its own: divide it with {layout.reshard(whole)}, or start from its weights "
            "alone with --finetune-from-model"
        )
    for first in files.values():
        raise UserError(
            f"{first} and the like are of a run whose ranks had different experts or slices, and "
            f"this one has {layout.flags}: {layout.reshard(first)}"
        )


def _check_ranks_files(
    options: Any, whole: Path, files: Mapping[int, Path], layout: Layout
) -> tuple[Path, dict[str, Any]]:
    """The files are all ranks' of one save of this layout; the first of them and what is in it."""
    first = next(iter(files.values()))
    state = io.load_options(first)
    _check_same_layout(whole, first, Layout.of_checkpoint(state), layout)
    with _naming_another_set(whole, layout):
        check_ranks(list(files.values()), state)
    shared = _shared_vectors(state)
    sharded = config.asks_for_zero_sharding(options)
    for rank, path in files.items():
        part = state if path == first else io.load_options(path)
        with _naming_another_set(whole, layout):
            check_same_save(state, first, part, path)
            check_name(part, path)
            for key, value in _shared_vectors(part).items():
                if not bit_equal(value, shared.get(key)):
                    raise UserError(
                        f"{path} is of another run than {first}: their {key} differ; put the file "
                        "of this run in its place"
                    )
        if layout.expert_parallel > 1 and not config.get(options, "reset_optimizer"):
            zero_parts.check_start(
                part,
                path,
                world=layout.world,
                expert_parallel=layout.expert_parallel,
                rank=rank,
                sharded=sharded,
            )
    return first, state


def _check_same_layout(whole: Path, first: Path, saved: Layout, layout: Layout) -> None:
    if saved.tensor_parallel != layout.tensor_parallel:
        raise UserError(
            f"{first} is of a run with --model-parallel-size {saved.tensor_parallel}, and this one "
            f"has {layout.tensor_parallel}: divide it anew with {layout.reshard(whole)}"
        )
    # Ranks that only see other data have no files of their own.
    sizes = (saved.world, saved.expert_parallel), (layout.world, layout.expert_parallel)
    if sizes[0] != sizes[1] and not names.is_part(first):
        raise UserError(
            f"{first} is of a run on {saved.world} ranks with --expert-parallel-size "
            f"{saved.expert_parallel}, and this one has {layout.world} and "
            f"{layout.expert_parallel}: divide it anew with {layout.reshard(whole)}"
        )


@contextmanager
def _naming_another_set(whole: Path, layout: Layout) -> Iterator[None]:
    """Errors of this block tell of the newest whole set beside, too."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{other_set(whole, layout)}") from None


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
