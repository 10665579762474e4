"""`zcode plan`: which form of parallelism a model needs on given machines."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING, Any

from zcode_plugin.checkpoint.config import FLOAT_BITS
from zcode_plugin.console import format_table, quiet_libraries
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of

if TYPE_CHECKING:
    from zcode_plugin.planning.forms import Form

# What training is told for each.
PRECISIONS = {
    "fp32": (),
    "fp16": ("--fp16", "--fp16-no-flatten-grads"),
    "bf16": ("--bf16",),
    "memory-efficient-fp16": ("--memory-efficient-fp16",),
    "memory-efficient-bf16": ("--memory-efficient-bf16",),
}
DESCRIPTION = """Compute what a model takes on each rank in each form of parallelism, what ranks
send each other, which forms fit, and the largest number of experts that does. Nothing is measured
on the machines that it is about; activations are those of a small model of the same layers."""
EPILOG = """What follows -- are flags of the model, as in training.

example:
  zcode plan --arch zcode_m3_10b --ranks 64 --memory 40
  zcode plan --arch zcode_m3_10b --ranks 512 --memory 40 --host-memory 128 \\
    -- --moe-expert-count 512
"""
GB = 1e9
_POSITIONS = 1024  # which training has by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.set_defaults(extra=[])
    add = parser.add_argument
    add("--arch", required=True, help="architecture, as in training")
    add("--ranks", type=int, required=True, metavar="W", help="GPUs, each with a rank of its own")
    add("--memory", type=float, required=True, metavar="GB", help="memory of each GPU")
    add(
        "--host-memory",
        type=float,
        default=0,
        metavar="GB",
        help="memory of the host for each rank (default: 0)",
    )
    _add_training_arguments(parser)
    add(
        "--expert-parallel-size",
        type=int,
        metavar="P",
        help="ranks of the experts (default: the most that divides W and the experts)",
    )
    add(
        "--model-parallel-size",
        type=int,
        metavar="T",
        help="ranks that share a sliced layer in the forms with M (default: 2, where it divides)",
    )
    add(
        "--checkpoint-activations",
        action="store_true",
        help="keep no activations within layers, as with this flag of fairseq",
    )
    add("--json", action="store_true", help="print one JSON object")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--vocabulary",
        type=int,
        default=128000,
        metavar="N",
        help="symbols of the dictionary (default: 128000)",
    )
    add(
        "--max-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of a rank's batch (default: 4096)",
    )
    add("--length", type=int, default=32, metavar="N", help="tokens of a sentence (default: 32)")
    add(
        "--precision",
        choices=[*PRECISIONS],
        default="fp16",
        metavar="TYPE",
        help=f"numbers of the training: {', '.join(PRECISIONS)} (default: fp16)",
    )


def run(args: argparse.Namespace) -> int:
    """Plan, and print."""
    with quiet_libraries():
        plan = _plan(args)
    if args.json:
        print(json.dumps(plan))
        return 0
    print(f"{args.arch}: {plan['parameters']:,} parameters, {plan['active']:,} of them of a token")
    print(format_table(_memory_rows(plan, args)))
    print(
        "GB of each rank, computed. Largest: experts of a layer, and billions of parameters of the "
        "model with so many."
    )
    print(format_table(_traffic_rows(plan)))
    for name, reason in plan["left_out"].items():
        print(f"left out: {name}: {reason}")
    fitting = [row for row in plan["forms"] if row["fits"]]
    if not fitting:
        print("no form fits: more ranks, fewer tokens, or --checkpoint-activations")
        return 1
    best = fitting[0]
    print(f"to run {best['form']}:")
    flags = shlex.join(best["flags"])
    print(f"  torchrun --nproc-per-node=... $(which fairseq-train) DATA {flags} ...")
    return 0


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    import zcode_plugin

    zcode_plugin.register()
    from zcode_plugin.planning import forms
    from zcode_plugin.planning.activations import measure_activations
    from zcode_plugin.planning.choice import possible_forms, refusal
    from zcode_plugin.planning.shapes import measure_shape

    _check_sizes(args)
    options = _model_options(args)
    try:
        shape = measure_shape(options, args.vocabulary)
        activations = measure_activations(options, args.length)
    except UserError:
        raise
    except Exception as error:  # of shapes that no model can have; what fairseq raises is open
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"flags of the model, after --: {what}") from error
    element = forms.ELEMENTS[args.precision]
    rows, left_out = [], {}
    for form in possible_forms(
        options,
        shape.expert_layers,
        args.ranks,
        args.expert_parallel_size,
        args.model_parallel_size,
    ):
        if reason := refusal(form, args.precision, options):
            left_out[form.name] = reason
            continue
        memory = forms.training_memory(
            shape, form, element, activations, args.vocabulary, args.max_tokens,
            args.checkpoint_activations,
        )  # fmt: skip
        fixed = memory.activations + memory.exchange
        device, host = args.memory * GB, args.host_memory * GB
        most = forms.largest_experts(shape, form, element, fixed, device, host)
        rows.append(
            {
                "form": form.name,
                "memory": vars(memory) | {"total": memory.total},
                "fits": memory.total <= device and memory.host <= host,
                "largest_experts": most,
                "largest_parameters": shape.with_experts(most).total if most else 0,
                "traffic": vars(forms.traffic(shape, form, element)),
                "flags": _flags(args, form),
            }
        )
    return {
        "parameters": shape.total, "active": shape.active, "forms": rows, "left_out": left_out,
    }  # fmt: skip


def _check_sizes(args: argparse.Namespace) -> None:
    for name in ("ranks", "vocabulary", "max_tokens", "length"):
        if getattr(args, name) < 1:
            raise UserError(f"{flag_of(name)} {getattr(args, name)} is too small")
    if args.length > _POSITIONS:
        raise UserError(f"--length {args.length}: a sentence has at most {_POSITIONS} tokens")


def _model_options(args: argparse.Namespace) -> argparse.Namespace:
    from fairseq.models.transformer import DEFAULT_MIN_PARAMS_TO_WRAP

    from zcode_plugin.models.architectures import ARCHITECTURES, fill
    from zcode_plugin.models.moe_transformer import MoETransformer

    if args.arch not in ARCHITECTURES:
        raise UserError(f"--arch {args.arch}: choose from {', '.join(ARCHITECTURES)}")
    parser = _ModelParser(argument_default=argparse.SUPPRESS, allow_abbrev=False)
    MoETransformer.add_args(parser)
    options = parser.parse_args(args.extra)
    for name in ("expert_parallel_size", "model_parallel_size", "checkpoint_activations"):
        if hasattr(options, name):
            raise UserError(f"give {flag_of(name)} before --, among the flags of zcode plan")
    if getattr(options, "moe_expert_bits", FLOAT_BITS) != FLOAT_BITS:
        raise UserError("--moe-expert-bits, after --: experts of few bits cannot be trained")
    options.arch = args.arch
    options.max_source_positions = options.max_target_positions = _POSITIONS
    fill(options, ARCHITECTURES[args.arch])
    least = getattr(options, "min_params_to_wrap", DEFAULT_MIN_PARAMS_TO_WRAP)
    options.min_params_to_wrap = 0 if args.checkpoint_activations else least  # as in training
    return options


class _ModelParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"flags of the model, after --: {message}")


def _flags(args: argparse.Namespace, form: Form) -> list[str]:
    flags = ["--user-dir", "zcode_plugin", "--task", "multitask_multilingual"]
    flags += ["--criterion", "multitask_summed_loss", "--arch", args.arch]
    flags += [*args.extra, *form.flags()]
    flags += ["--max-tokens", str(args.max_tokens), *PRECISIONS[args.precision]]
    return [*flags, "--checkpoint-activations"] if args.checkpoint_activations else flags


def _memory_rows(plan: dict[str, Any], args: argparse.Namespace) -> list[tuple[str, ...]]:
    names = ("parameters", "gradients", "optimizer", "gathered", "activations", "exchange")
    rows: list[tuple[str, ...]] = [("form", *names, "total", "host", "fits", "largest")]
    for row in plan["forms"]:
        memory = row["memory"]
        rows.append(
            (
                row["form"],
                *(f"{memory[name] / GB:.2f}" for name in (*names, "total", "host")),
                "yes" if row["fits"] else "no",
                f"{row['largest_experts']:,} ({row['largest_parameters'] / 1e9:,.0f})",
            )
        )
    return rows


def _traffic_rows(plan: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("form", "bytes per token and MoE layer", "per token and layer, slicing", "GB per update")
    ]
    for row in plan["forms"]:
        sent = row["traffic"]
        rows.append(
            (
                row["form"],
                f"{sent['exchange']:,.0f}",
                f"{sent['slicing']:,.0f}",
                f"{sent['update'] / GB:.3f}",
            )
        )
    return rows
