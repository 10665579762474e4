"""Systems that translated the same text: scores side by side, with sacreBLEU's paired tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from zcode_plugin.console import format_table
from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.evaluation.generation import Translations
from zcode_plugin.evaluation.scores import (
    DECIMALS,
    METRICS,
    by_group,
    check_tokenizer,
    in_order,
    tokenizer_of,
)

TESTS = {"bs": "paired bootstrap resampling", "ar": "paired approximate randomisation"}
TESTED = ("bleu", "chrf")
ALL = "all sentences"
SIGNIFICANT = 0.05
# sacreBLEU has all samples in memory at once. Bytes of a sentence in one: of a resample 24 numbers
# of chrF++ in float32 and where it was drawn from, of a trial of randomisation its draw.
SAMPLE_BYTES = {"bs": 24 * 4 + 16, "ar": 16}
MOST_BYTES = 8 << 30


@dataclass(frozen=True)
class System:
    """What `zcode evaluate --out` wrote.

    Attributes:
        name: how tables call it.
        texts: by direction.
        tokenizers: of BLEU, by direction.
        comet: scores by direction, and the model that gave them; empty without any.
    """

    name: str
    texts: dict[Pair, Translations]
    tokenizers: dict[Pair, str]
    comet: dict[Pair, float]
    comet_model: str | None


@dataclass(frozen=True)
class Outcome:
    """A system's score; `p` is of the null hypothesis that it is no other than the baseline's.

    `mean` and `ci` (half the width of the 95 % interval) are of the bootstrap's resamples.
    """

    score: float
    p: float | None = None
    mean: float | None = None
    ci: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Outcomes by metric and by direction, or `ALL`, one for each system, the baseline first."""

    systems: list[str]
    sentences: dict[str, int]
    outcomes: dict[str, dict[str, list[Outcome]]]
    signatures: dict[str, dict[str, str]]
    notes: list[str]


def read_system(path: Path, name: str) -> System:
    """Read a results file.

    Raises:
        UserError: it is none, or an older one without texts.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        entries = {Pair.parse(key): entry for key, entry in record["directions"].items()}
        tokenizers = {
            direction: tokenizer_of(entry["bleu_signature"]) for direction, entry in entries.items()
        }
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no results file of zcode evaluate --out") from error
    for tokenizer in set(tokenizers.values()):
        check_tokenizer(tokenizer, str(path))
    if any("hypotheses" not in entry for entry in entries.values()):
        raise UserError(
            f"{path} is of an older zcode evaluate, without translations: evaluate again"
        )
    fields = ("sources", "hypotheses", "references")
    comet = {d: entry["comet"] for d, entry in entries.items() if entry.get("comet") is not None}
    return System(
        name,
        {d: Translations(*(entry[field] for field in fields)) for d, entry in entries.items()},
        tokenizers,
        comet,
        record.get("comet_model"),
    )


def common_directions(systems: Sequence[System], paths: Sequence[Path]) -> list[Pair]:
    """Directions that all have, in the order of tables.

    Raises:
        UserError: there are none, or two systems have other references or tokenizers.
    """
    first = systems[0]
    common = [d for d in first.texts if all(d in system.texts for system in systems)]
    if not common:
        raise UserError(f"{' and '.join(map(str, paths))} have no direction in common")
    for system, path in zip(systems, paths, strict=True):
        for direction in common:
            if system.texts[direction].references != first.texts[direction].references:
                raise UserError(
                    f"{path} has other references of {direction} than {paths[0]}: evaluate both on "
                    "the same data and split"
                )
            if system.tokenizers[direction] != first.tokenizers[direction]:
                raise UserError(
                    f"{path} was scored with the tokenizer {system.tokenizers[direction]} in "
                    f"{direction}, {paths[0]} with {first.tokenizers[direction]}: give both the "
                    "same --sacrebleu-tokenizer"
                )
    return in_order(common)


def compare(
    systems: Sequence[System], directions: Sequence[Pair], test: str, samples: int
) -> Comparison:
    """Test each system against the first, in each direction and in all together.

    Args:
        systems: two or more.
        directions: see `common_directions`.
        test: `bs` or `ar`.
        samples: resamples or trials.
    """
    made = Comparison([system.name for system in systems], {}, {m: {} for m in TESTED}, {}, [])
    for direction in directions:
        texts = [system.texts[direction] for system in systems]
        _add(made, str(direction), texts, systems[0].tokenizers[direction], test, samples)
    _add_all(made, systems, directions, test, samples)
    models = {system.comet_model for system in systems}
    if len(models) == 1 and all(d in system.comet for system in systems for d in directions):
        made.outcomes["comet"] = {
            str(d): [Outcome(system.comet[d]) for system in systems] for d in directions
        }
    return made


def _add_all(
    made: Comparison,
    systems: Sequence[System],
    directions: Sequence[Pair],
    test: str,
    samples: int,
) -> None:
    """The text of all directions as one."""
    tokenizers = {systems[0].tokenizers[direction] for direction in directions}
    if len(tokenizers) > 1:
        made.notes.append(f"{ALL}: no BLEU, whose tokenizer differs between directions")
    joined = [
        Translations(
            *(
                [line for d in directions for line in getattr(system.texts[d], field)]
                for field in ("sources", "hypotheses", "references")
            )
        )
        for system in systems
    ]
    tokenizer = tokenizers.pop() if len(tokenizers) == 1 else None
    _add(made, ALL, joined, tokenizer, test, samples)


def _add(
    made: Comparison,
    name: str,
    texts: Sequence[Translations],
    tokenizer: str | None,
    test: str,
    samples: int,
) -> None:
    """Run sacreBLEU's own test where there is memory for it; without a tokenizer no BLEU."""
    from sacrebleu.metrics.base import Metric
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    metrics: dict[str, Metric] = {}
    if tokenizer is not None:
        metrics["bleu"] = BLEU(tokenize=tokenizer, force=True)
    metrics["chrf"] = CHRF(word_order=2)
    named: list[Any] = [(str(number), one.hypotheses) for number, one in enumerate(texts)]
    made.sentences[name] = len(texts[0].references)
    most = MOST_BYTES // (SAMPLE_BYTES[test] * made.sentences[name])
    is_tested = samples <= most
    if not is_tested:
        made.notes.append(f"{name}: not tested for lack of memory: give --samples {most} or fewer")
    for metric, scorer in metrics.items():
        if is_tested:
            paired = PairedTest(named, {metric: scorer}, [texts[0].references], test, samples)
            signatures, results = paired()
            [[sacrebleu_name, signature]] = signatures.items()
            found: list[Any] = list(results[sacrebleu_name])
            outcomes = [_outcome(result, found[0].score) for result in found]
        else:
            scores = [scorer.corpus_score(one.hypotheses, [one.references]) for one in texts]
            outcomes = [Outcome(float(score.score)) for score in scores]
            signature = scorer.get_signature()
        made.outcomes[metric][name] = outcomes
        made.signatures.setdefault(metric, {})[name] = str(signature)


def _outcome(result: Any, baseline: float) -> Outcome:
    """Of sacreBLEU's result, with numbers that JSON knows."""
    found = (result.score, result.p_value, result.mean, result.ci)
    score, p, mean, ci = (None if number is None else float(number) for number in found)
    assert score is not None
    # Every difference of chance is at least as large as none; sacreBLEU counts larger ones alone,
    # of which equal texts have none, and calls them different.
    if p is not None and score == baseline:
        p = 1.0
    return Outcome(score, p, mean, ci)


def comparison_table(made: Comparison, directions: Sequence[Pair], metric: str) -> str:
    """Directions, means over them, and all sentences together; p beside each but the baseline."""
    outcomes = made.outcomes[metric]
    tested = metric in TESTED
    baseline, *others = made.systems
    header = ["direction", "sentences", baseline]
    for name in others:
        header += [name, "p"] if tested else [name]
    rows = [header]
    for name in [*map(str, directions), *([ALL] if ALL in outcomes else [])]:
        rows.append([name, f"{made.sentences[name]:,}", *_cells(metric, outcomes[name], tested)])
    for group, means in mean_scores(made, directions, metric).items():
        number = len(by_group(directions)[group])
        unknown = [Outcome(mean) for mean in means]
        rows.append([f"mean {group}", f"{number} dir.", *_cells(metric, unknown, tested)])
    return f"{METRICS[metric]}\n{format_table(rows)}"


def mean_scores(
    made: Comparison, directions: Sequence[Pair], metric: str
) -> dict[str, list[float]]:
    """Unweighted means over the directions of each group, a mean for each system."""
    outcomes = made.outcomes[metric]
    return {
        group: [
            fmean(outcomes[str(direction)][number].score for direction in members)
            for number in range(len(made.systems))
        ]
        for group, members in by_group(directions).items()
    }


def _cells(metric: str, outcomes: Sequence[Outcome], tested: bool) -> list[str]:
    cells = []
    for number, outcome in enumerate(outcomes):
        cells.append(f"{outcome.score:.{DECIMALS.get(metric, 2)}f}")
        if tested and number:
            star = "*" if outcome.p is not None and outcome.p < SIGNIFICANT else " "
            cells.append("" if outcome.p is None else f"{outcome.p:.4f}{star}")
    return cells


def signature_lines(signatures: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Each signature once, with its metric."""
    return [
        f"{METRICS[metric]}: {signature}"
        for metric, of_metric in signatures.items()
        for signature in dict.fromkeys(of_metric.values())
    ]
