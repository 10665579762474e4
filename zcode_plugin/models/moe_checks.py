"""Refuses values of MoE flags that cannot work, alone or together."""

from __future__ import annotations

import math
from argparse import Namespace

from zcode_plugin.checkpoint.config import FLOAT_BITS, asks_for_zero_sharding
from zcode_plugin.errors import UserError
from zcode_plugin.flags import first_given, flag_of, is_given
from zcode_plugin.models.layer_experts import LayerExperts
from zcode_plugin.models.moe_config import MoEConfig
from zcode_plugin.moe.quantised import LARGEST

SUMMED_LOSS = "multitask_summed_loss"

_LEAST = {"moe_top_k": 1, "expert_parallel_size": 1}
_BELOW_ONE = ("moe_jitter_eps", "moe_eom")


def check(moe: MoEConfig, layout: LayerExperts) -> None:
    """Refuse what cannot work, naming the flag.

    Raises:
        UserError: one line with the flag, its value and the remedy.
    """
    _check_ranges(moe)
    _check_bits(moe)
    _check_sampling(moe)
    _check_fixed_gate(moe)
    for side, counts in layout.items():
        for index, count in counts.items():
            if moe.moe_top_k > count:
                raise UserError(
                    f"--moe-top-k {moe.moe_top_k} is more than --moe-expert-count {count} of "
                    f"{side} layer {index + 1}: give at most as many"
                )


def check_precision(args: Namespace) -> None:
    """Refuse mixed precision that knows nothing of experts.

    Args:
        args: all options of the run.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if is_given(args, "amp"):
        raise UserError(
            "--amp cannot train experts, whose ranks would skip different updates: give --bf16 or "
            "--fp16"
        )


def check_base_layers(args: Namespace, spread: int) -> None:
    """Refuse stock's other experts, whose option is taken (see architectures.py).

    Args:
        args: all options of the run.
        spread: what `base_layers` will be; options that were filled before have it already.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if (asked := getattr(args, "base_layers", 0) or 0) not in (0, spread):
        raise UserError(
            f"--base-layers {asked} adds experts of another kind, which this model has none of: "
            "leave it out, --moe-freq and --moe-expert-count say which layers have experts"
        )


def check_parallel(args: Namespace) -> None:
    """Refuse stock's options that cannot work while ranks hold experts of their own.

    Args:
        args: all options of the run.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if args.encoder_layerdrop or args.decoder_layerdrop:
        raise UserError(
            "--encoder-layerdrop and --decoder-layerdrop drop different layers on different "
            "ranks, which would wait for each other's tokens: set them to 0 when "
            "--expert-parallel-size is more than 1"
        )
    if asks_for_zero_sharding(args):
        _check_zero_sharding(args)
    averaging = {
        "--use-bmuf": is_given(args, "use_bmuf"),
        "--ddp-backend slowmo": getattr(args, "ddp_backend", None) == "slowmo",
    }
    if flag := first_given(averaging):
        raise UserError(
            f"{flag} makes the weights of all ranks one, and with --expert-parallel-size "
            f"{args.expert_parallel_size} each has experts of its own: drop one of them"
        )


def check_task(args: Namespace, task: object) -> None:
    """Refuse a task that knows nothing of what ranks do not share.

    Args:
        args: all options of the run.
        task: that builds the model.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if getattr(task, "trains_experts", False):
        return
    sizes = {
        flag_of(name): getattr(args, name, None) or 1
        for name in ("expert_parallel_size", "model_parallel_size")
    }
    if flag := first_given({f"{flag} {size}": size > 1 for flag, size in sizes.items()}):
        raise UserError(
            f"{flag} needs --task multitask_multilingual, which scales and averages the gradients "
            "of what ranks do not share; tasks of stock would train something else"
        )


def left_out(args: Namespace, task: object, moe: MoEConfig) -> str | None:
    """What parts of stock leave out of the balance of experts, one line; None where nothing.

    Args:
        args: all options of the run.
        task: that trains the model.
        moe: its options.
    """
    if moe.balance == "bias" and not getattr(task, "trains_experts", False):
        return (
            "--moe-balance bias does nothing with a task of stock: --task multitask_multilingual "
            "moves the biases"
        )
    criterion = getattr(args, "criterion", None) or SUMMED_LOSS
    if moe.balance == "loss" and moe.gate_is_learned and criterion != SUMMED_LOSS:
        return (
            f"--criterion {criterion} leaves out the gate's losses, which keep the experts equally "
            f"busy: --criterion {SUMMED_LOSS} has them, with tasks of stock, too"
        )
    if not moe.gate_is_learned and is_given(args, "moe_z_loss_wt"):
        return f"--moe-z-loss-wt does nothing with --moe-gate {moe.moe_gate}, which has no scores"
    return None


def check_zero_has_ranks(args: Namespace) -> None:
    """Refuse stock's options that cannot work in a training of one process.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if asks_for_zero_sharding(args):
        raise UserError(
            f"--zero-sharding {args.zero_sharding} spreads the optimizer's state over ranks, and "
            "this run has one: leave it out"
        )


def _check_zero_sharding(args: Namespace) -> None:
    flags = {
        "--optimizer composite": getattr(args, "optimizer", None) == "composite",
        "--fp16-adam-stats": is_given(args, "fp16_adam_stats"),
        "--use-bmuf": is_given(args, "use_bmuf"),
    }
    if flag := first_given(flags):
        raise UserError(f"--zero-sharding {args.zero_sharding} and {flag}: drop one of them")


def check_zero_precision(args: Namespace) -> None:
    """Refuse `--zero-sharding` with weights in one tensor, of whatever ranks.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if not asks_for_zero_sharding(args):
        return
    apart = ("memory_efficient_fp16", "fp16_no_flatten_grads", "cpu")
    if is_given(args, "fp16") and not any(is_given(args, name) for name in apart):
        raise UserError(
            f"--zero-sharding {args.zero_sharding} needs the weights apart, which --fp16 makes one "
            "tensor: add --fp16-no-flatten-grads or --memory-efficient-fp16"
        )


def _check_ranges(moe: MoEConfig) -> None:
    for name in moe.__dataclass_fields__:
        value = getattr(moe, name)
        bound = _LEAST.get(name, 0)
        if isinstance(value, (int, float)) and not bound <= value < math.inf:
            kind = "too small" if value < bound else "no finite number"
            raise UserError(f"{flag_of(name)} {value} is {kind}: give at least {bound}")
    for name in _BELOW_ONE:
        if getattr(moe, name) >= 1:
            raise UserError(f"{flag_of(name)} {getattr(moe, name)} must be less than 1")
    if moe.moe_gating_dropout > 1:
        raise UserError(f"--moe-gating-dropout {moe.moe_gating_dropout} must be at most 1")


def _check_bits(moe: MoEConfig) -> None:
    bits = moe.moe_expert_bits
    if bits not in (FLOAT_BITS, *LARGEST):
        raise UserError(f"--moe-expert-bits {bits}: give {FLOAT_BITS}, 8 or 4")
    if bits != FLOAT_BITS and moe.expert_parallel_size > 1:
        raise UserError(
            f"--moe-expert-bits {bits} is for translation in one process: give "
            "--expert-parallel-size 1"
        )


def _check_sampling(moe: MoEConfig) -> None:
    if str(moe.moe_second_expert_policy) == "sampling":
        if moe.moe_top_k < 2:
            raise UserError(
                f"--moe-second-expert-policy sampling needs a second expert, but --moe-top-k is "
                f"{moe.moe_top_k}: give --moe-top-k 2 or drop the policy"
            )
        if moe.balance == "bias":
            raise UserError(
                "--moe-balance bias steers the choice by score and --moe-second-expert-policy "
                "sampling draws it: drop one of them"
            )


def _check_fixed_gate(moe: MoEConfig) -> None:
    """A gate that learns nothing has no scores."""
    if moe.gate_is_learned:
        return
    contradictions = {
        "--moe-balance bias": moe.balance == "bias",
        "--moe-second-expert-policy sampling": str(moe.moe_second_expert_policy) == "sampling",
        "--moe-token-priority gate": str(moe.moe_token_priority) == "gate",
        "--moe-batch-prioritized-routing": moe.moe_batch_prioritized_routing,
        "--moe-gate-sees-token": moe.moe_gate_sees_token,
    }
    if flag := first_given(contradictions):
        raise UserError(
            f"{flag} needs the scores of a learned gate, --moe-gate {moe.moe_gate} has none: "
            "drop one of them"
        )
