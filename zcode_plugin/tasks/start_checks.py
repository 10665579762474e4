"""Refuses options of a training that the task cannot do, instead of leaving them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zcode_plugin.checkpoint.config import FLOAT_BITS
from zcode_plugin.data.objectives import MASKED
from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.flags import first_given, flag_of, is_given
from zcode_plugin.models.moe_checks import check_zero_has_ranks, check_zero_precision
from zcode_plugin.models.sliced_checks import check_slices_have_ranks
from zcode_plugin.moe import MOELayer
from zcode_plugin.parallel.topology import check_sizes, world_size

# torch's DistributedDataParallel, stock's default.
DDP = ("pytorch_ddp", "c10d")
# Options of stock that joint batches of several objectives know nothing of, and what to do instead.
_REMEDIES = {
    "sentence_avg": "losses are means over targets: leave it out",
    "combine_valid_subsets": "name the subsets, which are validated one by one: --valid-subset "
    "valid,valid1",
    "curriculum": "joint batches are in random order from the start: leave it out",
    "grouped_shuffling": "joint batches are in random order: leave it out",
}


def check_options(options: Any, objectives: Sequence[str], direction: Pair | None) -> None:
    """Look at options before the model is built.

    Args:
        options: of the run.
        objectives: names.
        direction: of `-s` and `-t`.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if direction is not None:
        raise UserError(
            f"-s {direction.src} -t {direction.tgt} name a direction to translate: to train "
            f"on it alone give --lang-pairs {direction}"
        )
    for name, remedy in _REMEDIES.items():
        value = getattr(options, name, None)
        if value:
            given = "" if value is True else f" {_shown(value)}"
            raise UserError(f"{flag_of(name)}{given}: {remedy}")
    bits = getattr(options, "moe_expert_bits", FLOAT_BITS)
    if bits != FLOAT_BITS:
        raise UserError(
            f"--moe-expert-bits {bits} cannot be trained: leave it out, and make the checkpoint "
            f"smaller afterwards with zcode quantise --bits {bits}"
        )
    if world_size() == 1:
        check_slices_have_ranks(options)
        check_sizes(getattr(options, "expert_parallel_size", 1), 1, _counts(options))
        check_zero_has_ranks(options)
    _check_optimizer(options)
    check_zero_precision(options)
    _check_backend(options, objectives)


def _check_optimizer(options: Any) -> None:
    backend = getattr(options, "ddp_backend", None)
    if is_given(options, "cpu_offload") and backend != "fully_sharded":
        raise UserError(
            "--cpu-offload needs --ddp-backend fully_sharded, which holds weights in shards"
        )
    if (
        getattr(options, "optimizer", None) == "composite"
        and getattr(options, "moe_balance", None) == "bias"
    ):
        raise UserError(
            "--moe-balance bias cannot follow --optimizer composite, which has no step of its own: "
            "give --moe-balance loss"
        )


def check_model(options: Any, model: Any, objectives: Sequence[str]) -> None:
    """Look at what a model cannot do for the objectives, and at what does not go with experts.

    Raises:
        UserError: one line with the flag and the remedy.
    """
    if getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None:
        raise UserError(
            f"--adaptive-softmax-cutoff {_shown(options.adaptive_softmax_cutoff)}: losses need the "
            "scores of all symbols: leave it out"
        )
    masked = [name for name in objectives if name in MASKED]
    if masked and not hasattr(model, "heads"):
        raise UserError(
            f"--arch {options.arch} has no head for {masked[0]}: take one of moe_transformer, or "
            f"leave {masked[0]} out of --multitask"
        )
    if not any(isinstance(module, MOELayer) for module in model.modules()):
        return
    for kind in ("pq", "scalar"):
        value = getattr(options, f"quant_noise_{kind}", 0)
        if value > 0:
            raise UserError(
                f"--quant-noise-{kind} {value} knows nothing of experts: leave it out, and make "
                "the checkpoint smaller afterwards with zcode quantise"
            )
    trained = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    dropout = getattr(options, "moe_gating_dropout", 0)
    skipped: tuple[str, ...] = (".gate.",)
    what = "gates"
    if getattr(options, "moe_gating_dropout_policy", "local") == "skip":
        skipped, what = (".gate.", ".experts."), "gates and experts"
    if dropout and all(any(part in f".{name}" for part in skipped) for name in trained):
        raise UserError(
            f"--moe-gating-dropout {dropout} leaves an update without a gate nothing to train, and "
            f"{what} alone are trained: set it to 0"
        )
    is_shared = any(not hasattr(parameter, "expert") for parameter in trained.values())
    if world_size() > 1 and not is_shared and getattr(options, "ddp_backend", None) in DDP:
        raise UserError(
            f"--ddp-backend {options.ddp_backend} needs parameters that all ranks share, and "
            "experts alone are trained: give --ddp-backend legacy_ddp"
        )


def _check_backend(options: Any, objectives: Sequence[str]) -> None:
    """Refuse torch's DDP where passes of an update use different parts of the model.

    DDP takes the parameters that the last pass does not use for done, and fails when the gradients
    of an earlier pass reach them. Activations that are computed anew in each pass make it take a
    parameter for done once a pass.

    Args:
        options: of the run.
        objectives: names.

    Raises:
        UserError: naming the backend that works.
    """
    backend = getattr(options, "ddp_backend", None)
    if world_size() == 1 or backend not in DDP:
        return
    apart = [name for name in objectives if name in MASKED]
    instead = "give --ddp-backend legacy_ddp"
    finds = is_given(options, "find_unused_parameters")
    sometimes_unused = {
        "--moe-gating-dropout, which leaves gates": is_given(options, "moe_gating_dropout"),
        "--encoder-layerdrop, which leaves layers": is_given(options, "encoder_layerdrop"),
        "--decoder-layerdrop, which leaves layers": is_given(options, "decoder_layerdrop"),
    }
    flag = first_given(sometimes_unused)
    if flag and (len(objectives) > 1 or not finds):
        only = len(objectives) == 1
        raise UserError(
            f"--ddp-backend {backend} cannot train with {flag} unused in some passes: {instead}"
            + (", or add --find-unused-parameters" if only else "")
        )
    if apart and len(objectives) > 1:
        other = next(name for name in objectives if name != apart[0])
        raise UserError(
            f"--ddp-backend {backend} cannot train {apart[0]}, which has no decoder, beside "
            f"{other}: {instead}"
        )
    if apart and not finds:
        raise UserError(
            f"--ddp-backend {backend} cannot train {apart[0]} alone, which leaves the decoder "
            f"unused: {instead}, or add --find-unused-parameters"
        )
    anew = {
        "--checkpoint-activations": is_given(options, "checkpoint_activations"),
        "--offload-activations": is_given(options, "offload_activations"),
    }
    if len(objectives) > 1 and (flag := first_given(anew)):
        raise UserError(
            f"--ddp-backend {backend} cannot train {len(objectives)} objectives with {flag}: "
            f"{instead}"
        )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _counts(options: Any) -> list[int]:
    """The numbers of experts, as far as they are numbers: `--moe-expert-count`."""
    parts = str(getattr(options, "moe_expert_count", "")).split(",")
    return [int(part) for part in parts if part.isdecimal()]
