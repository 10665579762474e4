"""How text becomes a checkpoint's numbers: symbols, languages and tokens before a sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.export_options import REMEDY
from zcode_plugin.checkpoint.folders import SENTENCEPIECE
from zcode_plugin.checkpoint.vocabulary import languages_of, symbols_of
from zcode_plugin.data.languages import add_special_symbols, find_dictionary, resolve_languages
from zcode_plugin.data.objectives import KNOWN
from zcode_plugin.data.pairs import stored_pairs
from zcode_plugin.data.symbols import SPECIAL, language_token, objective_token
from zcode_plugin.errors import UserError
from zcode_plugin.flags import comma_list

# Two models of halves of one text have 60 to 70% of their pieces in common.
_LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Vocabulary:
    """What gives text its numbers.

    Attributes:
        symbols: by number; those of fairseq first, language tokens and mask last.
        langs: languages, in the order of their tokens.
        encoder_langtok: whose token goes before the source: `src`, `tgt` or None.
        decoder_langtok: whether the target's goes before the target.
        objective_token: what goes before all else of a source, if anything does.
    """

    symbols: list[str]
    langs: list[str]
    encoder_langtok: str | None
    decoder_langtok: bool
    objective_token: str | None = None


def find_vocabulary(
    state: Mapping[str, Any], checkpoint: Path, data: Path | None, rows: int
) -> Vocabulary:
    """The vocabulary that a checkpoint names, or that of the data it was trained on.

    Args:
        state: the checkpoint.
        checkpoint: its file, for messages.
        data: directory of binarised data, or None.
        rows: of the embeddings.

    Raises:
        UserError: neither has it, or it is another one.
    """
    task = config.section(state, "task")
    langs = languages_of(state) or _languages(task, data)
    own = symbols_of(state) or None
    if own is None and config.task_name(task) == "translation":
        raise UserError(
            f"{checkpoint} is of stock's task translation, whose vocabulary has no language "
            f"tokens: {REMEDY}"
        )
    with_objectives = bool(config.get(task, "objective_token", False))
    read = None
    if data is not None:
        read = _read_symbols(data, langs, with_objectives, required=own is None)
    symbols = own or read
    if symbols is None:
        raise UserError(
            f"{checkpoint} does not name its vocabulary, as newer ones do: give --data, the "
            "directory it was trained on"
        )
    if read not in (None, symbols):
        raise UserError(
            f"--data {data} has another dictionary than {checkpoint}: give the directory it was "
            "trained on"
        )
    if len(symbols) != rows or tuple(symbols[: len(SPECIAL)]) != SPECIAL:
        raise UserError(
            f"{checkpoint} has {rows:,} embeddings, but the dictionary of {data or checkpoint} has "
            f"{len(symbols):,} symbols: give as --data the directory it was trained on"
        )
    for lang in langs:
        if language_token(lang) not in symbols:
            raise UserError(f"{checkpoint}: the vocabulary has no token of its language {lang}")
    side = config.get(task, "encoder_langtok")
    decoder = bool(config.get(task, "decoder_langtok", False))
    return Vocabulary(
        symbols,
        langs,
        None if side is None else str(side),
        decoder,
        objective_token("mt") if with_objectives else None,
    )


def _languages(task: Any, data: Path | None) -> list[str]:
    """As the task finds them, for checkpoints that do not name theirs."""
    langs = comma_list(config.get(task, "langs"))
    if langs or data is None:
        return langs
    return resolve_languages(data, None, config.get(task, "lang_dict"), stored_pairs(data, "train"))


def _read_symbols(
    data: Path, langs: list[str], with_objectives: bool, *, required: bool
) -> list[str] | None:
    """The symbols of a directory's dictionary and the tokens; None where there is none."""
    if not data.is_dir():
        raise UserError(f"--data {data} is no directory")
    if not required and not any((data / f"dict.{lang}.txt").exists() for lang in langs):
        return None
    if not langs:
        raise UserError(f"--data {data} holds no binarised pairs: give the directory of training")
    dictionary = Dictionary.load(str(find_dictionary([data], langs)))
    add_special_symbols(dictionary, langs, KNOWN if with_objectives else ())
    return list(dictionary.symbols)


def find_sentencepiece(
    model: Path | None, data: Path | None, vocabulary: Vocabulary
) -> Path | None:
    """The SentencePiece model that is named, or that of the data; None where there is none.

    Raises:
        UserError: it cannot be read, or is of another vocabulary.
    """
    path = model
    if path is None and data is not None and (data / SENTENCEPIECE).is_file():
        path = data / SENTENCEPIECE
    if path is None:
        return None
    from sentencepiece import SentencePieceProcessor

    if not path.is_file():
        raise UserError(f"--sentencepiece-model {path}: there is no such file")
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is no SentencePiece model") from error
    pieces = {processor.id_to_piece(number) for number in range(len(processor))}
    share = _share_of_pieces(vocabulary, pieces)
    if share < _LEAST_SHARE:
        raise UserError(
            f"{path} is of another text: it has {100 * share:.0f}% of the checkpoint's symbols; "
            "give the model that its text was cut with as --sentencepiece-model"
        )
    return path


def _share_of_pieces(vocabulary: Vocabulary, pieces: Collection[str]) -> float:
    """How much of a vocabulary are pieces; what no model of its text need know does not count.

    Those are fairseq's own symbols, tokens of languages, and characters that stand for themselves.
    """
    tokens = {language_token(lang) for lang in vocabulary.langs}
    ordinary = [
        symbol
        for symbol in vocabulary.symbols[len(SPECIAL) :]
        if symbol not in tokens and not symbol.startswith("madeupword") and len(symbol) > 1
    ]
    return sum(symbol in pieces for symbol in ordinary) / max(len(ordinary), 1)
