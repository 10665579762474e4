"""`zcode translate`: raw text in, raw text out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from zcode_plugin.checkpoint import names
from zcode_plugin.cli.outputs import check_file
from zcode_plugin.cli.streams import Progress, line_buffers, open_input, open_output
from zcode_plugin.console import count, quiet_libraries
from zcode_plugin.errors import UserError
from zcode_plugin.translation import Batching, Search, Translation, Translator

DESCRIPTION = """Translate text, a sentence a line, with a checkpoint. Lines go out in
their order; a line without text stays one."""
EPILOG = """With --nbest above 1 lines are NUMBER<TAB>SCORE<TAB>TRANSLATION.

example:
  zcode translate --checkpoint model.pt -s de -t en < de.txt > en.txt
  zcode translate --checkpoint model.pt -s de -t en de.txt --out en.txt --beam 1
"""
NAMED_LINES = 5  # in a warning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    search, batching = Search(), Batching()
    add = parser.add_argument
    add("file", type=Path, nargs="?", metavar="FILE", help="text (default: standard input)")
    add("--checkpoint", type=Path, required=True, metavar="CKPT", help="merged if of ranks")
    add("-s", "--source-lang", required=True, metavar="L", help="language of the text")
    add("-t", "--target-lang", required=True, metavar="L", help="into which language")
    add("--out", type=Path, metavar="FILE", help="write or replace FILE (default: standard output)")
    add(
        "--data",
        type=Path,
        metavar="DATA",
        help="folder of training (default: the one CKPT names; sentencepiece.model beside CKPT)",
    )
    add("--sentencepiece-model", type=Path, metavar="FILE", help="or this very file")
    add("--beam", type=int, default=search.beam, metavar="N", help="beam size (default: 5)")
    add("--nbest", type=int, default=search.nbest, metavar="N", help="translations of a line")
    add("--lenpen", type=float, default=search.lenpen, metavar="X", help="above 1: longer ones")
    length = "at most A x source + B tokens (0 and 200)"
    add("--max-len-a", type=float, default=search.max_len_a, metavar="A", help=length)
    add("--max-len-b", type=int, default=search.max_len_b, metavar="B", help="see --max-len-a")
    default = batching.max_tokens
    add("--max-tokens", type=int, default=default, metavar="N", help=f"of a batch ({default})")
    add("--batch-size", type=int, metavar="N", help="lines of a batch (default: no limit)")
    add(
        "--buffer-size",
        type=int,
        default=1000,
        metavar="N",
        help="read at most N lines ahead (default: 1000)",
    )
    add("--cpu", action="store_true", help="leave a GPU alone")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="compute in float16")
    precision.add_argument("--bf16", action="store_true", help="compute in bfloat16")


def run(args: argparse.Namespace) -> int:
    """Translate all lines."""
    search = Search(args.beam, args.nbest, args.lenpen, args.max_len_a, args.max_len_b)
    batching = Batching(args.max_tokens, args.batch_size)
    _check_arguments(args)
    with quiet_libraries():
        translator = Translator.load(
            args.checkpoint,
            data=args.data,
            sentencepiece_model=args.sentencepiece_model,
            cpu=args.cpu,
            precision="float16" if args.fp16 else "bfloat16" if args.bf16 else "float32",
        )
        translator.check_direction(args.source_lang, args.target_lang)
        progress = Progress(_shows_progress(args))
        number = 0
        with open_input(args.file) as (descriptor, name), open_output(args.out) as output:
            for lines in line_buffers(descriptor, name, args.buffer_size):
                translations = translator.translate(
                    lines,
                    source=args.source_lang,
                    target=args.target_lang,
                    search=search,
                    batching=batching,
                    on_batch=progress.add,
                )
                if too_long := list(_too_long(translations, number)):
                    progress.warn(f"zcode translate: warning: {name}: {_told(too_long)}")
                _write(translations, number, search.nbest, output)
                number += len(lines)
        progress.end()
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    names.check_whole(args.checkpoint)
    if args.buffer_size < 1:
        raise UserError(f"--buffer-size {args.buffer_size} must be at least 1")
    if args.file is not None and not args.file.exists():
        raise UserError(f"there is no file {args.file}")
    if args.out is not None:
        read = (args.checkpoint, args.file, args.sentencepiece_model)
        check_file(args.out, [path for path in read if path is not None])


def _shows_progress(args: argparse.Namespace) -> bool:
    """Where it is seen, and not in between what is typed and what is printed."""
    if args.file is None and sys.stdin.isatty():
        return False
    return sys.stderr.isatty() and (args.out is not None or not sys.stdout.isatty())


def _too_long(translations: Sequence[Translation], before: int) -> Iterator[tuple[int, int, int]]:
    """Of lines whose end was not read: the number, tokens, and how many of those were."""
    for number, translation in enumerate(translations, start=before + 1):
        if translation.unread:
            yield number, translation.tokens, translation.tokens - translation.unread


def _told(too_long: Sequence[tuple[int, int, int]]) -> str:
    numbers = ", ".join(str(number) for number, _, _ in too_long[:NAMED_LINES])
    others = len(too_long) - NAMED_LINES
    which = f"lines {numbers}" if len(too_long) > 1 else f"line {numbers}"
    if others > 0:
        which += f" and {count(others, 'other')}"
    most, read = max(tokens for _, tokens, _ in too_long), too_long[0][2]
    return (
        f"{which}: up to {most:,} tokens, of which {read:,} can be read at a time; the rest is not "
        "translated: split such lines"
    )


def _write(translations: Sequence[Translation], before: int, nbest: int, output: BinaryIO) -> None:
    for number, translation in enumerate(translations, start=before + 1):
        for hypothesis in translation.hypotheses:
            head = f"{number}\t{hypothesis.score:.4f}\t" if nbest > 1 else ""
            output.write(f"{head}{hypothesis.text}\n".encode())
    output.flush()
