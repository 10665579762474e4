"""`zcode export`: a checkpoint for programs other than fairseq."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.cli.outputs import add_checkpoint_argument
from zcode_plugin.console import count, format_table, step
from zcode_plugin.errors import UserError
from zcode_plugin.files import whole_folder

if TYPE_CHECKING:
    from zcode_plugin.checkpoint.export import Written
    from zcode_plugin.checkpoint.gather import Gathered

SAFETENSORS, HUGGINGFACE = "safetensors", "huggingface"

DESCRIPTION = """Write a checkpoint for other programs. safetensors: the weights under the
checkpoint's names, with a plain config.json. huggingface: a folder that transformers loads with
AutoModelForSeq2SeqLM and AutoTokenizer, trust_remote_code=True; it needs torch and transformers
alone, and gives the translations of fairseq-generate."""
EPILOG = """example:
  zcode export checkpoint_best-rank-0.pt --format huggingface --data data \\
    --out exported
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add_checkpoint_argument(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--format", required=True, choices=(SAFETENSORS, HUGGINGFACE), help="what to write")
    add(
        "--data",
        type=Path,
        metavar="DATA",
        help="directory of training, for sentencepiece.model, and for the dictionary of a "
        "checkpoint that does not name its vocabulary",
    )
    add(
        "--sentencepiece-model",
        type=Path,
        metavar="FILE",
        help="the model that cuts text into pieces (default: sentencepiece.model in DATA)",
    )
    add("--force", action="store_true", help="replace an export in DIR")


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written."""
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.folders import check_folder
    from zcode_plugin.checkpoint.gather import gather_whole

    _check_safetensors()
    check_folder(args.out, force=args.force)
    with step(f"export {args.checkpoint}") as current, io.well_formed(args.checkpoint):
        files, gathered = gather_whole(args.checkpoint)
        _check_apart(args.out, files)
        with whole_folder(args.out) as folder:
            written, notes = _write(args, gathered, folder)
        current.detail = str(args.out)
    rows = [("file", "bytes")]
    rows += [(path.name, f"{path.stat().st_size:,}") for path in sorted(args.out.iterdir())]
    print(format_table(rows))
    experts = ", ".join(str(number) for number in sorted(set(gathered.experts.values())))
    layers = count(len(gathered.experts), "MoE layer")
    print(f"{written.parameters:,} parameters, {layers}{experts and f' of {experts} experts'}")
    for note in [*_notes(written), *notes]:
        print(note)
    return 0


def _write(args: argparse.Namespace, gathered: Gathered, folder: Path) -> tuple[Written, list[str]]:
    # Not before the checkpoint is read: that imports fairseq without its warnings.
    from zcode_plugin.checkpoint import config, export, tokenisation
    from zcode_plugin.checkpoint.vocabulary import symbols_of

    if args.format == SAFETENSORS:
        return export.write_safetensors(gathered, symbols_of(gathered.state), folder), []
    config.check_not_quantised(gathered.state, args.checkpoint, "for transformers")
    options = export.huggingface_options(gathered)
    rows = options["vocab_size"]
    found = tokenisation.find_vocabulary(gathered.state, args.checkpoint, args.data, rows)
    model = tokenisation.find_sentencepiece(args.sentencepiece_model, args.data, found)
    written = export.write_huggingface(gathered, options, found, model, folder)
    tokens = [f"--encoder-langtok {found.encoder_langtok}"] if found.encoder_langtok else []
    tokens += ["--decoder-langtok"] if found.decoder_langtok else []
    tokens += ["--objective-token"] if found.objective_token else []
    return written, [
        f"languages: {','.join(found.langs)} ({', '.join(tokens) or 'no language tokens'})",
        f"text is cut into pieces by {model}"
        if model
        else "text is cut at spaces: neither --data nor --sentencepiece-model has a SentencePiece "
        "model",
        f'load it with from_pretrained("{args.out}", trust_remote_code=True)',
    ]


def _notes(written: Written) -> Iterable[str]:
    for table in sorted(set(written.tied.values())):
        names = [name for name, other in written.tied.items() if other == table]
        yield f"stored once, as {table}: {', '.join(names)}"
    heads = sorted({name.split(".")[1] for name in written.left_out})
    if heads:
        yield f"left out: the heads of {', '.join(heads)}, which no translation needs"


def _check_safetensors() -> None:
    if find_spec("safetensors") is None:
        raise UserError("the package safetensors is missing: pip install safetensors")


def _check_apart(out: Path, files: list[Path]) -> None:
    """What is read must not lie in the folder that is replaced."""
    for path in files:
        if out.resolve() in path.resolve().parents and out.exists():
            raise UserError(f"--out {out} holds {path}, which is read: name another folder")
