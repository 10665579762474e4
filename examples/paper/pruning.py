#!/usr/bin/env python3
"""Expert pruning: half, and a quarter, of 8 experts, chosen in several ways and by language.

Experts stay by what they did on the validation data: the tokens sent to them (utilisation), the
sum of their combine weights (gate-weight), that weighted by the norm of their output
(activation-norm); or by chance, the baseline, three draws. Nothing is trained after pruning. Then
the two directions of each language are translated with experts that were chosen on those two
alone, beside experts chosen on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import curves
import quality
from results import Report, Table
from study import Scale, both_ways, main
from trainings import Study

CRITERIA = ("utilisation", "gate-weight", "activation-norm")
DRAWS = (1, 2, 3)
SHARES = {"4 of 8": "4", "2 of 8": "2"}


def body(study: Study, scale: Scale) -> Report:
    run = scale.moe()
    study.train([run])
    [whole] = study.evaluate([run])
    pruned = Pruned(study, study.checkpoint(run), run.directions)
    rows: list[list[object]] = [["8 of 8", "", *quality.scores(whole), None, None]]
    by_language: list[list[object]] = []
    for share, keep in SHARES.items():
        chosen = {by: pruned.score(f"{by}-{keep}", "--keep", keep, "--by", by) for by in CRITERIA}
        drawn = [
            pruned.score(f"random-{keep}-{seed}", "--keep", keep, "--by", "random", "--seed",
                         str(seed)) for seed in DRAWS
        ]  # fmt: skip
        rows += [
            [share, by, *quality.scores(one), lost(whole, [one]), None]
            for by, one in chosen.items()
        ]
        spread = curves.deviation([quality.scores(one)[2] for one in drawn])
        rows.append([share, "random", *quality.mean_scores(drawn), lost(whole, drawn), spread])
        by_language += [
            [share, pair, *(bleu(one, pair) for one in (whole, chosen["activation-norm"])),
             bleu(pruned.for_pair(pair, keep), pair)]
            for pair in scale.pairs
        ]  # fmt: skip
    columns = ["experts", "chosen by", *quality.COLUMNS, "BLEU lost", "deviation of draws"]
    names = ["experts", "pair", "BLEU of 8", "chosen on all", "chosen on the pair"]
    return Report(
        seeds=[1],
        tables=[
            Table("pruning", "BLEU and chrF++ of the rest", columns, rows),
            Table("pruning-language", "BLEU of both directions, by activation-norm", names,
                  by_language),
        ],
        findings=[finding(share, by_language) for share in SHARES],
        details={"signatures": quality.signatures(whole)},
    )  # fmt: skip


class Pruned:
    """Pruned files of a checkpoint and what they score.

    Args:
        study: whose data are translated.
        checkpoint: that is pruned; the files lie beside it.
        directions: to translate.
    """

    def __init__(self, study: Study, checkpoint: Path, directions: str):
        self.study, self.checkpoint, self.directions = study, checkpoint, directions
        self.folder = checkpoint.parent / "pruning"
        self.folder.mkdir(exist_ok=True)
        self.stats = self.folder / "stats.json"
        if not self.stats.exists():
            study.zcode("stats", str(checkpoint), str(study.data), "--out", str(self.stats),
                        "--cpu")  # fmt: skip

    def score(self, name: str, *options: str, directions: str = "") -> quality.Results:
        """What the checkpoint scores once pruned with these options."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            stats = () if "random" in options else ("--stats", str(self.stats))
            self.study.zcode("prune", str(self.checkpoint), *options, *stats, "--out", str(path))
        return self.study.evaluate_file(
            path, directions or self.directions, self.folder / f"{name}.json"
        )

    def for_pair(self, pair: str, keep: str) -> quality.Results:
        """Both directions of a pair, with experts chosen on them alone."""
        directions = ",".join(both_ways([pair]))
        return self.score(
            f"{pair}-{keep}", "--keep", keep, "--by", "activation-norm", "--pairs", directions,
            directions=directions,
        )  # fmt: skip


def bleu(result: quality.Results, pair: str) -> float:
    return fmean(result["directions"][direction]["bleu"] for direction in both_ways([pair]))


def lost(whole: quality.Results, several: Sequence[quality.Results]) -> float:
    return quality.scores(whole)[2] - quality.mean_scores(several)[2]


def finding(share: str, by_language: list[list[object]]) -> str:
    own = [[float(str(one)) for one in row[2:]] for row in by_language if row[0] == share]
    whole, general, special = (fmean(column) for column in zip(*own, strict=True))
    return (
        f"{share} experts, chosen by activation-norm: {general - whole:+.2f} BLEU when chosen on "
        f"all pairs, {special - whole:+.2f} when chosen on the pair that is translated."
    )


if __name__ == "__main__":
    main("pruning", __doc__, body)
