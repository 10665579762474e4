"""Languages: which there are, their order, and their tokens in a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairseq.data import Dictionary

from zcode_plugin.data.pairs import LANGS_FILE, Pair
from zcode_plugin.data.symbols import MASK, language_token, objective_token
from zcode_plugin.errors import UserError


def resolve_languages(
    directory: Path, langs: list[str] | None, lang_dict: str | None, pairs: list[Pair]
) -> list[str]:
    """All languages, in the order that numbers their tokens.

    Taken from `--langs`, else from the file `--lang-dict`, else from `langs.txt` beside the data,
    else from the pairs, sorted.

    Raises:
        UserError: both flags, an unreadable file, or a pair with a language that is missing.
    """
    if langs and lang_dict:
        raise UserError("--langs and --lang-dict exclude each other: give one of them")
    source = "--langs"
    if not langs:
        source = lang_dict or str(directory / LANGS_FILE)
        if lang_dict or Path(source).exists():
            langs = _read_list(source)
        else:
            langs = sorted({lang for pair in pairs for lang in (pair.src, pair.tgt)})
    for pair in pairs:
        for lang in (pair.src, pair.tgt):
            if lang not in langs:
                raise UserError(
                    f"language {lang} of the pair {pair} is not in {source} ({','.join(langs)}): "
                    "add it there or drop the pair"
                )
    return langs


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of languages {path}: {error}") from None
    if not lines:
        raise UserError(f"the list of languages {path} is empty: write one language a line")
    return lines


def add_special_symbols(
    dictionary: Dictionary, langs: list[str], objectives: Sequence[str] = ()
) -> None:
    """Append language tokens, the mask and objective tokens where the dictionary lacks them.

    A dictionary that has them already keeps all its numbers.
    """
    for lang in langs:
        dictionary.add_symbol(language_token(lang))
    dictionary.add_symbol(MASK)
    for objective in objectives:
        dictionary.add_symbol(objective_token(objective))


def dictionary_of(symbols: Sequence[str]) -> Dictionary:
    """Of all symbols in the order of their numbers, fairseq's own first."""
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol, overwrite=True)  # each gets a number, as in the list
    return dictionary


def find_dictionary(shards: Sequence[Path], langs: Sequence[str]) -> Path:
    """The dictionary of all languages; folders after the first may leave theirs out.

    Raises:
        UserError: there is none, or there are several.
    """
    paths = [directory / f"dict.{lang}.txt" for directory in shards for lang in langs]
    paths = [path for path in paths if path.exists()]
    if not paths or paths[0].parent != shards[0]:
        raise UserError(
            f"{shards[0]} has no dict.{langs[0]}.txt: binarise it with zcode prepare or "
            "fairseq-preprocess"
        )
    first_bytes = paths[0].read_bytes()
    different = [path for path in paths if path.read_bytes() != first_bytes]
    if different:
        raise UserError(
            f"{paths[0]} and {different[0]} differ, but all languages share one dictionary: "
            "binarise with --joined-dictionary, or one --srcdict for all"
        )
    return paths[0]
