"""Sets of files that a save left: completed where it was interrupted, found where one is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.layout import Layout
from zcode_plugin.errors import UserError

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pt"  # stock's default of --restore-file, a name in --save-dir


def start_name(options: Any) -> Path:
    """The checkpoint that a run with these options goes on from, if it is there.

    Args:
        options: `save_dir` among them.

    Returns:
        Its name without a rank or shard.
    """
    restore = config.get(options, "restore_file", LAST)
    if restore != LAST:
        return Path(restore)
    last = Path(config.get(options, "save_dir"), LAST)
    once = config.get(options, "continue_once")
    return Path(once) if once and first_file(last) is None else last


def first_file(whole: Path) -> Path | None:
    """A file of a checkpoint in whatever layout, by its name without a rank or shard."""
    if whole.is_file():
        return whole
    files = [*names.find_rank_files(whole).values(), *names.find_shards(whole).values()]
    return next(iter(files), None)


def finish_save(whole: Path, paths: Sequence[Path]) -> None:
    """Complete a save that ended while its files got their names; see `zcode_mends.saving`.

    Args:
        whole: their name without a rank, for the log.
        paths: of all ranks.

    All files were whole then. Those that have no name yet are those of the newest update, under
    their temporary names; a mixture that is anything else stays as it is.
    """
    if not any(names.unfinished(path).exists() for path in paths):
        return  # nothing need be read
    updates = dict.fromkeys(paths, -1)
    for path in updates:
        if path.is_file():
            found = _updates(path)
            updates[path] = -1 if found is None else found
    newest = max(updates.values())
    behind = [path for path, number in updates.items() if number < newest]
    partials = [names.unfinished(path) for path in behind]
    if not behind or any(_updates(partial) != newest for partial in partials):
        return
    for partial, path in zip(partials, behind, strict=True):
        os.replace(partial, path)
    logger.warning("completed the interrupted save of %s after %d updates", whole, newest)


def other_set(whole: Path, layout: Layout) -> str:
    """Words that name the newest whole set beside `whole`, empty where there is none."""
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
