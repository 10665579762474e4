"""What parameters, gradients and the optimizer's state take on a rank, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zcode_plugin.errors import UserError

# D: every rank holds all. E: experts are spread over ranks, E+D: several groups of ranks do so.
# Z1: the optimizer's state is spread over the ranks that hold the same parameters.
Form = Literal["D", "D+Z1", "E", "E+Z1", "E+D", "E+D+Z1"]


@dataclass(frozen=True)
class ElementBytes:
    """Bytes of one element: by default float32 with Adam.

    Attributes:
        parameter: with `--fp16` or `--bf16`, 2 and 4 for the float32 copy, which all ranks keep;
            with their memory-efficient forms 2.
        gradient: the same.
        optimizer: 8 with Adam, for two moments in float32; 4 with SGD with momentum.
    """

    parameter: int = 4
    gradient: int = 4
    optimizer: int = 8


@dataclass(frozen=True)
class RankBytes:
    """Bytes on the rank that holds most."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def bytes_per_rank(
    dense: int,
    experts: int,
    *,
    world: int,
    parallel: int,
    form: Form,
    element: ElementBytes | None = None,
    largest_dense: int = 0,
    largest_expert: int = 0,
) -> RankBytes:
    """Bytes of a rank in a form of parallelism; activations, buffers and copies in use not counted.

    Args:
        dense: trained elements outside of experts; those that entries share count once.
        experts: trained elements of all experts of all layers.
        world: W, ranks.
        parallel: P, `--expert-parallel-size`; divides W.
        form: see `Form`; must be that of W and P.
        element: bytes of one element.
        largest_dense, largest_expert: with Z1, elements of the largest parameter of each kind on a
            rank (an embedding; the stack of a rank's experts of one layer): a parameter's state is
            not divided, so that on many ranks its owner has more than an equal share.

    Raises:
        UserError: the sizes do not divide each other, or are of another form.
    """
    _check(form, world, parallel)
    element = element or ElementBytes()
    local = dense + experts / parallel
    state = local
    if "Z1" in form:
        state = max(dense / world, largest_dense) + max(experts / world, largest_expert)
    return RankBytes(
        parameters=round(element.parameter * local),
        gradients=round(element.gradient * local),
        optimizer=round(element.optimizer * state),
    )


def _check(form: Form, world: int, parallel: int) -> None:
    if world < 1 or parallel < 1 or world % parallel:
        raise UserError(f"--expert-parallel-size {parallel} must divide the world size {world}")
    parts = form.split("+")
    if ("E" not in parts and parallel > 1) or ("D" not in parts and parallel < world):
        raise UserError(
            f"--expert-parallel-size {parallel} on {world} ranks is not of the form {form}: "
            "E alone takes as many as there are ranks, D alone takes 1"
        )
