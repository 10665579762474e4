"""The algebra of aggregation: what is put together, and what it computes then."""

from __future__ import annotations

import math
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.exported import build, checkpoint

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.aggregate import aggregate, fitting_scale
from zcode_plugin.checkpoint.gather import Gathered
from zcode_plugin.checkpoint.prune import prune
from zcode_plugin.errors import UserError
from zcode_plugin.models.moe_transformer import MoETransformer

LAYERS = ("encoder.layers.1.moe_layer", "decoder.layers.1.moe_layer")
PATHS = [Path("a.pt"), Path("b.pt")]
TOKENS = torch.arange(4, 28).reshape(4, 6)


def gathered(model: MoETransformer, args: Namespace, experts: int = 4) -> Gathered:
    return Gathered(deepcopy(checkpoint(model, args)), {}, dict.fromkeys(LAYERS, experts))


def other_than(model: MoETransformer, seed: int = 9) -> MoETransformer:
    """A model of the same shape with other weights."""
    other = deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return other


def join(*models: Gathered, **options: Any) -> dict[str, Any]:
    settings = {"coefficients": [1 / len(models)] * len(models), "gate_scale": 1.0, **options}
    return aggregate(models, PATHS, **settings)[0]


def loaded(state: dict[str, Any]) -> MoETransformer:
    """The model that the stored options say, with the stored weights."""
    options = dict(vars(config.section(state, "model")))
    model, _ = build(**options)
    model.load_state_dict(dict(state["model"]))
    return model.eval()


def logits(model: MoETransformer) -> torch.Tensor:
    lengths = torch.full((len(TOKENS),), TOKENS.size(1))
    with torch.no_grad():
        return model.eval()(TOKENS, lengths, TOKENS.roll(1, 1))[0]


@pytest.mark.parametrize("normalize", ["false", "true", "auto"])
def test_a_model_with_itself_and_twice_the_experts_per_token_is_the_model(normalize: str) -> None:
    """Each choice falls in two equal halves, whose weights add up to the one before."""
    model, args = build(moe_normalize_gate_prob=normalize)
    one = gathered(model, args)
    state = join(one, one, top_k=2)
    assert config.get(config.section(state, "model"), "encoder_moe_expert_count") == "8"
    twice = loaded(state)
    assert twice.encoder.layers[1].moe_layer.gate.options.k == 2
    torch.testing.assert_close(logits(twice), logits(model), rtol=0, atol=1e-5)


def test_the_part_of_a_gate_that_sees_the_token_is_scaled_with_the_rest() -> None:
    model, args = build(moe_gate_sees_token=True)
    state = join(gathered(model, args), gathered(other_than(model), args), gate_scale=None)
    own = model.state_dict()
    for layer in LAYERS:
        joined, first = (weights[f"{layer}.gate.wg.weight"] for weights in (state["model"], own))
        factor = float(joined[0, 0] / first[0, 0])
        assert 1 < factor <= 4
        torch.testing.assert_close(joined[:4], factor * first)
    assert torch.isfinite(logits(loaded(state))).all()


def test_a_gate_that_prefers_the_first_half_gives_the_first_model() -> None:
    model, args = build(moe_balance="bias", moe_normalize_gate_prob="true")
    for side in (model.encoder, model.decoder):
        side.layers[1].moe_layer.gate.selection_bias.zero_()
    state = join(gathered(model, args), gathered(other_than(model), args), coefficients=[1.0, 0.0])
    for layer in LAYERS:
        state["model"][f"{layer}.gate.selection_bias"][4:] = -10
    torch.testing.assert_close(logits(loaded(state)), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("half", [0, 1])
def test_pruned_back_to_a_half_it_is_that_model(half: int) -> None:
    model, args = build()
    both = [gathered(model, args), gathered(other_than(model), args)]
    state = join(*both, coefficients=[1.0 - half, float(half)])
    kept = {layer: list(range(4 * half, 4 * half + 4)) for layer in LAYERS}
    prune(Gathered(state, {}, dict.fromkeys(LAYERS, 8)), kept)
    wanted = both[half].state["model"]
    assert state["model"].keys() == wanted.keys()
    assert all(torch.equal(state["model"][key], wanted[key]) for key in wanted)


def test_experts_are_kept_and_all_else_is_the_weighted_mean() -> None:
    model, args = build()
    one, two = gathered(model, args), gathered(other_than(model), args)
    weights = join(one, two, coefficients=[0.25, 0.75], gate_scale=2.0)["model"]
    a, b = one.state["model"], two.state["model"]
    key = "encoder.layers.0.fc1.weight"
    torch.testing.assert_close(weights[key], 0.25 * a[key] + 0.75 * b[key])
    layer = LAYERS[0]
    for number, (source, expert) in enumerate([(a, 0), (a, 3), (b, 0), (b, 3)]):
        new = [0, 3, 4, 7][number]
        for part in ("fc1.weight", "fc2.bias"):
            mine = weights[f"{layer}.experts.{new}.{part}"]
            assert torch.equal(mine, source[f"{layer}.experts.{expert}.{part}"])
    gate = f"{layer}.gate.wg.weight"
    assert torch.equal(weights[gate], 2 * torch.cat([a[gate], b[gate]]))
    tied = [weights[f"{side}.embed_tokens.weight"].data_ptr() for side in ("encoder", "decoder")]
    assert tied[0] == tied[1]


def test_the_gate_is_scaled_until_it_is_as_certain_as_before() -> None:
    torch.manual_seed(1)
    gates = [torch.randn(8, 64) / 4 for _ in range(2)]
    scale = fitting_scale(gates, torch.ones(64), torch.zeros(64), 1, None)
    assert 1 < scale.factor < 4
    assert scale.joined < scale.before
    assert scale.after == pytest.approx(scale.before, abs=1e-3)
    # Equal gates can never tell their experts apart: at most 4.
    same = fitting_scale([gates[0], gates[0]], torch.ones(64), torch.zeros(64), 1, None)
    assert same.factor == pytest.approx(4, rel=1e-6)
    assert same.after < 0.5
    given = fitting_scale(gates, torch.ones(64), torch.zeros(64), 1, 3.0)
    assert given.factor == 3


def test_certainty_by_hand() -> None:
    """Without weight the normalisation gives its bias to every token."""
    gates = [torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[2.0, 0], [0, 0]])]
    norm = torch.zeros(2), torch.tensor([1.0, 5.0])
    scale = fitting_scale(gates, *norm, 1, 1.0)
    e = math.e
    assert scale.before == pytest.approx((e / (e + 1) + e**2 / (e**2 + 1)) / 2)
    assert scale.joined == scale.after == pytest.approx(e**2 / (e + e**2 + 2))
    both = fitting_scale(gates, *norm, 2, 1.0)
    assert both.before == pytest.approx(1)
    assert both.joined == pytest.approx((e + e**2) / (e + e**2 + 2))


@pytest.mark.parametrize("before", [False, True])
def test_a_gate_is_fitted_to_the_normalisation_whose_output_it_sees(before: bool) -> None:
    options = {f"{side}_normalize_before": before for side in ("encoder", "decoder")}
    model, args = build(**options)
    with torch.no_grad():  # normalisations that differ much
        for number, block in enumerate([*model.encoder.layers, *model.decoder.layers]):
            for place, (name, module) in enumerate(sorted(block.named_modules())):
                if name.endswith("layer_norm"):
                    module.weight.fill_(0.3 + 0.2 * place + number)
    one, two = gathered(model, args), gathered(other_than(model), args)
    _, scales = aggregate([one, two], PATHS, coefficients=[1.0, 0.0], gate_scale=None)
    after_attention = dict(zip(LAYERS, ("self_attn", "encoder_attn"), strict=True))
    for layer in LAYERS:
        norm = "final" if before else after_attention[layer]
        name = f"{layer.removesuffix('moe_layer')}{norm}_layer_norm"
        gates = [state["model"][f"{layer}.gate.wg.weight"] for state in (one.state, two.state)]
        norms = one.state["model"][f"{name}.weight"], one.state["model"][f"{name}.bias"]
        assert scales[layer] == fitting_scale(gates, *norms, 1, None)


def test_gates_whose_weights_sum_to_1_stay_as_they_are() -> None:
    model, args = build(moe_normalize_gate_prob="true")
    one = gathered(model, args)
    weights = join(one, gathered(other_than(model), args), gate_scale=None)["model"]
    gate = f"{LAYERS[0]}.gate.wg.weight"
    assert torch.equal(weights[gate][:4], one.state["model"][gate])


def test_what_belongs_to_single_models_is_left_out() -> None:
    model, args = build()
    one, two = gathered(model, args), gathered(model, args)
    one.state["extra_state"] = {"ema": dict(model.state_dict()), "train_iterator": {"epoch": 3}}
    one.state["kept_experts"] = {LAYERS[0]: [0, 2, 4, 6]}
    state = join(one, two)
    assert state["extra_state"] == {"train_iterator": {"epoch": 3}}
    assert "kept_experts" not in state


def test_it_has_the_directions_of_all_models() -> None:
    model, args = build()
    one, two = gathered(model, args), gathered(model, args)
    for each, pairs in ((one, ["aa-bb"]), (two, ["bb-aa", "aa-bb"])):
        each.state["task_state"] = {**each.state["task_state"], "lang_pairs": pairs}
    state = join(one, two)
    assert state["task_state"]["lang_pairs"] == ["aa-bb", "bb-aa"]
    assert config.get(config.section(state, "task"), "lang_pairs") == "aa-bb,bb-aa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_attention_heads": 2}, "--encoder-attention-heads is 2 in one and 4"),
        ({"activation_fn": "gelu"}, "--activation-fn is gelu in one and relu"),
        ({"moe_gate_sees_token": True}, "--moe-gate-sees-token is True in one and False"),
        ({"share_all_embeddings": False}, "--share-all-embeddings is False in one and True"),
        ({"no_token_positional_embeddings": True}, "--no-token-positional-embeddings is True"),
        ({"moe_freq": 1}, "only one of them has experts in decoder.layers.0.moe_layer"),
        ({"encoder_ffn_embed_dim": 64}, r"fc1.weight has \(64, 32\) in one and \(48, 32\)"),
        ({"encoder_embed_dim": 64}, "b.pt and a.pt are different models"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], message: str) -> None:
    model, args = build()
    other, other_args = build(**change)
    second = gathered(other, other_args)
    if "moe_freq" in change:
        layers = [*LAYERS, "encoder.layers.0.moe_layer", "decoder.layers.0.moe_layer"]
        second = Gathered(second.state, {}, dict.fromkeys(layers, 4))
    with pytest.raises(UserError, match=message):
        join(gathered(model, args), second)


def test_layers_that_only_the_first_has_are_named() -> None:
    second = gathered(*build())
    first = Gathered(second.state, {}, {**second.experts, "encoder.layers.0.moe_layer": 4})
    first.state["model"]["encoder.layers.0.moe_layer.gate.wg.weight"] = torch.zeros(4, 32)
    with pytest.raises(UserError, match=r"only one of them has experts in encoder\.layers\.0\."):
        join(first, second)


@pytest.mark.parametrize(
    ("task_state", "message"),
    [
        ({"langs": ["bb", "aa"]}, "have different languages, or another order of them: bb,aa"),
        ({"symbols": "<s>\n<pad>\nx"}, "has another vocabulary .*give all models the dictionary"),
    ],
)
def test_other_languages_and_symbols_are_refused(task_state: dict[str, Any], message: str) -> None:
    model, args = build()
    one, two = gathered(model, args), gathered(model, args)
    two.state["task_state"].update(task_state)
    with pytest.raises(UserError, match=message):
        join(one, two)


def test_heads_that_only_one_has_are_left_out() -> None:
    model, args = build()
    with_heads, _ = build(objectives=["mlm"])
    state = join(gathered(with_heads, args), gathered(model, args))
    assert not [key for key in state["model"] if key.startswith("heads.")]
    state = join(gathered(with_heads, args), gathered(with_heads, args))
    assert "heads.mlm.dense.weight" in state["model"]
