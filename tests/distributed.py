"""Runs a function on several gloo ranks of this machine."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def _rank_main(
    function: Callable[..., Any], rank: int, world: int, directory: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    # A rank that ends at once would close connections that others are about to make.
    dist.barrier()
    try:
        torch.save(function(rank, *args), f"{directory}/result-{rank}")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise
    finally:
        dist.destroy_process_group()


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """`function(rank, *args)` on `world` forked processes; what each returned, by rank.

    Raises:
        RuntimeError: a rank failed; its traceback is on standard error.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as directory:
        ranks = [
            context.Process(target=_rank_main, args=(function, rank, world, directory, args))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        failed = [rank for rank, process in enumerate(ranks) if process.exitcode]
        if failed:
            raise RuntimeError(f"ranks {failed} failed")
        paths = [Path(directory) / f"result-{rank}" for rank in range(world)]
        return [torch.load(path, weights_only=True) for path in paths]
