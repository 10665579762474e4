"""BLEU and chrF++ of translations, their means, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from zcode_plugin.console import format_table
from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError, suggestion
from zcode_plugin.evaluation.generation import Translations

# Languages written without spaces between words, for which 13a would count sentences as words.
TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "cmn", "yue"), "zh"),
    **dict.fromkeys(("ja", "jpn", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm"), "char"),
}
DEFAULT_TOKENIZER = "13a"
GROUPS = ("X->en", "en->X", "other")
# Scores by their name in JSON, in the order of the table's columns.
METRICS = {"bleu": "BLEU", "chrf": "chrF++", "comet": "COMET", "copy_bleu": "copy BLEU"}
DECIMALS = {"comet": 4}  # of most scores 2


@dataclass(frozen=True)
class Score:
    """The scores of one direction, with what reproduces them.

    BLEU and chrF++ are from 0 to 100; COMET is what its model gives, of most about 0 to 1.
    """

    bleu: float
    chrf: float
    copy_bleu: float | None
    sentences: int
    unknown_references: int
    bleu_signature: str
    chrf_signature: str
    comet: float | None = None


def tokenizer_for(lang: str, chosen: Mapping[str, str]) -> str:
    """sacreBLEU's tokenizer for a target language.

    Args:
        lang: the language; of `zh_Hans` and the like the part before `_` counts, too.
        chosen: tokenizers by language; the one for "" is for all others.
    """
    base = lang.split("_")[0]
    for name in (chosen.get(lang), chosen.get(base), chosen.get(""), TOKENIZERS.get(base)):
        if name is not None:
            return name
    return DEFAULT_TOKENIZER


def parse_tokenizers(text: str | None) -> dict[str, str]:
    """The value of `--sacrebleu-tokenizer`: NAME for all languages, or LANG=NAME, with commas.

    Raises:
        UserError: sacreBLEU has no such tokenizer, or it needs a package that is missing.
    """
    chosen = {}
    for part in text.split(",") if text else ():
        lang, _, name = part.rpartition("=")
        check_tokenizer(name, f"--sacrebleu-tokenizer {part}")
        chosen[lang] = name
    return chosen


def check_tokenizer(name: str, whence: str) -> None:
    """Refuse one that cannot be had.

    Args:
        name: sacreBLEU's.
        whence: it comes, for the error.

    Raises:
        UserError: sacreBLEU has no such tokenizer, or it needs a package that is missing.
    """
    from sacrebleu.metrics.bleu import BLEU

    if name not in BLEU.TOKENIZERS:
        near = suggestion(name, BLEU.TOKENIZERS) or f"; it has {', '.join(BLEU.TOKENIZERS)}"
        raise UserError(f"{whence}: sacreBLEU has no {name!r}{near}")
    try:
        BLEU(tokenize=name)
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(f"{whence}: {' '.join(str(error).split())}") from error


def tokenizer_of(signature: str) -> str:
    """The name of the tokenizer in BLEU's signature, which may have a version and more after it.

    Raises:
        ValueError: there is none.
    """
    from sacrebleu.metrics.bleu import BLEU

    found = re.search(r"\btok:([^|]+)", signature)
    if found is None:
        raise ValueError(f"{signature} is no signature of BLEU")
    names = [name for name in BLEU.TOKENIZERS if f"{found[1]}-".startswith(f"{name}-")]
    return max(names, key=len, default=found[1])


def score(texts: Translations, tokenizer: str, copy_baseline: bool) -> Score:
    """Score translations with sacreBLEU.

    Args:
        texts: what to score.
        tokenizer: sacreBLEU's, for BLEU.
        copy_baseline: whether to score the sources as if they were translations, too.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # force: no warning about text that looks tokenized, which short interface text often does.
    bleu, chrf = BLEU(tokenize=tokenizer, force=True), CHRF(word_order=2)
    references = [texts.references]
    bleu_score = bleu.corpus_score(texts.hypotheses, references).score
    chrf_score = chrf.corpus_score(texts.hypotheses, references).score
    return Score(
        bleu=bleu_score,
        chrf=chrf_score,
        copy_bleu=bleu.corpus_score(texts.sources, references).score if copy_baseline else None,
        sentences=len(texts.hypotheses),
        unknown_references=texts.unknown_references,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def means(scores: Mapping[Pair, Score]) -> dict[str, dict[str, float]]:
    """Unweighted means over directions: from English, into English, between others, of all.

    Groups without a direction are left out.
    """
    return {
        group: {"directions": len(members)}
        | {
            name: fmean(getattr(scores[direction], name) for direction in members)
            for name in METRICS
            if all(getattr(scores[direction], name) is not None for direction in members)
        }
        for group, members in by_group(scores).items()
    }


def by_group(directions: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Directions by group, and as `all` all of them; groups without a direction are left out."""
    every = list(directions)
    groups = {group: [d for d in every if d.group == group] for group in GROUPS}
    return {group: members for group, members in groups.items() if members} | {"all": every}


def in_order(directions: Iterable[Pair]) -> list[Pair]:
    """As tables show them: by group, then by name."""
    return sorted(directions, key=lambda d: (GROUPS.index(d.group), str(d)))


def score_table(scores: Mapping[Pair, Score]) -> str:
    """The table of all directions, by group, and the means below."""
    average = means(scores)
    titles = [title for name, title in METRICS.items() if name in average["all"]]
    rows = [["direction", "sentences", *titles]]
    for direction in in_order(scores):
        entry = scores[direction]
        rows.append([str(direction), f"{entry.sentences:,}", *_cells(asdict(entry))])
    for group, entries in average.items():
        rows.append([f"mean {group}", f"{entries['directions']} dir.", *_cells(entries)])
    return format_table(rows)


def _cells(entries: Mapping[str, Any]) -> list[str]:
    values = {name: entries.get(name) for name in METRICS}
    return [shown(name, value) for name, value in values.items() if value is not None]


def shown(metric: str, value: float) -> str:
    """A score as tables have it."""
    return f"{value:.{DECIMALS.get(metric, 2)}f}"


def signature_lines(entries: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """Each signature once; where there are several, with the directions that it is for.

    Args:
        entries: by direction, what results files have of it.
    """
    lines = []
    for metric, key in (("BLEU", "bleu_signature"), ("chrF++", "chrf_signature")):
        groups: dict[str, list[str]] = {}
        for direction, entry in entries.items():
            groups.setdefault(str(entry.get(key)), []).append(str(direction))
        for signature, names in groups.items():
            whose = f" ({', '.join(names)})" if len(groups) > 1 else ""
            lines.append(f"{metric}{whose}: {signature}")
    return lines


def unknown_lines(scores: Mapping[Pair, Score]) -> Iterable[str]:
    """A line for each direction with references that no translation can match."""
    for direction, entry in scores.items():
        if entry.unknown_references:
            yield (
                f"{direction}: {entry.unknown_references} of {entry.sentences} references hold "
                "<<unk>>, a token that the dictionary lacks"
            )
