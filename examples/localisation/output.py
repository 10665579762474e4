"""Write a corpus as a whole or not at all, tell whether it is there, and say what went wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wheels import CorpusError, sha256_of


def write_corpus(files: Mapping[str, Sequence[str]], out: Path, manifest: dict[str, Any]) -> None:
    """Replace out/raw by `files` and write out/corpus.json last; nothing is left half-written."""
    raw, manifest_path = out / "raw", out / "corpus.json"
    check_own(raw, manifest_path)
    with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as scratch:
        fresh, old = Path(scratch) / "raw", Path(scratch) / "old"
        fresh.mkdir()
        for name, lines in files.items():
            text = "".join(f"{line}\n" for line in lines)
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
        manifest["files"] = {
            name: {"lines": len(files[name]), "sha256": sha256_of(fresh / name)}
            for name in sorted(files)
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (Path(scratch) / "corpus.json").write_text(text, encoding="utf-8")
        if raw.exists():
            os.rename(raw, old)
        os.rename(fresh, raw)
        os.replace(Path(scratch) / "corpus.json", manifest_path)


def check_own(raw: Path, manifest_path: Path) -> None:
    """Refuse to replace what was not written by a script of a corpus.

    Raises:
        CorpusError: naming it.
    """
    if not raw.exists():
        return
    remedy = "was not written by this script; move it away or choose another --out"
    try:
        own = json.loads(manifest_path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CorpusError(f"{raw} {remedy}") from None
    for path in sorted(raw.rglob("*")):
        if path.is_file() and path.relative_to(raw).as_posix() not in own:
            raise CorpusError(f"{path} {remedy}")


def is_finished(out: Path, arguments: Mapping[str, Any]) -> bool:
    """Whether out/corpus.json names these arguments and every file has its recorded checksum."""
    try:
        manifest = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
        same = manifest["arguments"] == arguments
        return same and all(
            sha256_of(out / "raw" / name) == file["sha256"]
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def corpus_parser(
    prog: str, description: str, *, languages: str, held_out: int, unit: str
) -> argparse.ArgumentParser:
    """The options that all scripts of a corpus have.

    Args:
        prog, description: of the script.
        languages: codes, comma-separated, that are the default.
        held_out: the default number of texts in valid, and in test.
        unit: what these texts are, in the plural.
    """
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--languages",
        default=languages,
        help="codes of the languages to align with English, comma-separated (default: %(default)s)",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=held_out,
        help=f"{unit} in valid, and as many in test, the same for all languages "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the split (default: %(default)s)"
    )
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
) -> int:
    """Run a script whose --out is a folder, and return its exit code.

    A user's mistake gives one line on standard error and exit code 2.
    """
    args = parser.parse_args(argv)
    try:
        if args.out.exists() and not args.out.is_dir():
            raise CorpusError(f"--out {args.out}: is a file; name a folder")
        run(args)
    except (CorpusError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0
