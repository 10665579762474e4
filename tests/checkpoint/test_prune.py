"""Which experts stay, and that what stays computes what it did."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from checkpoint.exported import build, checkpoint
from checkpoint.rank_files import LAYERS, whole_model
from hypothesis import given
from hypothesis import strategies as st

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.gather import Gathered
from zcode_plugin.checkpoint.prune import (
    Budget,
    choose,
    parse_keep,
    prune,
    random_scores,
    scores_of,
    select,
)
from zcode_plugin.checkpoint.statistics import ExpertStatistics
from zcode_plugin.errors import UserError
from zcode_plugin.models.moe_transformer import MoETransformer

ENCODER, DECODER = LAYERS
EXPERTS = {ENCODER: 4, DECODER: 4}
SCORES = {ENCODER: [0.4, 0.1, 0.3, 0.2], DECODER: [0.85, 0.05, 0.04, 0.06]}


@pytest.mark.parametrize(
    ("budget", "encoder", "decoder"),
    [
        (Budget(Fraction(2)), [0, 2], [0, 3]),
        (Budget(Fraction(1)), [0], [0]),
        (Budget(Fraction(4)), [0, 1, 2, 3], [0, 1, 2, 3]),
        # Of all eight the best four: 0.85, 0.4, 0.3, 0.2.
        (Budget(Fraction(2), across=True), [0, 2, 3], [0]),
        (Budget(Fraction(2), across=True, least=2), [0, 2], [0, 3]),
        # 3 of 4 parts for the encoder.
        (Budget(Fraction(2), ratio=(3, 1)), [0, 2, 3], [0]),
        (Budget(Fraction(2), ratio=(1, 3)), [0], [0, 1, 3]),
        (Budget(Fraction(2), ratio=(1, 1), across=True), [0, 2], [0, 3]),
    ],
)
def test_the_choice(budget: Budget, encoder: list[int], decoder: list[int]) -> None:
    assert choose(EXPERTS, SCORES, budget) == {ENCODER: encoder, DECODER: decoder}


def test_of_equal_experts_the_first_stay() -> None:
    scores = {key: [0.1, 0.3, 0.3, 0.3] for key in EXPERTS}
    assert choose(EXPERTS, scores, Budget(Fraction(2)))[ENCODER] == [1, 2]


def test_a_ratio_is_met_as_nearly_as_whole_layers_allow() -> None:
    """8 of 16 experts, 2 to 1: 2.67 and 1.33 a layer."""
    layers = [f"{side}.layers.{number}.moe_layer" for side in ("encoder", "decoder")
              for number in (1, 3)]  # fmt: skip
    kept = choose(
        dict.fromkeys(layers, 4),
        {key: [0.4, 0.3, 0.2, 0.1] for key in layers},
        Budget(Fraction(2), ratio=(2, 1)),
    )
    assert [len(kept[layer]) for layer in layers] == [3, 3, 1, 1]


@given(st.integers(1, 4), st.booleans(), st.data())
def test_as_many_stay_as_are_to_stay(keep: int, across: bool, data: st.DataObject) -> None:
    scores = {
        layer: data.draw(st.lists(st.floats(0, 1), min_size=4, max_size=4)) for layer in LAYERS
    }
    kept = choose(EXPERTS, scores, Budget(Fraction(keep), across))
    assert sum(map(len, kept.values())) == 2 * keep
    for layer, chosen in kept.items():
        assert chosen == sorted({*chosen})
        worst = min(scores[layer][expert] for expert in chosen)
        assert all(scores[layer][other] <= worst for other in {*range(4)} - {*chosen})


@pytest.mark.parametrize(
    ("text", "experts", "message"),
    [
        ("0", {"a": 4}, "--keep 0 is 0 of 4 experts"),
        ("5", {"a": 4, "b": 8}, "--keep 5 is 5 of 4 experts"),
        ("30%", {"a": 4}, "--keep 30% is 1.2 of 4 experts"),
        ("50%", {"a": 4, "b": 8}, "layers have different numbers of experts"),
        ("half", {"a": 4}, "--keep half: give a number of experts, or a share such as 50%"),
        ("1.5", {"a": 4}, "--keep 1.5: give a number"),
    ],
)
def test_bad_numbers(text: str, experts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_keep(text, experts)
    assert parse_keep("50%", {"a": 4}) == parse_keep("2", {"a": 4, "b": 8}) == 2


def test_a_ratio_that_cannot_be() -> None:
    layers = {"encoder.a": 4, "encoder.b": 12, "decoder.a": 4, "decoder.b": 4}
    scores = {layer: [1.0] * count for layer, count in layers.items()}
    with pytest.raises(UserError, match="gives the encoder 12 experts, but it can keep 2 to 8:"):
        choose(layers, scores, Budget(Fraction(4), ratio=(3, 1)))
    with pytest.raises(UserError, match="gives the encoder 5 experts, but it can keep 1 to 4:"):
        choose(EXPERTS, SCORES, Budget(Fraction(3), across=True, ratio=(5, 1)))
    with pytest.raises(UserError, match="--ratio needs experts in encoder and decoder"):
        choose({ENCODER: 4}, SCORES, Budget(Fraction(2), ratio=(1, 1)))


def test_scores_are_shares_of_chosen_pairs() -> None:
    rows = [
        {"layer": "encoder.layers.1", "pair": pair, "load": load, "weight": weight, "norm": weight}
        for pair, load, weight in (("a-b", [3, 1], [1.0, 1.0]), ("b-a", [0, 4], [0.5, 1.5]))
    ]
    statistics = ExpertStatistics(rows, {})
    assert scores_of(statistics, "utilisation", []) == {ENCODER: [3 / 8, 5 / 8]}
    assert scores_of(statistics, "utilisation", ["a-b"]) == {ENCODER: [0.75, 0.25]}
    assert scores_of(statistics, "gate-weight", ["b-a"]) == {ENCODER: [0.25, 0.75]}
    with pytest.raises(UserError, match="--pairs: the statistics have no c-a, but a-b, b-a"):
        scores_of(statistics, "utilisation", ["c-a"])
    with pytest.raises(UserError, match=r"have 2 experts of .*, the checkpoint has 4"):
        choose(EXPERTS, scores_of(statistics, "utilisation", []), Budget(Fraction(1)))


def test_random_choices_depend_on_the_seed_alone() -> None:
    many = {ENCODER: 64, DECODER: 64}
    assert random_scores(many, 1) == random_scores(many, 1) != random_scores(many, 2)
    kept = choose(many, random_scores(many, 1), Budget(Fraction(32)))
    assert kept[ENCODER] != kept[DECODER]


def test_keeping_all_is_the_identity_bit_for_bit() -> None:
    before = whole_model()
    after = select(before, {layer: [0, 1, 2, 3] for layer in LAYERS})
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_rows_of_the_gate_and_averaged_weights_go_along() -> None:
    before = whole_model()
    before[f"{ENCODER}.gate.selection_bias"] = torch.tensor([0.0, 1, 2, 3])
    state: dict[str, Any] = {
        "cfg": {"model": {"moe_expert_count": "4"}},
        "model": dict(before),
        "extra_state": {"ema": dict(before)},
    }
    prune(Gathered(state, {}, EXPERTS), {ENCODER: [1, 3], DECODER: [2]})
    for model in (state["model"], state["extra_state"]["ema"]):
        gate = model[f"{ENCODER}.gate.wg.weight"]
        assert torch.equal(gate, before[f"{ENCODER}.gate.wg.weight"][[1, 3]])
        assert model[f"{ENCODER}.gate.selection_bias"].tolist() == [1, 3]
        weight = model[f"{ENCODER}.experts.1.fc1.weight"]
        assert torch.equal(weight, before[f"{ENCODER}.experts.3.fc1.weight"])
        assert f"{ENCODER}.experts.2.fc1.weight" not in model
        assert len(model[f"{DECODER}.gate.wg.weight"]) == 1
    options = state["cfg"]["model"]
    assert config.get(options, "encoder_moe_expert_count") == "2"
    assert config.get(options, "decoder_moe_expert_count") == "1"
    assert state["kept_experts"] == {ENCODER: [1, 3], DECODER: [2]}
    # A second time: the numbers are still those of the model that was trained.
    prune(Gathered(state, {}, {ENCODER: 2, DECODER: 1}), {ENCODER: [1], DECODER: [0]})
    assert state["kept_experts"] == {ENCODER: [3], DECODER: [2]}


def logits(model: MoETransformer, tokens: torch.Tensor) -> torch.Tensor:
    lengths = torch.full((len(tokens),), tokens.size(1))
    with torch.no_grad():
        return model(tokens, lengths, tokens.roll(1, 1))[0]


def test_experts_that_nothing_is_sent_to_are_not_missed() -> None:
    options = {"moe_normalize_gate_prob": "true", "moe_balance": "bias"}
    model, args = build(**options)
    for side in (model.encoder, model.decoder):
        side.layers[1].moe_layer.gate.selection_bias.copy_(torch.tensor([-10.0, 0, -10, 0]))
    tokens = torch.arange(4, 28).reshape(4, 6)
    before = logits(model, tokens)
    state = checkpoint(model, args)
    kept = {f"{side}.layers.1.moe_layer": [1, 3] for side in ("encoder", "decoder")}
    prune(Gathered(state, {}, dict.fromkeys(kept, 4)), kept)
    smaller, _ = build(**options, encoder_moe_expert_count="2", decoder_moe_expert_count="2")
    smaller.load_state_dict(dict(state["model"]))
    torch.testing.assert_close(logits(smaller, tokens), before, rtol=0, atol=1e-6)
