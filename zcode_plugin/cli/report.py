"""`zcode report`: what runs did, on one page."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from zcode_plugin.console import count, step
from zcode_plugin.errors import UserError

if TYPE_CHECKING:
    from zcode_plugin.reporting.runs import Run

DESCRIPTION = """Draw what a run did on one HTML page that needs nothing beside it: learning
curves, scores, what the experts do. In RUN_DIR are read, as far as they are there: training logs
in JSON (*.log, *.out), the statistics of zcode stats and the scores of zcode evaluate (*.json).
Several runs are drawn on the same axes."""
EPILOG = """PNG files of all figures go into a folder beside the page. A page that zcode report
wrote is replaced.

example:
  zcode report run --model-card run/model_card.md
  zcode report run other_run --out comparison.html

what it reads, for example:
  fairseq-train ... --log-format json --log-file run/train.log
  zcode evaluate data --path run/model.pt --out run/scores.json
  zcode stats run/model.pt data --capacity-factor 1.25 --out run/stats.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a run")
    add("--out", type=Path, metavar="OUT.html", help="page (default: report.html in the RUN_DIR)")
    add(
        "--log",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="training log, instead of those in the only RUN_DIR; several in their order in time",
    )
    add(
        "--model-card",
        type=Path,
        metavar="CARD.md",
        help="write a model card, too, from the checkpoint, the log and the scores",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="CKPT",
        help="of the model card (default: that of the scores or the statistics, or "
        "RUN_DIR/model.pt)",
    )
    add("--force", action="store_true", help="overwrite files that zcode report did not write")


def run(args: argparse.Namespace) -> int:
    """Read, draw and write."""
    from zcode_plugin.reporting.plots import require_matplotlib
    from zcode_plugin.reporting.runs import read_runs

    _check_arguments(args)
    require_matplotlib()
    out = args.out or args.runs[0] / "report.html"
    _check_replaceable(out, args.force)
    runs = read_runs(args.runs, args.log)
    card = _card(args, runs[0]) if args.model_card is not None else None
    with step(f"draw {count(len(runs), 'run')}") as current:
        page, pictures = _page(runs)
        current.detail = count(len(pictures), "figure")
    texts = {out: page} if card is None else {out: page, args.model_card: card}
    plots = out.with_name(f"{out.stem}_figures")
    _write(texts, {plots / f"{name}.png": png for name, png in pictures.items()})
    for note in (note for run in runs for note in run.notes):
        print(f"passed over: {note}")
    print(f"written: {', '.join(map(str, texts))}, {plots}/*.png")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    for flag, path, suffix in (
        ("--out", args.out, ".html"),
        ("--model-card", args.model_card, ".md"),
    ):
        if path is not None and path.suffix != suffix:
            raise UserError(f"{flag} {path}: the name must end in {suffix}")
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    for flag, value in (("--log", args.log), ("--model-card", args.model_card)):
        if value and len(args.runs) > 1:
            raise UserError(f"{flag} goes with one RUN_DIR, not with {len(args.runs)}")
    if args.checkpoint is not None and args.model_card is None:
        raise UserError("--checkpoint is for the model card: give --model-card CARD.md, too")
    if args.model_card is not None:
        _check_replaceable(args.model_card, args.force)


def _check_replaceable(path: Path, force: bool) -> None:
    """Refuse to overwrite what this verb did not write."""
    from zcode_plugin.reporting.card import MARK
    from zcode_plugin.reporting.page import GENERATOR

    if force or not path.exists():
        return
    start = path.read_text(encoding="utf-8", errors="replace")[:4000] if path.is_file() else ""
    if GENERATOR not in start and MARK not in start:
        raise UserError(f"{path} exists: --force overwrites it, another name leaves it")


def _page(runs: list[Run]) -> tuple[str, dict[str, bytes]]:
    from zcode_plugin.reporting.page import render_page
    from zcode_plugin.reporting.sections import sections

    chapters = sections(runs)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = f"Written {now} by zcode report, zcode_plugin {version('zcode_plugin')}"
    page = render_page(f"Training report: {', '.join(r.name for r in runs)}", subtitle, chapters)
    blocks = [block for chapter in chapters for block in chapter.blocks]
    return page, {picture.name: picture.png for block in blocks for picture in block.pictures}


def _card(args: argparse.Namespace, run: Run) -> str:
    from zcode_plugin.checkpoint import io
    from zcode_plugin.reporting.card import find_checkpoint, model_card

    checkpoint = args.checkpoint or find_checkpoint(run)
    with io.well_formed(checkpoint):
        return model_card(run, checkpoint)


def _write(texts: dict[Path, str], pictures: dict[Path, bytes]) -> None:
    """Page, card and figures, together."""
    from zcode_plugin.files import write_files

    for folder in {path.parent for path in pictures}:
        folder.mkdir(exist_ok=True)
    write_files({path: text.encode("utf-8") for path, text in texts.items()} | pictures)
