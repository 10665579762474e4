"""Refuses what cannot work with `--ddp-backend fully_sharded`."""

from __future__ import annotations

from argparse import Namespace

import torch

from zcode_plugin.checkpoint.config import asks_for_zero_sharding
from zcode_plugin.errors import UserError
from zcode_plugin.flags import is_given
from zcode_plugin.models.moe_config import MoEConfig


def check_fully_sharded(args: Namespace, moe: MoEConfig) -> None:
    """Refuse what cannot work with `--ddp-backend fully_sharded`.

    Args:
        args: all options of the run.
        moe: those of the model.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    for flags, (given, reason) in _refused(args, moe).items():
        if given:
            raise UserError(f"{flags} cannot go with --ddp-backend fully_sharded: {reason}")


def _refused(args: Namespace, moe: MoEConfig) -> dict[str, tuple[bool, str]]:
    """Flags: whether they are given, and why they cannot work or what to give instead."""
    drops_gradients = (
        is_given(args, "cpu_offload")
        and torch.cuda.is_available()
        and not is_given(args, "cpu")
        and max(getattr(args, "update_freq", None) or [1]) > 1
    )
    return {
        "--bf16 and --memory-efficient-bf16": (
            is_given(args, "bf16") or is_given(args, "memory_efficient_bf16"),
            "stock's trainer knows it in no half precision but fp16: give --fp16",
        ),
        "--memory-efficient-fp16": (
            is_given(args, "memory_efficient_fp16"),
            "fairscale takes no weights in float32 then, which is what they are made in: give "
            "--fp16 alone",
        ),
        "--not-fsdp-flatten-parameters": (
            is_given(args, "not_fsdp_flatten_parameters"),
            "no state of the optimizer could be saved: leave it out",
        ),
        "--amp": (
            is_given(args, "amp"),
            "ranks would find infinities in their own shards alone, and skip different updates: "
            "give --fp16",
        ),
        "--heartbeat-timeout": (
            getattr(args, "heartbeat_timeout", -1) > 0,
            "its wrapper hides the shards: give --distributed-timeout instead",
        ),
        "--no-last-checkpoints": (
            is_given(args, "no_last_checkpoints")
            and moe.expert_parallel_size == 1
            and not is_given(args, "use_sharded_state"),
            "where nothing is saved the first rank does not gather what all others wait for: leave "
            "it out",
        ),
        "--encoder-layerdrop and --decoder-layerdrop": (
            is_given(args, "encoder_layerdrop") or is_given(args, "decoder_layerdrop"),
            "ranks would drop different layers, whose shards all of them hold: leave them out",
        ),
        "--zero-sharding os": (
            asks_for_zero_sharding(args),
            "it spreads the optimizer's state, and more, itself: leave it out",
        ),
        "--optimizer adafactor, adagrad and lamb": (
            getattr(args, "optimizer", None) in ("adafactor", "adagrad", "lamb"),
            "stock takes none of them for flat shards: give adam",
        ),
        "--store-ema": (
            is_given(args, "store_ema"),
            "a copy would need shards of its own: leave it out",
        ),
        "--eval-bleu": (
            is_given(args, "eval_bleu"),
            "ranks translate in different numbers of steps, and each step needs the shards of all: "
            "leave it out, and use zcode evaluate",
        ),
        "--check-replicas": (
            is_given(args, "check_replicas"),
            "no rank holds what another one does: leave it out",
        ),
        "--freeze-except": (
            moe.freeze_except is not None,
            "a shard is trained as a whole or not at all: leave it out, or take another backend",
        ),
        "--fp16 and --moe-balance bias": (
            is_given(args, "fp16") and moe.balance == "bias",
            "fairscale makes the bias half a precision too, which its steps are lost in: give "
            "--moe-balance loss",
        ),
        "--cpu-offload and --update-freq": (
            drops_gradients,
            "on a GPU fairscale keeps the gradients of the last batch of an update alone: leave "
            "one out",
        ),
    }
