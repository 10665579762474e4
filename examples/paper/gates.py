#!/usr/bin/env python3
"""What the gate sees, and what that is worth.

The MoE model of the main table, whose gate reads which token it is beside the layer's input,
against the same with a gate that reads the input alone, and with a fixed hash of the token. Short
trainings, three seeds, all with the same batches; differences are paired with the dense model of
equal seed. "Moved" is the share of the tokens of the validation data that go to another expert at
the end than after two thirds of the updates: what an expert learned of them by then is lost.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import curves
import forward
import torch
from results import Report, Table, cell
from study import DENSE, EIGHT, MOE, Scale, main
from torch import Tensor
from trainings import Run, Study

from zcode_plugin.moe import Gate, GateOutput
from zcode_plugin.reporting.plots import Chart, Series

# Names of runs, and options.
GATES = {
    "learned, sees the token": ("token", MOE),
    "learned": ("state", EIGHT),
    "hash of the token": ("hash", (*EIGHT, "--moe-gate", "hash")),
}
SYSTEMS = {"dense": ("dense", DENSE), **GATES}


def body(study: Study, scale: Scale) -> Report:
    updates = scale.pick(900, 12)
    every = str(updates // 3)
    intervals = (
        "--validate-interval-updates", every, "--save-interval-updates", every,
        "--keep-interval-updates", "-1",
    )  # fmt: skip
    systems = {
        system: [
            scale.run(f"gates-{name}", (*options, *intervals), seed=seed, updates=updates)
            for seed in scale.seeds
        ]
        for system, (name, options) in SYSTEMS.items()
    }
    study.train([run for several in zip(*systems.values(), strict=True) for run in several])
    found = {name: [study.curve(run) for run in runs] for name, runs in systems.items()}
    rows = [row(name, found, study, systems[name]) for name in systems]
    at = [point.updates for point in found["dense"][0]]
    columns = ["gate", "seeds", *(f"loss after {n}" for n in at), "less dense's, paired",
               "deviation", "moved, %"]  # fmt: skip
    return Report(
        seeds=scale.seeds,
        tables=[Table("gates", "Validation loss, bits per target", columns, rows)],
        charts=[chart(found)],
        findings=[finding(one) for one in rows[1:]],
        details={"updates": updates},
    )


def row(name: str, found: dict[str, curves.Curves], study: Study, runs: list[Run]) -> list[object]:
    losses = [[point.loss for point in curve] for curve in found[name]]
    paired = [one[-1] for one in curves.differences(found[name], found["dense"])]
    learned = name in GATES
    return [
        name, len(runs), *(fmean(column) for column in zip(*losses, strict=True)),
        fmean(paired) if learned else None, curves.deviation(paired) if learned else None,
        100 * fmean(moved(study, run) for run in runs) if learned else None,
    ]  # fmt: skip


def moved(study: Study, run: Run) -> float:
    """The share of the validation data's tokens, in all layers, that go elsewhere."""
    folder = study.folder / run.name
    before, after = (
        choices(folder / name, study.data)
        for name in (f"checkpoint_1_{run.updates * 2 // 3}.pt", "checkpoint_last.pt")
    )
    different = sum(int((one != other).sum()) for one, other in zip(before, after, strict=True))
    return different / sum(one.numel() for one in before)


@torch.no_grad()
def choices(checkpoint: Path, data: Path) -> list[Tensor]:
    """The expert of each token of the validation data, in all layers, batch by batch."""
    model, task = forward.load(checkpoint, data, "valid")
    chosen: list[Tensor] = []

    def keep(gate: torch.nn.Module, inputs: tuple[Tensor, Tensor | None], out: GateOutput) -> None:
        padding_T = inputs[1]
        real_T = slice(None) if padding_T is None else ~padding_T
        chosen.append(out.expert_TK[real_T, 0])

    for module in model.modules():
        if isinstance(module, Gate):
            module.register_forward_hook(keep)
    for batch in forward.batches(task, "valid"):
        model(**batch["net_input"])
    return chosen


def chart(found: dict[str, curves.Curves]) -> Chart:
    """Gain over the dense model, one line a gate."""
    return Chart(
        "gates", "What the gate sees", "updates", "bits per target below the dense model",
        [Series(name, [point.updates for point in found[name][0]], gains(found, name), number,
                number, sparse=True)
         for number, name in enumerate(GATES)],
    )  # fmt: skip


def gains(found: dict[str, curves.Curves], name: str) -> list[float]:
    """At each validation, mean over seeds."""
    paired = curves.differences(found["dense"], found[name])
    return [fmean(column) for column in zip(*paired, strict=True)]


def finding(one: list[object]) -> str:
    name, *_, difference, spread, share = one
    deviation = "" if spread is None else f" (deviation {cell(spread)})"
    return (
        f"A gate, {name}: {difference:+.3f} bits{deviation} from the dense model; "
        f"{share:.0f} % of tokens moved."
    )


if __name__ == "__main__":
    main("gates", __doc__, body)
