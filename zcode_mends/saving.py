"""Checkpoints appear under their names when they are whole, and those of all ranks together."""

from __future__ import annotations

import functools
import os
import re
import shutil
from types import ModuleType
from typing import Any

from zcode_mends.mend import Mend, always

_OF_A_RANK = re.compile(r"(?!crash-).+-(?:(?P<kind>rank|model_part)-\d+|shard\d+)\.pt")


def commit(partial: str, path: str) -> None:
    """Give a file that is whole its name; a rank's only when all ranks have written theirs.

    So, whenever processes are killed, the files under their names are all of the old save, or
    those that are lie beside a whole `.tmp` of the new one (`zcode_plugin.checkpoint.sets` gives
    them their names).
    """
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    of_a_rank = _OF_A_RANK.fullmatch(os.path.basename(path))
    if of_a_rank:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            # Of the ranks that hold the same slice, one alone saves: the first of each.
            is_part = of_a_rank["kind"] == "model_part"
            distributed.barrier(group=_tensor_group() if is_part else None)
    os.replace(partial, path)


def _tensor_group() -> Any:
    from fairseq.distributed import utils

    return utils.get_model_parallel_group()


def _name_of_crash(state: Any, path: str) -> str:
    """`crash.pt`, which stock lets all ranks write at once -> `crash-rank-1.pt`."""
    folder, name = os.path.split(path)
    if name != "crash.pt":
        return path
    suffix = state["cfg"]["checkpoint"]["checkpoint_suffix"] or ""
    return os.path.join(folder, f"crash{suffix}.pt")


def _save_whole_files(checkpoint_utils: ModuleType) -> None:
    stock: Any = checkpoint_utils.PathManager
    stock_save = checkpoint_utils.torch_persistent_save

    class PathManager(stock):
        @staticmethod
        def rename(src: str, dst: str) -> None:
            commit(src, dst)

        @staticmethod
        def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
            if not stock.supports_rename(dst_path):
                return stock.copy(src_path, dst_path, overwrite)
            partial = f"{dst_path}.tmp"
            shutil.copyfile(src_path, partial)
            commit(partial, dst_path)
            return dst_path

    @functools.wraps(stock_save)
    def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
        stock_save(obj, _name_of_crash(obj, filename), async_write)

    checkpoint_utils.PathManager = PathManager  # type: ignore[attr-defined]
    checkpoint_utils.torch_persistent_save = torch_persistent_save  # type: ignore[attr-defined]


WHOLE_CHECKPOINTS = Mend(
    name="whole-checkpoints",
    reason=(
        "stock copies checkpoint_last.pt over the file that stands there, so that a kill leaves a "
        "part of it; ranks that write a file each rename it as soon as their own is whole, so "
        "that a kill leaves a mixture of two saves; and all of them write the same crash.pt"
    ),
    is_needed=always,
    apply=_save_whole_files,
    after=("fairseq.checkpoint_utils",),
)
