"""The objectives of a run and their weights, from the flag `--multitask`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zcode_plugin.data.schedules import Schedule, number, parse_schedule
from zcode_plugin.errors import UserError

# The fixed order in which every rank runs them: expert parallelism depends on it.
KNOWN = ("mt", "dae", "mlm", "electra")
# Those whose batches hide tokens that the encoder predicts.
MASKED = ("mlm", "electra")


@dataclass(frozen=True)
class Objective:
    """One term of the summed loss.

    Attributes:
        name: `mt` (translation), `dae` (denoising), `mlm` (masked language modelling on the
            encoder) or `electra` (finding tokens that a small generator replaced).
        weight: factor of the objective's mean loss; the last one where it changes.
        schedule: of the weight by updates; None where it does not change.
    """

    name: str
    weight: float
    schedule: Schedule | None = None

    def weight_at(self, update: int | None) -> float:
        """The weight after so many updates; the last one where their number is not known."""
        if self.schedule is None or update is None:
            return self.weight
        return self.schedule.at(update)


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """`"mt:1,dae:0@0,1@4000"` -> objectives in the fixed order; a weight left out is 1.

    Raises:
        UserError: an unknown or repeated name, a weight that is no positive number, milestones
            that do not ascend, updates at which all weights are 0.
    """
    flag = "--multitask"
    found: dict[str, Objective] = {}
    for name, values in _by_name(flag, text).items():
        if any("@" in value for value in values):
            schedule = parse_schedule(
                values, f"{flag} {text!r}", "WEIGHT@UPDATE such as 0.5@4000", f" of {name}"
            )
            found[name] = Objective(name, schedule.milestones[-1][1], schedule)
        else:
            found[name] = Objective(name, _positive(flag, text, name, values, default="1"))
    if not found:
        raise UserError('--multitask is empty: give objectives and weights, such as "mt:1,dae:0.5"')
    schedules = [item.schedule for item in found.values() if item.schedule is not None]
    for update in sorted({0, *(step for item in schedules for step, _ in item.milestones)}):
        if not any(item.weight_at(update) for item in found.values()):
            raise UserError(
                f"{flag} {text!r}: after {update} updates all weights are 0; leave one above"
            )
    return tuple(found[name] for name in KNOWN if name in found)


def parse_token_budgets(text: str, objectives: tuple[Objective, ...]) -> dict[str, int]:
    """`"mt:4096,dae:1024"` -> tokens of a batch for the objectives that are named.

    Raises:
        UserError: an objective that is not trained, a number that is not positive.
    """
    flag = "--multitask-max-tokens"
    budgets = {
        name: int(_positive(flag, text, name, values))
        for name, values in _by_name(flag, text).items()
    }
    trained = [objective.name for objective in objectives]
    for name, tokens in budgets.items():
        if name not in trained:
            raise UserError(f"{flag} {text!r}: {name} is not among --multitask {','.join(trained)}")
        if tokens < 1:
            raise UserError(f"{flag} {text!r}: {name} needs at least 1 token")
    return budgets


def _by_name(flag: str, text: str) -> dict[str, list[str]]:
    """What stands behind each objective: `"mt:1,dae:0@0,1@9"` -> {mt: [1], dae: [0@0, 1@9]}."""
    values: dict[str, list[str]] = {}
    name = ""
    for item in filter(None, (part.strip() for part in text.split(","))):
        if name and ":" not in item and "@" in item:
            values[name].append(item)
            continue
        name, _, value = item.partition(":")
        if name not in KNOWN:
            raise UserError(
                f"{flag} {text!r}: unknown objective {name!r}, choose from {', '.join(KNOWN)}"
            )
        if name in values:
            raise UserError(f"{flag} {text!r}: {name} stands there twice, give it once")
        values[name] = [value]
    return values


def _positive(flag: str, text: str, name: str, values: list[str], default: str = "") -> float:
    value = number(values[0] or default)
    if len(values) > 1 or not 0 < value < math.inf:
        raise UserError(
            f"{flag} {text!r}: the number {','.join(values)!r} of {name} must be positive"
        )
    return value
