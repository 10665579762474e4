"""`zcode prepare`: raw text to a SentencePiece model, one dictionary and binarised data."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zcode_plugin.console import count, format_table
from zcode_plugin.data.symbols import SPECIAL
from zcode_plugin.errors import UserError
from zcode_plugin.files import whole_folder
from zcode_plugin.preparation import inventory, manifest, subwords
from zcode_plugin.preparation.binarise import statistics_rows
from zcode_plugin.preparation.inventory import Inventory, Selection
from zcode_plugin.preparation.pipeline import Plan, Prepared, build
from zcode_plugin.stock.jobs import available_cores, check_no_colon

DESCRIPTION = "Make a SentencePiece model, one dictionary and binarised data of raw text."
EPILOG = """raw files, one sentence a line, UTF-8:
  {train,valid,test}.SRC-TGT.{SRC,TGT}  aligned: train.en-de.en, train.en-de.de
  mono.{train,valid}.LANG.txt           monolingual; mono.LANG.txt: for training
TSV files: the first line names languages (en<TAB>de<TAB>fr), others hold a
sentence in each; an empty cell is a missing translation, quotes mean nothing.

example:
  zcode prepare --raw text/ --out data/ --vocab-size 8000
  zcode prepare --tsv train=a.tsv test=b.tsv --pairs all --out data/
"""

# What sets how a model is trained: meaningless beside --sentencepiece-model.
TRAINING_FLAGS = {
    "vocab_size": "--vocab-size",
    "model_type": "--model-type",
    "character_coverage": "--character-coverage",
    "temperature": "--subword-temperature",
    "sentences": "--subword-sentences",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("--raw", type=Path, metavar="DIR", help="folder of raw files")
    add("--tsv", nargs="+", default=[], metavar="S=FILE", help="TSV files, one a split")
    add("--out", type=Path, required=True, metavar="DATA", help="folder to make")
    add("--force", action="store_true", help="replace DATA if zcode prepare made it")
    add("--langs", metavar="L,...", help="languages, in their order (default: all, sorted)")
    add(
        "--pairs",
        metavar="A-B,...",
        help="pairs (default: all, but of a TSV file those of its first column; all: every two)",
    )
    add("--skip-blank", action="store_true", help="drop pairs with a blank side")
    _add_subword_arguments(parser)
    add("--workers", type=int, metavar="N", help="processes at a time (default: all cores)")


def _add_subword_arguments(parser: argparse.ArgumentParser) -> None:
    """The defaults are None, so that a flag given beside --sentencepiece-model is noticed."""
    default = subwords.SubwordOptions()
    add = parser.add_argument
    add("--sentencepiece-model", type=Path, metavar="FILE", help="use this model and train none")
    help_text = f"pieces (default: {default.vocab_size})"
    add("--vocab-size", type=int, metavar="N", help=help_text)
    help_text = f"algorithm (default: {default.model_type})"
    add("--model-type", choices=("unigram", "bpe"), help=help_text)
    help_text = f"of all characters (default: {default.character_coverage})"
    add("--character-coverage", type=float, metavar="SHARE", help=help_text)
    help_text = "train on n^(1/T) of n sentences (default: 1)"
    add("--subword-temperature", type=float, dest="temperature", metavar="T", help=help_text)
    help_text = f"train on at most N sentences (default: {default.sentences:,})"
    add("--subword-sentences", type=int, dest="sentences", metavar="N", help=help_text)


def run(args: argparse.Namespace) -> int:
    """Prepare the data, or say that it is up to date."""
    plan = _plan(args)
    wanted = manifest.describe(_deciding_options(args, plan), _inputs(plan))
    if manifest.is_up_to_date(args.out, wanted, args.force):
        print(f"{args.out} is up to date")
        return 0
    with whole_folder(args.out) as partial:
        prepared = build(plan, partial)
        _write_manifest(partial, wanted, prepared)
    print(format_table(statistics_rows(prepared.statistics), left=2))
    print(
        f"{args.out}: {count(len(prepared.langs), 'language')}, "
        f"dictionary of {prepared.symbols:,} symbols (fairseq adds its own "
        f"{len(SPECIAL)})"
    )
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    if args.raw is None and not args.tsv:
        raise UserError("no text is given: name a folder with --raw or files with --tsv")
    place = args.out.resolve()  # where the data are made
    if "," in str(place):
        raise UserError(f"--out {place}: fairseq-preprocess parts names at commas; use none")
    check_no_colon(place)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    langs = None if args.langs is None else inventory.parse_languages(args.langs)
    every_pair = args.pairs == "all"
    pairs = None if args.pairs is None or every_pair else inventory.parse_pairs(args.pairs)
    selection = Selection(langs, pairs, every_pair)
    raw = inventory.find_raw(args.raw) if args.raw else Inventory()
    return Plan(
        found=Inventory(
            tuple(text for text in raw.parallel if selection.wants(text.langs)),
            tuple(text for text in raw.monolingual if selection.wants([text.lang])),
            inventory.parse_tsv(args.tsv),
        ),
        selection=selection,
        options=_subword_options(args),
        model=args.sentencepiece_model,
        skip_blank=args.skip_blank,
        workers=available_cores() if args.workers is None else args.workers,
    )


def _subword_options(args: argparse.Namespace) -> subwords.SubwordOptions:
    given = {name: getattr(args, name) for name in TRAINING_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if args.sentencepiece_model is not None:
        for name in given:
            raise UserError(f"{TRAINING_FLAGS[name]} has no effect with --sentencepiece-model")
        subwords.load_model(args.sentencepiece_model)
    options = replace(subwords.SubwordOptions(), **given)
    if not 0 < options.character_coverage <= 1:
        raise UserError(f"--character-coverage {options.character_coverage} is not in (0, 1]")
    for name in ("vocab_size", "temperature", "sentences"):
        if getattr(options, name) <= 0:
            raise UserError(f"{TRAINING_FLAGS[name]} {getattr(options, name)} must be more than 0")
    return options


def _deciding_options(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The options that decide what is made, as JSON has them."""
    training = {TRAINING_FLAGS[name]: value for name, value in asdict(plan.options).items()}
    return {
        "--langs": args.langs,
        "--pairs": args.pairs,
        "--skip-blank": args.skip_blank,
        **({} if plan.model else training),
    }


def _inputs(plan: Plan) -> dict[str, Path]:
    return plan.found.paths | ({"--sentencepiece-model": plan.model} if plan.model else {})


def _write_manifest(folder: Path, wanted: dict[str, Any], prepared: Prepared) -> None:
    record = {
        **wanted,
        "versions": {name: version(name) for name in ("fairseq", "sentencepiece")},
        "files": sorted(path.name for path in folder.iterdir()),
        "statistics": [asdict(side) for side in prepared.statistics],
    }
    path = folder / manifest.NAME
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
