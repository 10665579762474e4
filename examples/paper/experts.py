#!/usr/bin/env python3
"""Experts against sample efficiency: 1, 2, 4, 8 and 16 at equal compute per token.

Every token goes to one expert, so models with more experts have more parameters and the same
compute; with one it is the dense model. All see the same batches. "Times fewer updates" compares
with what the dense model took to its final loss. The paper: 64 experts need about a tenth of the
dense model's updates, and the gain shrinks as experts are added.
"""

from __future__ import annotations

import curves
import quality
from records import Records, origins
from results import Report, Table, loss_charts
from study import MOE, Scale, main_with_records
from trainings import Run


def body(records: Records, scale: Scale) -> Report:
    runs: dict[int, Run] = {1: scale.dense(), 8: scale.moe()}
    for experts in (2, 4, 16):
        options = (*MOE, "--moe-expert-count", str(experts))
        runs[experts] = scale.run(f"experts-{experts}", options)
    measured = records.measure({experts: [runs[experts]] for experts in sorted(runs)}, [1])
    found = {experts: [one.curve] for experts, [one] in measured.items()}
    rows = [
        [experts, one.parameters, curves.final(found[experts]),
         *curves.speedup(found[experts], found[1]), quality.mean_bleu(one.results),
         one.curve[-1].seconds / 60]
        for experts, [one] in measured.items()
    ]  # fmt: skip
    columns = [
        "experts", "parameters", "final loss", "times fewer updates", "times less time",
        "BLEU all", "minutes",
    ]  # fmt: skip
    named = {
        f"{experts} experts" if experts > 1 else "dense": one for experts, one in found.items()
    }
    dense = curves.final(found[1])
    gains = [f"{experts}: {dense - curves.final(one):.3f}" for experts, one in found.items()][1:]
    return Report(
        seeds=[1],
        tables=[Table("experts", "Validation loss, bits per target", columns, rows)],
        charts=loss_charts("experts", "Number of experts", named),
        findings=[f"Bits per target below the dense model's, by experts: {', '.join(gains)}."],
        details={"updates": scale.updates, **origins(measured)},
    )


if __name__ == "__main__":
    main_with_records("experts", __doc__, body)
