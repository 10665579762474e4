#!/usr/bin/env python3
"""Experts against sample efficiency: 1, 2, 4, 8 and 16 at equal compute per token.

Every token goes to one expert, so models with more experts have more parameters and the same
compute; with one it is the dense model. All see the same batches. Seeds of one model differ by as
much as numbers of experts do, so there are three of each; "times fewer updates" compares with what
the dense models of the same seeds took to their final loss. The paper: 64 experts need about a
tenth of the dense model's updates, and the gain shrinks as experts are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import curves
import quality
from records import Records, origins
from results import Report, Table, loss_charts
from study import MOE, Scale, main_with_records
from trainings import Run


def body(records: Records, scale: Scale) -> Report:
    measured = records.measure(numbers(scale), [1])
    found = {experts: [one.curve for one in several] for experts, several in measured.items()}
    rows = [
        [experts, len(several), several[0].parameters, curves.final(found[experts]),
         curves.deviation([one[-1].loss for one in found[experts]]),
         curves.final(found[1][: len(several)]), *curves.speedup(found[experts], found[1]),
         fmean(quality.mean_bleu(one.results) for one in several),
         fmean(one.curve[-1].seconds / 60 for one in several)]
        for experts, several in measured.items()
    ]  # fmt: skip
    columns = [
        "experts", "seeds", "parameters", "final loss", "deviation", "dense's, of these seeds",
        "times fewer updates", "times less time", "BLEU all", "minutes",
    ]  # fmt: skip
    named = {
        f"{experts} experts" if experts > 1 else "dense": one for experts, one in found.items()
    }
    return Report(
        seeds=scale.seeds[: len(measured[1])],
        tables=[Table("experts", "Validation loss, bits per target, means", columns, rows)],
        charts=loss_charts("experts", "Number of experts", named),
        findings=[finding(found)],
        details={"updates": scale.updates, **origins(measured)},
    )


def numbers(scale: Scale) -> dict[int, list[Run]]:
    """Runs by the number of experts, of each seed."""

    def run(experts: int, seed: int) -> Run:
        if experts == 1:
            return scale.dense(seed)
        if experts == 8:
            return scale.moe(seed)
        options = (*MOE, "--moe-expert-count", str(experts))
        return scale.run(f"experts-{experts}", options, seed=seed)

    return {experts: [run(experts, seed) for seed in scale.seeds] for experts in (1, 2, 4, 8, 16)}


def finding(found: Mapping[int, curves.Curves]) -> str:
    dense = found[1]
    gains = [
        f"{experts}: {curves.final(dense[: len(one)]) - curves.final(one):.3f}"
        + (f" ({len(one)} of {len(dense)} seeds)" if len(one) < len(dense) else "")
        for experts, one in found.items()
        if experts > 1
    ]
    spread = curves.deviation([one[-1].loss for one in dense])
    known = f"; seeds of the dense model deviate by {spread:.3f}" if spread is not None else ""
    return f"Bits per target below the dense models', by experts: {', '.join(gains)}{known}."


if __name__ == "__main__":
    main_with_records("experts", __doc__, body)
