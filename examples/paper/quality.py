"""BLEU and chrF++ of what `zcode evaluate` wrote, in groups of directions, and their tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from results import Table, cell

from zcode_plugin.data.pairs import Pair
from zcode_plugin.evaluation import comparison
from zcode_plugin.evaluation.generation import Translations
from zcode_plugin.evaluation.scores import by_group

Results = dict[str, Any]
GROUPS = ("X->en", "en->X", "all")
COLUMNS = [f"{metric} {group}" for metric in ("BLEU", "chrF++") for group in GROUPS]
SAMPLES = 1000  # of a bootstrap


class Test(NamedTuple):
    """A paired bootstrap over the sentences of some directions: corpus scores and p.

    Attributes:
        seed: None for the sentences of all seeds together.
    """

    directions: str
    seed: int | None
    metric: str
    system: str
    score: float
    baseline: float
    p: float | None


def joined(parts: Sequence[Results]) -> Results:
    """Results of several models, each with directions of its own, as those of one."""
    return {"directions": {key: one for part in parts for key, one in part["directions"].items()}}


def scores(result: Results) -> list[float]:
    """Unweighted means over the directions of each group, in the order of COLUMNS."""
    found = {Pair.parse(key): one for key, one in result["directions"].items()}
    groups = by_group(found)
    return [
        fmean(found[direction][metric] for direction in groups[group])
        for metric in ("bleu", "chrf")
        for group in GROUPS
    ]


def mean_bleu(result: Results) -> float:
    """The unweighted mean over all directions."""
    return scores(result)[COLUMNS.index("BLEU all")]


def mean_scores(several: Sequence[Results]) -> list[float]:
    """Means over seeds of `scores`."""
    return [fmean(column) for column in zip(*map(scores, several), strict=True)]


def signatures(result: Results) -> list[str]:
    """Of BLEU and chrF++, each once."""
    entries = result["directions"].values()
    fields = ("bleu_signature", "chrf_signature")
    return list(dict.fromkeys(entry[field] for field in fields for entry in entries))


def significance(
    systems: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    baseline: str,
    alone: Sequence[str] = (),
) -> list[Test]:
    """Every other system against the baseline of the same seed, and of all seeds together.

    Args:
        systems: files of results, of the first seeds or all of them, by system.
        seeds: their seeds.
        baseline: the one that others are held against.
        alone: directions that are tested alone, beside all together.
    """
    names = [baseline, *(name for name in systems if name != baseline)]
    read = {name: [comparison.read_system(path, name) for path in systems[name]] for name in names}
    of_seeds: dict[int | None, list[comparison.System]] = {
        seed: [read[name][number] for name in names if number < len(read[name])]
        for number, seed in enumerate(seeds)
    }
    if len(seeds) > 1:
        of_seeds[None] = [pooled(read[name]) for name in names if len(read[name]) == len(seeds)]
    tests = []
    for seed, several in of_seeds.items():
        if len(several) < 2:
            continue
        paths = [systems[one.name][0] for one in several]
        directions = comparison.common_directions(several, paths)
        made = comparison.compare(several, directions, "bs", SAMPLES)
        for where, metric in product((comparison.ALL, *alone), comparison.TESTED):
            [first, *others] = made.outcomes[metric][where]
            for name, one in zip(made.systems[1:], others, strict=True):
                tests.append(Test(where, seed, metric, name, one.score, first.score, one.p))
    return tests


def pooled(several: Sequence[comparison.System]) -> comparison.System:
    """What models of several seeds translated, as one text."""
    texts = {
        direction: Translations(
            *(
                [line for one in several for line in getattr(one.texts[direction], field)]
                for field in ("sources", "hypotheses", "references")
            )
        )
        for direction in several[0].texts
    }
    return replace(several[0], texts=texts, comet={})


def significance_table(name: str, tests: Sequence[Test], baseline: str) -> Table:
    """The tests, seed by seed."""
    columns = ["directions", "system", "metric", "seed", "score", baseline, "difference", "p"]
    order = {test.system: number for number, test in enumerate(tests)}
    rows = [
        [test.directions, test.system, test.metric, "all" if test.seed is None else test.seed,
         test.score, test.baseline, test.score - test.baseline, test.p]
        for test in sorted(tests, key=lambda test: (
            test.directions, order[test.system], test.metric, test.seed or len(tests)))
    ]  # fmt: skip
    return Table(name, f"Against {baseline} of equal seed", columns, rows)


def finding(tests: Sequence[Test], system: str, baseline: str) -> str:
    """BLEU of a system against the baseline's, for all directions and those tested alone."""
    parts = []
    for where in dict.fromkeys(test.directions for test in tests):
        own = [t for t in tests if (t.directions, t.system, t.metric) == (where, system, "bleu")]
        seeds = [test for test in own if test.seed is not None]
        gain = fmean(test.score - test.baseline for test in seeds)
        ps = f"p of seeds: {', '.join(cell(test.p) for test in seeds)}"
        ps += "".join(f"; of all together: {cell(test.p)}" for test in own if test.seed is None)
        parts.append(f"{where} {gain:+.2f} ({ps})")
    return f"{system} against {baseline}, BLEU: {'; '.join(parts)}."
