"""Refuses what tensor slicing (`--model-parallel-size`) cannot do."""

from __future__ import annotations

from typing import Any

from zcode_plugin.checkpoint.config import asks_for_zero_sharding
from zcode_plugin.checkpoint.slices import check_divides
from zcode_plugin.errors import UserError
from zcode_plugin.flags import first_given, is_given


def check_sliced(args: Any) -> None:
    """Refuse options that slices know nothing of.

    Args:
        args: all options of the run.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    size = args.model_parallel_size
    check_divides(args, size)
    refused = {
        "--zero-sharding": asks_for_zero_sharding(args),
        "--use-sharded-state": is_given(args, "use_sharded_state"),
        "--adaptive-softmax-cutoff": getattr(args, "adaptive_softmax_cutoff", None) is not None,
        "--adaptive-input": is_given(args, "adaptive_input"),
        "--amp": is_given(args, "amp"),
        "--use-bmuf": is_given(args, "use_bmuf"),
        "--ddp-backend slowmo": getattr(args, "ddp_backend", None) == "slowmo",
        "--quant-noise-pq": getattr(args, "quant_noise_pq", 0) > 0,
        "--scale-fc": is_given(args, "scale_fc"),
        "--encoder-xformers-att-config and --decoder-xformers-att-config": any(
            getattr(args, f"{side}_xformers_att_config", None) for side in ("encoder", "decoder")
        ),
    }
    if flag := first_given(refused):
        raise UserError(
            f"{flag} cannot go with --model-parallel-size {size}, whose slices know nothing of "
            "it: drop one of them"
        )
    if getattr(args, "keep_best_checkpoints", -1) > 0 and args.expert_parallel_size == 1:
        # Which stock looks for behind the last "_" of a name, and "-model_part-0" has one.
        raise UserError(
            f"--keep-best-checkpoints cannot go with --model-parallel-size {size}: stock does not "
            "find the score in the names of slices: leave it out, checkpoint_best is written anyhow"
        )


def check_slices_have_ranks(args: Any) -> None:
    """Refuse slices without ranks to hold them.

    Raises:
        UserError: naming the flag.
    """
    size = getattr(args, "model_parallel_size", 1)
    if size > 1:
        raise UserError(
            f"--model-parallel-size {size} needs a multiple of {size} ranks, this is one process: "
            "start it with torchrun, or drop the flag"
        )
