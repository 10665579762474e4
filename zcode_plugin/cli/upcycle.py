"""`zcode upcycle`: a dense checkpoint becomes one with experts."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zcode_plugin.cli.outputs import add_output_arguments, check_output
from zcode_plugin.console import count, format_table, step
from zcode_plugin.errors import UserError
from zcode_plugin.flags import flag_of

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.upcycle import Dense

DESCRIPTION = """Make a Mixture-of-Experts checkpoint of a dense one (sparse upcycling): each expert
is a copy of the layer's feed-forward network, the gates are new. Before it is trained on it
translates as the dense model did. DENSE is a checkpoint of moe_transformer_*_dense, or of
stock's transformer."""
EPILOG = """Without --with-optimizer, train on with --finetune-from-model FILE.pt and the flags that
are printed; with it, with --restore-file FILE.pt.

example:
  zcode upcycle checkpoints/checkpoint_best.pt --experts 8 --out moe.pt
  zcode upcycle dense.pt --experts 16 --encoder-moe-freq 3 --out moe.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="DENSE", help="a file, or any rank's, or without a rank")
    add(
        "--experts",
        required=True,
        metavar="E",
        help="experts of each MoE layer, or a number for each, encoder first: 8,16",
    )
    add("--moe-freq", type=int, default=2, metavar="N", help="every N-th layer (default: 2)")
    for side in ("encoder", "decoder"):
        add(f"--{side}-moe-freq", type=int, metavar="N", help=f"the same for the {side} alone")
    add("--top-k", type=int, default=1, metavar="K", help="experts per token (default: 1)")
    add(
        "--noise",
        type=float,
        default=0.0,
        metavar="STD",
        help="add normal noise to each expert, its deviation STD times that of the weights "
        "(default: 0)",
    )
    add("--seed", type=int, default=1, help="seed of gates and noise (default: 1)")
    add(
        "--with-optimizer",
        action="store_true",
        help="keep the optimizer's state, each expert with a copy, to go on with the run",
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Upcycle and print a table of before and after."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.gather import find_files
    from zcode_plugin.checkpoint.tensors import count_parameters, weights
    from zcode_plugin.checkpoint.upcycle import Recipe, read_dense, upcycle

    _check_numbers(args)
    files = find_files(args.checkpoint)
    check_output(args.out, files, force=args.force)
    with step(f"read {count(len(files), 'file')}") as current, io.well_formed(files[0]):
        dense = read_dense(files, with_optimizer=args.with_optimizer)
        current.detail = str(files[0])
    with step("upcycle") as current, io.well_formed(files[0]):
        before = count_parameters(dense.state["model"])
        experts, flags = _set_options(dense, args)
        upcycle(dense, Recipe(experts, args.noise, args.seed))
        current.detail = count(len(experts), "layer")
    after = count_parameters(dense.state["model"])
    with step("write 1 file") as current:
        written = io.save(dense.state, args.out)
        current.detail = str(args.out)
    rows = [
        ("", "before", "after"),
        ("MoE layers", "0", f"{len(experts)}"),
        ("experts of a layer", "1", ", ".join(map(str, sorted(set(experts.values()))))),
        ("experts of a token", "1", f"{args.top_k}"),
        ("parameters", f"{before:,}", f"{after:,}"),
        ("bytes", f"{sum(path.stat().st_size for path in files):,}", f"{written:,}"),
    ]
    print(format_table(rows))
    if len(weights(dense.state)) > 1:
        print("the averaged weights (--store-ema) have experts, too, with the same gates")
    start = "--restore-file" if args.with_optimizer else "--finetune-from-model"
    print(f"to train on: fairseq-train ... {start} {args.out} {shlex.join(flags)}")
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    if not (math.isfinite(args.noise) and args.noise >= 0):
        raise UserError(f"--noise {args.noise} must be a number of at least 0")
    for name in ("moe_freq", "encoder_moe_freq", "decoder_moe_freq"):
        if (getattr(args, name) or 0) < 0:
            raise UserError(f"{flag_of(name)} {getattr(args, name)} is too small: give at least 0")


def _set_options(dense: Dense, args: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    """The stored options become those of the model with experts.

    Returns:
        Experts by the name of the layer, and flags with which fairseq-train builds the model.
    """
    import zcode_plugin
    from zcode_plugin.checkpoint import config

    zcode_plugin.register()
    from zcode_plugin.models.stored import as_namespace, training_flags, with_experts

    moe = {
        "moe_freq": args.moe_freq,
        "encoder_moe_freq": args.encoder_moe_freq,
        "decoder_moe_freq": args.decoder_moe_freq,
        "moe_expert_count": args.experts,
        "moe_top_k": args.top_k,
        # So that equal experts give what the dense network gave.
        "moe_normalize_gate_prob": "true",
    }
    options = with_experts(as_namespace(config.section(dense.state, "model")), moe)
    experts = _layout(options, dense.layers)
    config.replace_model(dense.state, options)
    world = config.world_size(dense.state)
    config.set_layout(dense.state, world, expert_parallel=1, rank=0)
    return experts, training_flags(options)


def _layout(options: Any, layers: dict[str, int]) -> dict[str, int]:
    """Experts by the name of the layer.

    Raises:
        UserError: a number that cannot be, under the name of this verb's own flag.
    """
    from zcode_plugin.models.layer_experts import layer_experts
    from zcode_plugin.models.moe_checks import check
    from zcode_plugin.models.moe_config import MoEConfig

    for side, number in layers.items():
        stored = getattr(options, f"{side}_layers")
        if stored != number:
            raise UserError(
                f"the checkpoint holds {number} layers of the {side} and its options say {stored}"
            )
    moe = MoEConfig.from_namespace(options)
    try:
        layout = layer_experts(moe, layers["encoder"], layers["decoder"])
        check(moe, layout)
    except UserError as error:
        message = str(error).replace("--moe-expert-count", "--experts")
        raise UserError(message.replace("--moe-top-k", "--top-k")) from None
    experts = {
        f"{side}.layers.{index}": number
        for side, counts in layout.items()
        for index, number in counts.items()
    }
    if not experts:
        raise UserError(
            f"--moe-freq leaves no MoE layer: the encoder has {layers['encoder']} layers and the "
            f"decoder {layers['decoder']}"
        )
    return experts
