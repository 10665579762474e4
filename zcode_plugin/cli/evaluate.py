"""`zcode evaluate`: translate every direction with stock fairseq-generate and score it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zcode_plugin
from zcode_plugin.checkpoint import config, names
from zcode_plugin.cli.outputs import check_file, check_folder
from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.evaluation import comet, generation, scores
from zcode_plugin.evaluation.directions import by_hand, translate_all
from zcode_plugin.evaluation.generation import Translations
from zcode_plugin.evaluation.scores import Score
from zcode_plugin.files import write_texts
from zcode_plugin.stock.jobs import available_cores, check_no_colon

DESCRIPTION = """Translate every direction with stock fairseq-generate; print a table of BLEU and
chrF++. References are those in DATA, in the spelling that their pieces give
them."""
EPILOG = """What follows -- goes to fairseq-generate as it is.

example:
  zcode evaluate data/ --path checkpoints/checkpoint_best.pt --out results.json
  zcode evaluate data/ --path best.pt --pairs de-en,en-de -- --lenpen 1.2 --cpu
  zcode compare results.json other.json
"""
RESULT_FORMAT = 1
# Above this size of checkpoint the default is one process at a time: each loads the model.
LARGE_CHECKPOINT = 1 << 30


@dataclass(frozen=True)
class Evaluation:
    """All that was translated and scored, with the commands that do it again.

    `failures` says of each direction that could not be translated why, on a line.
    """

    texts: dict[Pair, Translations]
    scores: dict[Pair, Score]
    commands: dict[Pair, str]
    failures: list[str]
    updates: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.set_defaults(extra=[])
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of binarised data")
    add("--path", type=Path, required=True, metavar="CKPT", help="checkpoint, merged if of ranks")
    add(
        "--pairs",
        help="directions, as de-en,en-de (default: both of every pair of the split; with stock's "
        "task translation its own)",
    )
    add("--gen-subset", default="test", metavar="SPLIT", help="split of DATA (default: test)")
    add("--beam", type=int, default=5, metavar="N", help="beam size (default: 5)")
    add(
        "--max-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of a batch (default: 4096)",
    )
    add("--out", type=Path, metavar="FILE", help="write or replace FILE: the results as JSON")
    add("--translations", type=Path, metavar="DIR", help="keep fairseq-generate's output in DIR")
    add("--copy-baseline", action="store_true", help="score the source text as translation, too")
    add(
        "--sacrebleu-tokenizer",
        metavar="NAMES",
        help="sacreBLEU's tokenizer, or one for each target language as zh=zh,ja=ja-mecab "
        "(default: 13a; zh for Chinese; char for ja, ko, th, lo, km)",
    )
    add(
        "--comet",
        metavar="MODEL",
        help="score with COMET, too: a model's name, its folder or its .ckpt file",
    )
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="directions at a time (default: the number of cores; 1 on a GPU or when CKPT has "
        "over 1 GiB)",
    )


def run(args: argparse.Namespace) -> int:
    """Translate, score, print, and write the results."""
    _check_arguments(args)
    comet_model = None if args.comet is None else comet.load(args.comet)
    directions = generation.choose_directions(args.pairs, args.data, args.gen_subset)
    tokenizers = scores.parse_tokenizers(args.sacrebleu_tokenizer)
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.vocabulary import languages_of

    state = io.load_options(args.path)
    section = config.section(state, "task")
    langs = languages_of(state)
    task = generation.task_arguments(section, langs)
    if args.pairs is None:
        directions = generation.trained_directions(directions, section, langs)
    updates = config.num_updates(state)
    del state
    evaluation = _evaluate(args, directions, task, tokenizers, updates)
    failed = None if comet_model is None else _add_comet(comet_model, evaluation)
    print(scores.score_table(evaluation.scores))
    for line in scores.signature_lines({d: asdict(one) for d, one in evaluation.scores.items()}):
        print(line)
    if args.comet is not None and failed is None:
        print(f"COMET: {args.comet} (unbabel-comet {version('unbabel-comet')})")
    for line in scores.unknown_lines(evaluation.scores):
        print(line)
    if evaluation.failures:
        raise UserError(_scored_in_part(args, evaluation))
    if args.out is not None:
        _write_json(args, evaluation)
        print(f"results: {args.out}")
    if failed is not None:
        raise UserError(f"--comet {args.comet}: {failed}; the scores above are without it")
    return 0


def _add_comet(model: Any, evaluation: Evaluation) -> str | None:
    """Put scores of COMET beside the others; None, or why there are none."""
    try:
        found = {direction: comet.score(model, one) for direction, one in evaluation.texts.items()}
    except comet.CometError as error:
        return str(error)
    for direction, score in found.items():
        evaluation.scores[direction] = replace(evaluation.scores[direction], comet=score)
    return None


def _check_arguments(args: argparse.Namespace) -> None:
    if not args.data.is_dir():
        raise UserError(f"there is no data folder {args.data}: make one with zcode prepare")
    for path in (args.data, args.path):
        check_no_colon(path)
    names.check_whole(args.path)
    for flag, value in (("--beam", args.beam), ("--max-tokens", args.max_tokens)):
        if value < 1:
            raise UserError(f"{flag} {value} must be at least 1")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    if args.out is not None:
        check_file(args.out, [args.path], makes_folder=True)
    if args.translations is not None:
        check_folder(args.translations, "--translations")


def _default_jobs(checkpoint: Path) -> int:
    import torch

    if torch.cuda.device_count() > 0 or checkpoint.stat().st_size > LARGE_CHECKPOINT:
        return 1
    return available_cores()


def _evaluate(
    args: argparse.Namespace,
    directions: Sequence[Pair],
    task: Sequence[str],
    tokenizers: Mapping[str, str],
    updates: int,
) -> Evaluation:
    started = time.monotonic()
    calls = _calls(args, directions, task)
    jobs = min(args.jobs or _default_jobs(args.path), len(directions))
    texts, failures = translate_all(calls, jobs, args.translations)
    found = {
        direction: scores.score(
            translations, scores.tokenizer_for(direction.tgt, tokenizers), args.copy_baseline
        )
        for direction, translations in texts.items()
    }
    commands = {direction: by_hand(call) for direction, call in calls.items()}
    return Evaluation(texts, found, commands, failures, updates, time.monotonic() - started)


def _calls(
    args: argparse.Namespace, directions: Sequence[Pair], task: Sequence[str]
) -> dict[Pair, tuple[str, ...]]:
    """Arguments of fairseq-generate for each direction."""
    options = ["--gen-subset", args.gen_subset, "--beam", str(args.beam)]
    options += ["--max-tokens", str(args.max_tokens), *args.extra]
    user_dir = Path(zcode_plugin.__path__[0])
    return {
        direction: generation.generate_arguments(
            args.data, args.path, user_dir, direction, task, options
        )
        for direction in directions
    }


def _scored_in_part(args: argparse.Namespace, evaluation: Evaluation) -> str:
    failed = len(evaluation.failures)
    others = f"; so did {failed - 1} more" if failed > 1 else ""
    written = "" if args.out is None else f", and {args.out} is not written"
    return (
        f"{evaluation.failures[0]}{others}; the scores above are of the other "
        f"{len(evaluation.texts)} of {failed + len(evaluation.texts)} directions{written}"
    )


def _write_json(args: argparse.Namespace, evaluation: Evaluation) -> None:
    record: dict[str, Any] = {
        "format": RESULT_FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": str(args.data),
        "checkpoint": str(args.path),
        "updates": evaluation.updates,
        "subset": args.gen_subset,
        "seconds": round(evaluation.seconds, 1),
        "comet_model": args.comet,
        "versions": {name: version(name) for name in ("fairseq", "torch", "sacrebleu")},
        "means": scores.means(evaluation.scores),
        "directions": {
            str(direction): asdict(entry)
            | {"command": evaluation.commands[direction]}
            | asdict(evaluation.texts[direction])
            for direction, entry in evaluation.scores.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_texts({args.out: json.dumps(record, indent=2, ensure_ascii=False) + "\n"})
