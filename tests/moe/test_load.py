"""Load statistics against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch
from distributed import run_ranks
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from zcode_plugin.moe import (
    CallContext,
    Experts,
    GateOptions,
    GatingDropout,
    MOELayer,
    TopKGate,
    labelled,
    load_statistics,
)
from zcode_plugin.moe.context import calling, hand_in_context
from zcode_plugin.moe.load import current_statistics

# Probabilities of 3 experts for 6 tokens: 3 places in a sentence x 2 sentences.
ROWS = [
    [0.7, 0.2, 0.1],
    [0.6, 0.3, 0.1],
    [0.5, 0.4, 0.1],
    [0.8, 0.1, 0.1],
    [0.3, 0.6, 0.1],
    [0.9, 0.05, 0.05],
]


def entropy(rows: list[list[float]]) -> float:
    return sum(-p * math.log(p) for row in rows for p in row)


def build(**options: object) -> tuple[MOELayer, Tensor]:
    settings = {"token_priority": "position", "min_capacity": 0, **options}
    gate = TopKGate(6, 3, GateOptions(**settings))  # type: ignore[arg-type]
    with torch.no_grad():
        gate.wg.weight.copy_(torch.tensor(ROWS).log().t())
    return MOELayer(gate, Experts(6, 4, 3)), torch.eye(6).view(3, 2, 6)


def test_nothing_is_measured_outside() -> None:
    layer, x = build()
    with load_statistics() as statistics:
        pass
    assert current_statistics() is None
    layer(x)
    assert statistics.rows() == []


def test_counts_by_hand() -> None:
    layer, x = build(capacity_factor=1.0)  # 2 places in each expert
    padding = torch.tensor([[False, False], [False, False], [False, True]])
    with load_statistics(buckets=3) as statistics, labelled("mt", "de-en"):
        layer(x, padding_mask=padding)
        layer(x, padding_mask=padding)
    (row,) = statistics.rows()
    assert row.pop("entropy") == pytest.approx(entropy(ROWS[:5]) / 5, abs=1e-5)
    assert row.pop("dropped_by_position") == [0.0, 1.0, 0.0]
    assert row.pop("asked_by_sentence_position") == [0] * 10  # sentences are not known
    assert row.pop("dropped_by_sentence_position") == [0] * 10
    # Kept are the tokens 0 and 1 in expert 0 and token 4 in expert 1, in both calls.
    size = [float(y.norm()) for y in layer.experts(x.view(6, 6)[[0, 1, 4]], [2, 1, 0])]
    assert row.pop("weight") == pytest.approx([2 * (0.7 + 0.6), 2 * 0.6, 0])
    assert row.pop("norm") == pytest.approx(
        [2 * (0.7 * size[0] + 0.6 * size[1]), 2 * 0.6 * size[2], 0]
    )
    assert row == {
        "layer": "",
        "objective": "mt",
        "pair": "de-en",
        "tokens": 10,
        "assignments": 10,
        "dropped": 4,
        "load": [8, 2, 0],
        "kept": [4, 2, 0],
        "max_over_mean": pytest.approx(2.4),
        "dead_experts": 1,
    }


@pytest.mark.parametrize("k", [1, 2, 3])
def test_all_choices_count(k: int) -> None:
    layer, x = build(k=k, capacity_factor=0)
    with load_statistics() as statistics:
        layer(x)
    (row,) = statistics.rows()
    assert row["load"] == row["kept"] == {1: [5, 1, 0], 2: [6, 6, 0], 3: [6, 6, 6]}[k]
    assert (row["tokens"], row["assignments"], row["dropped"]) == (6, 6 * k, 0)


def test_inner_labels_keep_what_they_leave_open() -> None:
    layer, x = build()
    with load_statistics() as statistics, labelled(pairs="de-en"), labelled(objective="mt"):
        layer(x)
    (row,) = statistics.rows()
    assert (row["objective"], row["pair"]) == ("mt", "de-en")


def test_sentences_of_a_batch_count_for_their_own_pair() -> None:
    layer, x = build(capacity_factor=0)
    context = CallContext("encoder.layers.1", token_ids=torch.zeros(3, 2, dtype=torch.int64))
    with load_statistics() as statistics, labelled("mt", ["de-en", "en-de"]):
        layer(x, context=context)
    rows = [(row["layer"], row["pair"], row["tokens"], row["load"]) for row in statistics.rows()]
    assert rows == [
        ("encoder.layers.1", "de-en", 3, [2, 1, 0]),
        ("encoder.layers.1", "en-de", 3, [3, 0, 0]),
    ]


def test_drops_by_position_in_the_sentence() -> None:
    """Sentences of 11 and 3 tokens, the second padded on the left, and room for 5 in the expert."""
    gate = TopKGate(
        1, 1, GateOptions(token_priority="position", min_capacity=0, capacity_factor=5 / 14)
    )
    layer = MOELayer(gate, Experts(1, 4, 1))
    padding_SB = torch.zeros(11, 2, dtype=torch.bool)
    padding_SB[:8, 1] = True
    context = CallContext("encoder.layers.1", token_ids=torch.zeros(11, 2, dtype=torch.int64))
    with load_statistics() as statistics, labelled("mt", ["de-en", "en-de"]):
        layer(torch.ones(11, 2, 1), padding_mask=padding_SB, context=context)
    first, second = statistics.rows()
    # Buckets begin at 0, 1, 2, 4, 8, 16, ... The first 5 tokens of the batch stay.
    assert first["asked_by_sentence_position"] == [1, 1, 2, 4, 3, 0, 0, 0, 0, 0]
    assert first["dropped_by_sentence_position"] == [0, 0, 0, 3, 3, 0, 0, 0, 0, 0]
    assert second["asked_by_sentence_position"] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert second["dropped_by_sentence_position"] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_random_token_selection_in_evaluation_on_request() -> None:
    """Half of 16 tokens stay: the first ones, or others for each seed."""

    def kept(seed: int, **options: object) -> list[int]:
        gate = TopKGate(1, 1, GateOptions(eval_capacity_factor=0.5, min_capacity=0, **options))  # type: ignore[arg-type]
        torch.manual_seed(seed)
        return gate.eval()(torch.ones(16, 1)).routing.token_A.sort().values.tolist()

    assert kept(1) == kept(2) == list(range(8))
    assert kept(1, eval_rts=True) == kept(1, eval_rts=True)
    assert len({*map(str, (kept(1), kept(1, eval_rts=True), kept(2, eval_rts=True)))}) == 3
    assert kept(1, eval_rts=True, token_priority="position") == list(range(8))


def test_pairs_that_do_not_fit_the_batch_are_refused() -> None:
    layer, x = build()
    context = CallContext(token_ids=torch.zeros(3, 2, dtype=torch.int64))
    with (
        load_statistics(),
        labelled("mt", ["de-en"] * 3),
        pytest.raises(ValueError, match=r"3 pairs, .* do not fit a batch of token ids \(2, 3\)"),
    ):
        layer(x, context=context)


def test_passes_without_the_gate_do_not_count() -> None:
    layer, x = build()
    layer.gating_dropout = GatingDropout(1.0)
    with load_statistics() as statistics:
        layer(x, context=CallContext(key=(1, 0, 0)))
    assert statistics.rows() == []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moe_layer, _ = build(capacity_factor=0)

    def forward(self, x: Tensor, context: CallContext | None = None) -> tuple[Tensor, Tensor]:
        return self.moe_layer.forward_with_stats(x, None, context)


def test_recomputation_does_not_count_again() -> None:
    block = checkpoint_wrapper(Block())
    hand_in_context(block, "decoder.layers.3")
    _, x = build()
    with load_statistics() as statistics:
        for number in range(2):
            with calling(key=(1, 0, number)):
                block(x.requires_grad_())[0].sum().backward()
    assert [(row["layer"], row["tokens"]) for row in statistics.rows()] == [
        ("decoder.layers.3", 12)
    ]


def _rank_counts(rank: int) -> list[tuple[str, int, list[int]]]:
    layer, x = build(capacity_factor=0)
    with load_statistics() as statistics:
        with labelled("mt", "de-en"):
            layer(x[: 2 + rank])
        if rank == 1:
            with labelled("dae", "en"):
                layer(x)
    statistics.gather()
    return [(row["objective"], row["tokens"], row["load"]) for row in statistics.rows()]


def test_ranks_are_added_up() -> None:
    expected = [("mt", 10, [9, 1, 0]), ("dae", 6, [5, 1, 0])]
    assert run_ranks(_rank_counts, 2) == [expected, expected]
