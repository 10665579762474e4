"""The objectives of a run and their weights, from the flag `--multitask`."""

from __future__ import annotations

from dataclasses import dataclass

from zcode_plugin.errors import UserError

# The fixed order in which every rank runs them: expert parallelism depends on it.
KNOWN = ("mt", "dae")


@dataclass(frozen=True)
class Objective:
    """One term of the summed loss.

    Attributes:
        name: `mt` (translation) or `dae` (denoising).
        weight: factor of the objective's mean loss.
    """

    name: str
    weight: float


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """`"mt:1,dae:0.5"` -> objectives in the fixed order; a weight left out is 1.

    Raises:
        UserError: an unknown or repeated name, a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = item.partition(":")
        if name not in KNOWN:
            raise UserError(
                f"--multitask {text!r}: unknown objective {name!r}, choose from {', '.join(KNOWN)}"
            )
        if name in weights:
            raise UserError(f"--multitask {text!r}: {name} stands there twice, give it once")
        try:
            weights[name] = float(number or 1)
        except ValueError:
            weights[name] = -1.0
        if not 0 < weights[name] < float("inf"):
            raise UserError(
                f"--multitask {text!r}: weight {number!r} of {name} must be a positive number"
            )
    if not weights:
        raise UserError('--multitask is empty: give objectives and weights, such as "mt:1,dae:0.5"')
    return tuple(Objective(name, weights[name]) for name in KNOWN if name in weights)
