"""SentencePiece: training text, model, encoded text; and fairseq's shared dictionary."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from zcode_plugin.data.symbols import MASK, SPECIAL, language_token
from zcode_plugin.errors import UserError
from zcode_plugin.preparation.reading import CleanText

MODEL_NAME = "sentencepiece.model"
VOCABULARY_NAME = "sentencepiece.vocab"
ENCODING_BATCH = 20_000  # lines: bounds the memory, and is enough to keep all threads busy


@dataclass(frozen=True)
class SubwordOptions:
    """How a SentencePiece model is trained.

    Args:
        vocab_size: pieces, `<unk>`, `<s>` and `</s>` among them.
        model_type: `unigram` or `bpe`.
        character_coverage: share of the text's characters that the pieces must cover, in (0, 1].
        temperature: a language with n distinct sentences is sampled in proportion to n^(1/T).
        sentences: at most this many sentences are trained on.
    """

    vocab_size: int = 8000
    model_type: str = "unigram"
    character_coverage: float = 0.9999
    temperature: float = 1.0
    sentences: int = 5_000_000


def distinct_lines(texts: Iterable[CleanText], source: Path, folder: Path) -> dict[str, Path]:
    """Gather each language's training sentences from folder `source`, each once, in `folder`.

    A pivot language's sentences stand in many pairs; counted that often they would take the
    vocabulary over.
    """
    folder.mkdir()
    paths: dict[str, list[Path]] = {}
    for text in texts:
        if text.split == "train":
            for lang in text.langs:
                paths.setdefault(lang, []).append(source / f"{text.prefix}.{lang}")
    gathered = {lang: folder / lang for lang in sorted(paths)}
    for lang, output in gathered.items():
        seen: set[bytes] = set()
        with output.open("w", encoding="utf-8", newline="") as file:
            for path in paths[lang]:
                for line in _lines(path):
                    digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
                    if digest not in seen:
                        seen.add(digest)
                        print(line, file=file)
    return gathered


def sample_sizes(counts: Mapping[str, int], temperature: float, limit: int) -> dict[str, int]:
    """How many sentences of each language to train on: proportional to count^(1/temperature).

    Args:
        counts: distinct sentences of each language.
        temperature: 1 keeps the proportions, more evens them out.
        limit: of the sum.
    """
    total = min(limit, sum(counts.values()))
    largest = max(counts.values())
    weights = {lang: (number / largest) ** (1 / temperature) for lang, number in counts.items()}
    scale = total / sum(weights.values())
    return {lang: max(1, round(weight * scale)) for lang, weight in weights.items()}


def sampled_lines(paths: Mapping[str, Path], options: SubwordOptions) -> Iterator[str]:
    """The training text: whole passes over each language's lines, then a random part of them."""
    counts = {lang: sum(1 for _ in _lines(path)) for lang, path in paths.items()}
    sizes = sample_sizes(counts, options.temperature, options.sentences)
    for lang, path in paths.items():
        passes, rest = divmod(sizes[lang], counts[lang])
        for _ in range(passes):
            yield from _lines(path)
        chosen = set(random.Random(f"zcode {lang}").sample(range(counts[lang]), rest))
        yield from (line for index, line in enumerate(_lines(path)) if index in chosen)


def train_model(lines: Iterator[str], options: SubwordOptions, folder: Path) -> None:
    """Train and write `sentencepiece.model` and `.vocab` to `folder`.

    Raises:
        UserError: the text does not allow a vocabulary of this size.
    """
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_prefix=str(folder / Path(MODEL_NAME).stem),
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            max_sentence_length=16_384,  # bytes; longer sentences are not trained on
            minloglevel=2,  # errors
        )
    except RuntimeError as error:
        raise UserError(_training_remedy(str(error), options)) from error


def _training_remedy(message: str, options: SubwordOptions) -> str:
    if match := re.search(r"to a value <= (\d+)", message):
        return (
            f"--vocab-size {options.vocab_size} is more than this text gives: "
            f"use {match[1]} or less"
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"--vocab-size {options.vocab_size} is less than the {match[1]} pieces that single "
            f"characters need: use more, or lower --character-coverage {options.character_coverage}"
        )
    return f"SentencePiece cannot be trained on this text: {message}"


def load_model(path: Path) -> Any:
    """A `SentencePieceProcessor`.

    Raises:
        UserError: no such file, or no SentencePiece model.
    """
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        what = "is not a SentencePiece model" if path.is_file() else "does not exist"
        raise UserError(f"--sentencepiece-model {path} {what}") from error


def write_vocabulary(model: Any, path: Path) -> None:
    """The list of pieces and scores that SentencePiece writes beside a model that it trains."""
    lines = (f"{model.id_to_piece(i)}\t{model.get_score(i):g}\n" for i in range(len(model)))
    path.write_text("".join(lines), encoding="utf-8")


def dictionary_symbols(pieces: Iterable[str], langs: Iterable[str]) -> list[str]:
    """The symbols of a shared dictionary file: pieces, then language tokens, then `<mask>`."""
    last = [*map(language_token, langs), MASK]
    left_out = {*SPECIAL, *last}
    return [piece for piece in pieces if piece not in left_out] + last


def write_dictionary(symbols: Iterable[str], path: Path) -> None:
    """Write fairseq's dictionary format, `SYMBOL COUNT` a line; counts are not known: 1."""
    path.write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")


def encode_text(
    model: Any, text: CleanText, langs: Sequence[str], source: Path, target: Path, threads: int
) -> None:
    """Encode the files of `text` in folder `source` to files of the same names in `target`.

    A piece that reads like a special symbol (text that holds `<pad>` or `__de__`) is split into
    its characters, so that no text can forge one.
    """
    reserved = {*SPECIAL, *map(language_token, langs), MASK}
    for lang in text.langs:
        name = f"{text.prefix}.{lang}"
        lines = _lines(source / name)
        with (target / name).open("w", encoding="utf-8", newline="") as file:
            while batch := list(islice(lines, ENCODING_BATCH)):
                for pieces in model.encode(batch, out_type=str, num_threads=threads):
                    if not reserved.isdisjoint(pieces):
                        pieces = _split_reserved(pieces, reserved)
                    print(" ".join(pieces), file=file)


def _split_reserved(pieces: Iterable[str], reserved: set[str]) -> list[str]:
    return [part for piece in pieces for part in (piece if piece in reserved else [piece])]


def _lines(path: Path) -> Iterator[str]:
    # newline="\n": a line of clean text may hold other characters that Python takes for line ends.
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")
