"""Literal tables: which token of a tiny batch ends at which expert."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zcode_plugin.moe.routing import (
    Routing,
    capacity,
    capacity_of_unpadded,
    route,
    token_priority,
)


def table(routing: Routing) -> list[list[int]]:
    """Tokens of each expert, in ascending order."""
    return [sorted(part.tolist()) for part in routing.token_A.split(routing.kept_E.tolist())]


# experts of the choices [K][T], number of experts, capacity, priorities or None, tokens kept of
# each expert, demand of each expert
TABLES = {
    "balanced": ([[0, 1, 0, 1]], 2, 2, None, [[0, 2], [1, 3]], [2, 2]),
    "overflow keeps the first": ([[0, 0, 0, 1]], 2, 2, None, [[0, 1], [3]], [3, 1]),
    "overflow keeps the best": (
        [[0, 0, 0, 1]],
        2,
        2,
        [0.1, 0.9, 0.5, 0.2],
        [[1, 2], [3]],
        [3, 1],
    ),
    "equal priorities keep the first": (
        [[0, 0, 0, 0]],
        2,
        2,
        [0.5, 0.7, 0.5, 0.5],
        [[0, 1], []],
        [4, 0],
    ),
    "a draw of zero is a draw": ([[0, 0, 0]], 1, 2, [0.0, 0.25, 0.0], [[0, 1]], [3]),
    "first choices go before second ones": (
        [[1, 1, 0], [0, 0, 1]],
        2,
        2,
        None,
        [[0, 2], [0, 1]],
        [3, 3],
    ),
    "a good score does not lift a second choice": (
        [[1, 1, 0], [0, 0, 1]],
        2,
        2,
        [0.9, 0.8, 0.1],
        [[0, 2], [0, 1]],
        [3, 3],
    ),
    "four choices": (
        [[0, 1], [1, 2], [2, 3], [3, 0]],
        4,
        1,
        None,
        [[0], [1], [1], [1]],
        [2, 2, 2, 2],
    ),
    "random order, fixed draws": (
        [[0, 0, 1, 0, 1, 1, 0]],
        2,
        2,
        [0.42, 0.07, 0.91, 0.88, 0.13, 0.35, 0.64],
        [[3, 6], [2, 5]],
        [4, 3],
    ),
    "random order, two choices, fixed draws": (
        [[0, 0, 0, 1], [1, 1, 1, 0]],
        2,
        2,
        [0.2, 0.9, 0.5, 0.3],
        [[1, 2], [1, 3]],
        [4, 4],
    ),
    "four choices, overflow keeps the best within a choice": (
        [[0, 0, 1], [1, 2, 0], [2, 3, 3], [3, 1, 2]],
        4,
        2,
        [0.1, 0.3, 0.2],
        [[0, 1], [0, 2], [0, 1], [1, 2]],
        [3, 3, 3, 3],
    ),
    "all tokens to the same four experts": (
        [[3] * 3, [2] * 3, [1] * 3, [0] * 3],
        4,
        1,
        [0.5, 0.6, 0.1],
        [[1], [1], [1], [1]],
        [3, 3, 3, 3],
    ),
    "one token, four choices": ([[2], [0], [3], [1]], 4, 1, None, [[0], [0], [0], [0]], [1] * 4),
    "no token, four choices": ([[], [], [], []], 4, 1, None, [[], [], [], []], [0] * 4),
    "capacity above the token count, two choices": (
        [[0, 1], [1, 0]],
        2,
        9,
        [0.1, 0.2],
        [[0, 1], [0, 1]],
        [2, 2],
    ),
    "no place at all": ([[0, 1]], 2, 0, None, [[], []], [1, 1]),
    "all tokens to one expert": ([[2] * 5], 3, 2, None, [[], [], [0, 1]], [0, 0, 5]),
    "capacity above the token count": ([[1, 1]], 2, 100, None, [[], [0, 1]], [0, 2]),
    "one token": ([[1]], 2, 1, None, [[], [0]], [0, 1]),
    "no token": ([[]], 2, 1, None, [[], []], [0, 0]),
    "no token, two choices": ([[], []], 2, 1, None, [[], []], [0, 0]),
}


@pytest.mark.parametrize("name", TABLES)
def test_table(name: str) -> None:
    choices, num_experts, limit, priority, kept, demand = TABLES[name]
    priority_T = None if priority is None else torch.tensor(priority)
    routing = route(
        torch.tensor(choices, dtype=torch.int64), num_experts, limit, priority_T=priority_T
    )
    assert table(routing) == kept
    assert routing.demand_E.tolist() == demand
    assert routing.kept_E.tolist() == [len(tokens) for tokens in kept]


def test_padding_is_neither_routed_nor_counted() -> None:
    routing = route(
        torch.tensor([[0, 0, 0, 1, 1]]),
        2,
        2,
        padding_T=torch.tensor([True, False, False, False, True]),
    )
    assert table(routing) == [[1, 2], [3]]
    assert routing.demand_E.tolist() == [2, 1]


def test_padding_takes_no_place_of_a_second_choice() -> None:
    padding_T = torch.tensor([True, False])
    routing = route(torch.tensor([[0, 1], [1, 0]]), 2, 1, padding_T=padding_T)
    assert table(routing) == [[1], [1]]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_nothing_but_padding(k: int) -> None:
    expert_KT = torch.arange(k)[:, None].expand(k, 3)
    routing = route(expert_KT, 4, 2, padding_T=torch.ones(3, dtype=torch.bool))
    assert table(routing) == [[], [], [], []]
    assert routing.demand_E.tolist() == [0, 0, 0, 0]


def test_padding_takes_no_place_of_four_choices() -> None:
    routing = route(
        torch.tensor([[0, 0, 1], [1, 2, 0], [2, 3, 3], [3, 1, 2]]),
        4,
        1,
        priority_T=torch.tensor([0.9, 0.1, 0.2]),
        padding_T=torch.tensor([True, False, False]),
    )
    assert table(routing) == [[1], [2], [1], [2]]
    assert routing.demand_E.tolist() == [2, 2, 2, 2]


def test_slots_name_the_choice() -> None:
    routing = route(torch.tensor([[1, 1, 0], [0, 0, 1]]), 2, 2)
    # Slot = choice * tokens + token, grouped by expert.
    assert routing.slot_A.tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "factor", "least", "expected"),
    [
        (2048, 8, 1, 1.0, 4, 256),
        (2048, 8, 2, 1.0, 4, 512),
        (2049, 8, 1, 1.0, 4, 257),
        (2048, 8, 1, 1.25, 4, 320),
        (30, 3, 1, 0.1, 0, 1),
        (300, 1, 1, 0.1, 0, 30),
        (10, 8, 1, 1.0, 4, 4),
        (3, 8, 1, 1.0, 4, 3),
        (100, 2, 1, 10.0, 4, 100),
        (100, 8, 1, 0.0, 4, 100),
        (0, 8, 1, 1.0, 4, 0),
    ],
)
def test_capacity(
    tokens: int, experts: int, k: int, factor: float, least: int, expected: int
) -> None:
    assert capacity(tokens, experts, k, factor, least) == expected


@st.composite
def routing_problems(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, torch.Tensor, torch.Tensor]:
    tokens, experts = draw(st.integers(0, 40)), draw(st.integers(1, 9))
    k = draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.rand(tokens, experts, generator=generator)
    padding = torch.rand(tokens, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    priority = torch.rand(tokens, generator=generator)
    return scores.topk(k, dim=1).indices.t(), experts, draw(st.integers(0, 40)), priority, padding


@settings(deadline=None, max_examples=200)
@given(routing_problems())
def test_invariants(
    problem: tuple[torch.Tensor, int, int, torch.Tensor, torch.Tensor],
) -> None:
    expert_KT, num_experts, limit, priority_T, padding_T = problem
    routing = route(expert_KT, num_experts, limit, priority_T=priority_T, padding_T=padding_T)
    assert (routing.kept_E <= limit).all()
    assert routing.kept_E.tolist() == routing.demand_E.clamp(max=limit).tolist()
    assert int(routing.kept_E.sum()) == routing.token_A.numel()
    assert not padding_T[routing.token_A].any()
    assert routing.slot_A.unique().numel() == routing.slot_A.numel()
    expert_A = torch.arange(num_experts).repeat_interleave(routing.kept_E)
    assert expert_KT.reshape(-1)[routing.slot_A].tolist() == expert_A.tolist()
    if limit >= expert_KT.size(1):
        assert int(routing.kept_E.sum()) == int((~padding_T).sum()) * expert_KT.size(0)


def test_random_token_selection_is_blind_to_position() -> None:
    tokens, draws = 64, 4000
    torch.manual_seed(0)
    dropped = {"rts": torch.zeros(tokens), "position": torch.zeros(tokens)}
    for kind, count in dropped.items():
        for _ in range(draws):
            priority_T = token_priority(kind, torch.ones(tokens))  # type: ignore[arg-type]
            routing = route(torch.zeros(1, tokens, dtype=torch.int64), 1, 32, priority_T=priority_T)
            count += 1
            count[routing.token_A] -= 1
    rate = dropped["rts"] / draws
    # Half of the tokens are dropped; each rate is binomial with deviation 0.0079. Five deviations
    # fail one position in 1.7 million.
    assert (rate - 0.5).abs().max() < 5 * 0.0079
    assert (dropped["position"][:32] == 0).all()
    assert (dropped["position"][32:] == draws).all()


def test_gate_scores_are_priorities_without_gradient() -> None:
    score_T = torch.tensor([0.3, 0.6], requires_grad=True)
    priority_T = token_priority("gate", score_T)
    assert priority_T is not None
    assert priority_T.tolist() == score_T.tolist()
    assert not priority_T.requires_grad


def test_unknown_priority_is_refused() -> None:
    with pytest.raises(ValueError, match="'best' is none of rts, position, gate"):
        token_priority("best", torch.ones(1))  # type: ignore[arg-type]


@given(
    tokens=st.integers(0, 400),
    padded=st.integers(0, 100),
    experts=st.integers(1, 64),
    k=st.integers(1, 4),
    factor=st.sampled_from([0.1, 0.3, 0.7, 1.0, 1.1, 1.25, 2.0]),
)
def test_capacity_counted_on_the_device(
    tokens: int, padded: int, experts: int, k: int, factor: float
) -> None:
    padding_T = torch.arange(tokens + padded) >= tokens
    counted = capacity_of_unpadded(padding_T, experts, k, factor)
    assert int(counted) == capacity(tokens, experts, k, factor)
