#!/usr/bin/env python3
"""Build a parallel corpus, English and 8 languages, from the help pages of LibreOffice.

Writes under --out: raw/{train,valid,test}.en-XX.{en,XX}, raw/mono.{train,valid}.XX.txt, for
finetuning titles/{train,valid,test}.XX.{body,title} and, last, corpus.json (arguments, packages,
counts, checksums). Needs Python's standard library, apt-get and dpkg-deb; installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "localisation"))

from help_pages import Page, fetch_packages, read_pages
from output import corpus_parser, is_finished, run_command, write_corpus
from pairs import clean_pairs, is_clean, one_line
from splits import SPLITS, eligible_messages, similar_messages
from wheels import CorpusError, sha256_of

# Changes whenever the same arguments give other bytes, so that an older corpus is built anew.
FORMAT = 1
DEFAULT_LANGUAGES = "cs,de,es,fr,it,nl,pl,pt"
_HELD_OUT_PAGES = 0.1  # in valid, and as many in test
_SPARE = 6  # candidates that are looked at for each that is taken
_BODY_CHARACTERS = 240  # of a page's first paragraphs, of which a title is to be made
_MIN_BODY_CHARACTERS = 60

Pages = Mapping[str, Mapping[str, Page]]  # language -> path -> page


@dataclass(frozen=True)
class Corpus:
    """All lines before they are written.

    Attributes:
        translations: language -> {English line: its translation}.
        split: "train", "valid", "test" -> English lines.
        pages: path of a page -> the part that it is in.
    """

    translations: dict[str, dict[str, str]]
    split: dict[str, frozenset[str]]
    pages: dict[str, str]


def build(pages: Pages, languages: Sequence[str], held_out: int, seed: int) -> Corpus:
    """Align the paragraphs of all pages and divide them.

    Raises:
        CorpusError: too few paragraphs qualify for valid and test.
    """
    english = pages["en"]
    parts = {path: _part(path, seed) for path in english}
    translations = {
        language: clean_pairs(_aligned(english, pages[language])) for language in languages
    }
    where: dict[str, set[str]] = defaultdict(set)  # English line -> parts of the pages it is on
    for path, page in english.items():
        for text in page.paragraphs.values():
            where[one_line(text)].add(parts[path])
    messages = {line for line in where if is_clean(line)}
    split = _divide(messages, translations, where, held_out, seed)
    return Corpus(translations, split, parts)


def _aligned(english: Mapping[str, Page], other: Mapping[str, Page]) -> list[tuple[str, str]]:
    return [
        (text, other[path].paragraphs[key])
        for path, page in english.items()
        if path in other
        for key, text in page.paragraphs.items()
        if key in other[path].paragraphs
    ]


def _part(path: str, seed: int) -> str:
    place = int.from_bytes(_rank(seed, path)[:4], "big") / 2**32
    if place < _HELD_OUT_PAGES:
        return "test"
    return "valid" if place < 2 * _HELD_OUT_PAGES else "train"


def _divide(
    messages: set[str],
    translations: Mapping[str, Mapping[str, str]],
    where: Mapping[str, set[str]],
    held_out: int,
    seed: int,
) -> dict[str, frozenset[str]]:
    """English lines of each part.

    What is on a page of train is in train. A line of valid or test is on no page of another part,
    every language has it, and none that resembles it is in another part; one of those that
    resemble each other is taken. Lines that nobody takes are left out.
    """
    split = {"train": frozenset(line for line in messages if "train" in where[line])}
    eligible = eligible_messages(messages, translations)
    ranked = sorted(eligible, key=lambda line: _rank(seed, line))
    candidates = {
        name: [line for line in ranked if where[line] == {name}][: _SPARE * held_out]
        for name in ("valid", "test")
    }
    similar = similar_messages([*chain(*candidates.values())], messages, translations)
    for name, lines in candidates.items():
        chosen: set[str] = set()
        for line in lines:
            is_apart = all(where[other] == {name} for other in similar[line])
            if is_apart and not similar[line] & chosen and len(chosen) < held_out:
                chosen.add(line)
        if len(chosen) < held_out:
            raise CorpusError(
                f"--held-out {held_out}: {len(chosen)} paragraphs qualify for {name}: lower it, or "
                "name fewer languages"
            )
        split[name] = frozenset(chosen)
    return split


def _rank(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def corpus_files(corpus: Corpus) -> dict[str, list[str]]:
    """File name -> lines; the two sides of a pair have the same order."""
    files: dict[str, list[str]] = {}
    for name in SPLITS:
        chosen = sorted(corpus.split[name])
        if name != "test":
            files[f"mono.{name}.en.txt"] = chosen
        for language, pairs in corpus.translations.items():
            sources = [line for line in chosen if line in pairs]
            files[f"{name}.en-{language}.en"] = sources
            files[f"{name}.en-{language}.{language}"] = [pairs[line] for line in sources]
            if name != "test":
                files[f"mono.{name}.{language}.txt"] = sorted({pairs[line] for line in sources})
    return files


def title_files(corpus: Corpus, pages: Pages) -> dict[str, list[str]]:
    """Lines of the summarisation-shaped task: the beginning of a page, and its title."""
    files: dict[str, list[str]] = {}
    for name in SPLITS:
        for language in ("en", *corpus.translations):
            examples = [
                example
                for path, page in sorted(pages[language].items())
                if corpus.pages.get(path) == name and (example := _example(page))
            ]
            files[f"{name}.{language}.body"] = [body for body, _ in examples]
            files[f"{name}.{language}.title"] = [title for _, title in examples]
    return files


def _example(page: Page) -> tuple[str, str] | None:
    """The first paragraphs of a page, without headings, and its title; None if there is little."""
    title = one_line(page.title)
    body = ""
    for key, text in page.paragraphs.items():
        line = one_line(text)
        if key.startswith("par_id") and is_clean(line) and line != title:
            body = f"{body} {line}".strip()
        if len(body) >= _BODY_CHARACTERS:
            break
    if not is_clean(title) or len(body) < _MIN_BODY_CHARACTERS:
        return None
    return body[:_BODY_CHARACTERS].rsplit(" ", 1)[0], title


def make_manifest(
    corpus: Corpus, arguments: Mapping[str, Any], packages: Mapping[str, Path]
) -> dict[str, Any]:
    """The JSON document that describes the corpus, but for the files' checksums."""
    return {
        "arguments": dict(arguments),
        "packages": [
            {"name": package.name, "sha256": sha256_of(package)} for package in packages.values()
        ],
        "languages": {
            language: {name: len(pairs.keys() & corpus.split[name]) for name in SPLITS}
            for language, pairs in corpus.translations.items()
        },
    }


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    return corpus_parser(
        "help_corpus.py", __doc__, languages=DEFAULT_LANGUAGES, held_out=200, unit="paragraphs"
    )


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        CorpusError: the user's mistake or a failed download, as one line.
    """
    languages = args.languages.split(",")
    if args.held_out < 1:
        raise CorpusError(f"--held-out {args.held_out}: must be 1 or more")
    if "en" in languages or len(set(languages)) < len(languages):
        raise CorpusError(f"--languages {args.languages}: a language is repeated, or English")
    arguments = {
        "format": FORMAT,
        "languages": languages,
        "held_out": args.held_out,
        "seed": args.seed,
    }
    if is_finished(args.out, arguments):
        print(f"{args.out}: the corpus is there already, nothing to do")
        return
    packages = fetch_packages(["en", *languages], args.out / "cache")
    pages = {language: read_pages(package) for language, package in packages.items()}
    corpus = build(pages, languages, args.held_out, args.seed)
    manifest = make_manifest(corpus, arguments, packages)
    titles = {f"titles/{name}": lines for name, lines in title_files(corpus, pages).items()}
    write_corpus({**corpus_files(corpus), **titles}, args.out, manifest)
    for language, counts in manifest["languages"].items():
        print(language, *(f"{name} {count}" for name, count in counts.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
