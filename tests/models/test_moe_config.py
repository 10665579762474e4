"""MoE flags: layouts, and what is refused with which words."""

from __future__ import annotations

from argparse import Namespace

import pytest
from fairseq.models import ARCH_CONFIG_REGISTRY

from zcode_plugin.errors import UserError
from zcode_plugin.models.layer_experts import LayerExperts, layer_experts
from zcode_plugin.models.moe_checks import check, check_parallel, check_precision, left_out
from zcode_plugin.models.moe_config import MoEConfig

LAYOUTS: dict[str, tuple[dict[str, object], LayerExperts]] = {
    "one number for all": (
        {"moe_expert_count": "8"},
        {"encoder": {1: 8, 3: 8}, "decoder": {1: 8}},
    ),
    "an integer, as older files have it": (
        {"moe_expert_count": 8},
        {"encoder": {1: 8, 3: 8}, "decoder": {1: 8}},
    ),
    "a number for each layer": (
        {"moe_expert_count": "32, 64,16"},
        {"encoder": {1: 32, 3: 64}, "decoder": {1: 16}},
    ),
    "one side apart": (
        {"moe_expert_count": "8", "encoder_moe_expert_count": "32,64"},
        {"encoder": {1: 32, 3: 64}, "decoder": {1: 8}},
    ),
    "both sides apart": (
        {"encoder_moe_expert_count": "4", "decoder_moe_expert_count": "2", "moe_freq": 1},
        {"encoder": {0: 4, 1: 4, 2: 4, 3: 4}, "decoder": {0: 2, 1: 2}},
    ),
    "dense": ({"moe_freq": 0}, {"encoder": {}, "decoder": {}}),
    "a dense decoder": ({"decoder_moe_freq": 0}, {"encoder": {1: 8, 3: 8}, "decoder": {}}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    options, expected = LAYOUTS[name]
    assert layer_experts(MoEConfig(**options), 4, 2) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"moe_expert_count": "32,64"},
            "--moe-expert-count 32,64 has 2 numbers, but encoder and decoder have 3 MoE layers: "
            "give one number for all, or 3",
        ),
        (
            {"decoder_moe_expert_count": "2,4"},
            "--decoder-moe-expert-count 2,4 has 2 numbers, but the decoder has 1 MoE layers: give "
            "one number for all, or 1",
        ),
        (
            {"moe_expert_count": "8,,8"},
            "--moe-expert-count 8,,8 must be a number, or several with commas between",
        ),
        (
            {"encoder_moe_expert_count": "0"},
            "--encoder-moe-expert-count 0 is too small: give at least 1",
        ),
    ],
)
def test_layouts_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        layer_experts(MoEConfig(**options), 4, 2)  # type: ignore[arg-type]
    assert str(error.value) == message


REFUSED: list[tuple[dict[str, object], str]] = [
    (
        {"moe_top_k": 3, "moe_expert_count": "8,2,8"},
        "--moe-top-k 3 is more than --moe-expert-count 2 of encoder layer 4: give at most as many",
    ),
    ({"moe_top_k": 0}, "--moe-top-k 0 is too small: give at least 1"),
    ({"moe_eom": 1.0}, "--moe-eom 1.0 must be less than 1"),
    ({"moe_eom": -0.1}, "--moe-eom -0.1 is too small: give at least 0"),
    ({"moe_jitter_eps": 1.5}, "--moe-jitter-eps 1.5 must be less than 1"),
    ({"moe_expert_bits": 16}, "--moe-expert-bits 16: give 32, 8 or 4"),
    (
        {"moe_expert_bits": 8, "expert_parallel_size": 2},
        "--moe-expert-bits 8 is for translation in one process: give --expert-parallel-size 1",
    ),
    ({"moe_gating_dropout": 1.1}, "--moe-gating-dropout 1.1 must be at most 1"),
    ({"moe_bias_update_rate": -1.0}, "--moe-bias-update-rate -1.0 is too small: give at least 0"),
    (
        {"moe_second_expert_policy": "sampling"},
        "--moe-second-expert-policy sampling needs a second expert, but --moe-top-k is 1: give "
        "--moe-top-k 2 or drop the policy",
    ),
    (
        {"moe_second_expert_policy": "sampling", "moe_top_k": 2, "moe_balance": "bias"},
        "--moe-balance bias steers the choice by score and --moe-second-expert-policy sampling "
        "draws it: drop one of them",
    ),
    (
        {"moe_gate": "hash", "moe_balance": "bias"},
        "--moe-balance bias needs the scores of a learned gate, --moe-gate hash has none: drop one "
        "of them",
    ),
    (
        {"moe_gate": "random", "moe_token_priority": "gate"},
        "--moe-token-priority gate needs the scores of a learned gate, --moe-gate random has none: "
        "drop one of them",
    ),
    (
        {"moe_gate": "random", "moe_second_expert_policy": "sampling", "moe_top_k": 2},
        "--moe-second-expert-policy sampling needs the scores of a learned gate, --moe-gate random "
        "has none: drop one of them",
    ),
    (
        {"moe_gate": "hash", "moe_batch_prioritized_routing": True},
        "--moe-batch-prioritized-routing needs the scores of a learned gate, --moe-gate hash has "
        "none: drop one of them",
    ),
    (
        {"moe_gate": "random", "moe_gate_sees_token": True},
        "--moe-gate-sees-token needs the scores of a learned gate, --moe-gate random has none: "
        "drop one of them",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(options: dict[str, object], message: str) -> None:
    moe = MoEConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError) as error:
        check(moe, layer_experts(moe, 4, 2))
    assert str(error.value) == message


def test_mixed_precision_is_refused() -> None:
    check_precision(Namespace(amp=False, fp16=True))
    with pytest.raises(UserError, match="--amp cannot train experts"):
        check_precision(Namespace(amp=True))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_bmuf": True}, "--use-bmuf makes the weights of all ranks one"),
        ({"ddp_backend": "slowmo"}, "--ddp-backend slowmo makes the weights of all ranks one"),
    ],
)
def test_what_would_average_experts_is_refused(option: dict[str, object], message: str) -> None:
    args = Namespace(
        encoder_layerdrop=0, decoder_layerdrop=0, zero_sharding="none", expert_parallel_size=2
    )
    check_parallel(args)
    with pytest.raises(UserError, match=message):
        check_parallel(Namespace(**vars(args), **option))


@pytest.mark.parametrize("size", [1, 2])
def test_experts_of_stock_are_refused(capsys: pytest.CaptureFixture[str], size: int) -> None:
    fill = ARCH_CONFIG_REGISTRY["moe_transformer_tiny"]
    options = Namespace(expert_parallel_size=size)
    fill(options)
    filled = vars(options).copy()
    fill(options)
    assert vars(options) == filled
    with pytest.raises(SystemExit) as ended:
        fill(Namespace(expert_parallel_size=size, base_layers=2))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "zcode_plugin: error: --base-layers 2 adds experts of another kind, which this model has "
        "none of: leave it out, --moe-freq and --moe-expert-count say which layers have experts\n"
    )


@pytest.mark.parametrize(
    ("options", "criterion", "is_ours", "message"),
    [
        ({}, "multitask_summed_loss", False, None),
        ({}, "cross_entropy", False, "--criterion cross_entropy leaves out the gate's losses"),
        ({"moe_balance": "none"}, "cross_entropy", False, None),
        ({"moe_gate": "hash"}, "cross_entropy", False, None),
        ({"moe_balance": "bias"}, "multitask_summed_loss", True, None),
        ({"moe_balance": "bias"}, "multitask_summed_loss", False, "--moe-balance bias does noth"),
    ],
)
def test_what_parts_of_stock_leave_out_is_told(
    options: dict[str, object], criterion: str, is_ours: bool, message: str | None
) -> None:
    task = Namespace(trains_experts=is_ours)
    told = left_out(Namespace(criterion=criterion), task, MoEConfig(**options))
    assert told is None if message is None else str(told).startswith(message)


@pytest.mark.parametrize("gate", ["learned", "hash", "random"])
def test_gates_without_scores_have_no_z_loss(gate: str) -> None:
    options = Namespace(criterion="multitask_summed_loss", moe_z_loss_wt=0.001)
    told = left_out(options, Namespace(trains_experts=True), MoEConfig(moe_gate=gate))
    expected = f"--moe-z-loss-wt does nothing with --moe-gate {gate}, which has no scores"
    assert told == (None if gate == "learned" else expected)
