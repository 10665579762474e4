"""The objectives of a run and their weights, from the flag `--multitask`."""

from __future__ import annotations

from dataclasses import dataclass

from zcode_plugin.errors import UserError

# The fixed order in which every rank runs them: expert parallelism depends on it.
KNOWN = ("mt", "dae", "mlm")


@dataclass(frozen=True)
class Objective:
    """One term of the summed loss.

    Attributes:
        name: `mt` (translation), `dae` (denoising) or `mlm` (masked language modelling on the
            encoder).
        weight: factor of the objective's mean loss.
    """

    name: str
    weight: float


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """`"mt:1,dae:0.5"` -> objectives in the fixed order; a weight left out is 1.

    Raises:
        UserError: an unknown or repeated name, a weight that is no positive number.
    """
    weights = _by_name("--multitask", text, default="1")
    if not weights:
        raise UserError('--multitask is empty: give objectives and weights, such as "mt:1,dae:0.5"')
    return tuple(Objective(name, weights[name]) for name in KNOWN if name in weights)


def parse_token_budgets(text: str, objectives: tuple[Objective, ...]) -> dict[str, int]:
    """`"mt:4096,dae:1024"` -> tokens of a batch for the objectives that are named.

    Raises:
        UserError: an objective that is not trained, a number that is not positive.
    """
    flag = "--multitask-max-tokens"
    budgets = {name: int(number) for name, number in _by_name(flag, text).items()}
    trained = [objective.name for objective in objectives]
    for name, number in budgets.items():
        if name not in trained:
            raise UserError(f"{flag} {text!r}: {name} is not among --multitask {','.join(trained)}")
        if number < 1:
            raise UserError(f"{flag} {text!r}: {name} needs at least 1 token")
    return budgets


def _by_name(flag: str, text: str, default: str = "") -> dict[str, float]:
    """Positive numbers by objective."""
    numbers: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = item.partition(":")
        if name not in KNOWN:
            raise UserError(
                f"{flag} {text!r}: unknown objective {name!r}, choose from {', '.join(KNOWN)}"
            )
        if name in numbers:
            raise UserError(f"{flag} {text!r}: {name} stands there twice, give it once")
        try:
            numbers[name] = float(number or default)
        except ValueError:
            numbers[name] = -1.0
        if not 0 < numbers[name] < float("inf"):
            raise UserError(f"{flag} {text!r}: the number {number!r} of {name} must be positive")
    return numbers
