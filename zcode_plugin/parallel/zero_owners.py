"""Which rank keeps the optimizer's state of which parameter, with `--zero-sharding os` (ZeRO-1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Entry of a sharded optimizer's state: the numbers of the parameters that the rank owns.
OWNED = "owned"


@dataclass(frozen=True)
class Sized:
    """What decides about a parameter.

    Attributes:
        elements: of the parameter on this rank.
        is_expert: whether only the ranks with the same experts have it.
    """

    elements: int
    is_expert: bool


def owners(sizes: Sequence[int], members: int) -> list[int]:
    """The place of the owner of each parameter in a group of ranks that all have it.

    The largest come first, each to the member with least so far: as even as whole parameters allow.
    No member has more than an equal share and the largest parameter together.

    Args:
        sizes: elements of the parameters, in the optimizer's order.
        members: ranks of the group.
    """
    loads = [0] * members
    places = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        places[index] = loads.index(min(loads))
        loads[places[index]] += sizes[index]
    return places


def owned_numbers(
    parameters: Sequence[Sized], *, world: int, expert_parallel: int, rank: int
) -> list[int]:
    """The numbers of the parameters that a rank owns, in their order.

    Shared parameters are divided over the world, those of experts over the ranks that hold the
    same experts: every P-th of the world.

    Args:
        parameters: of the rank, as its optimizer numbers them.
        world: ranks.
        expert_parallel: P, `--expert-parallel-size`.
        rank: from 0.
    """
    numbers = []
    for is_expert, members, place in (
        (False, world, rank),
        (True, world // expert_parallel, rank // expert_parallel),
    ):
        kind = [number for number, one in enumerate(parameters) if one.is_expert == is_expert]
        places = owners([parameters[number].elements for number in kind], members)
        numbers += [number for number, owner in zip(kind, places, strict=True) if owner == place]
    return sorted(numbers)
