"""Bytes of each form by hand, and what was measured of a real pass."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import nll_loss

from zcode_plugin.errors import UserError
from zcode_plugin.models.architectures import ARCHITECTURES, fill
from zcode_plugin.planning.activations import Activations, kept_for_backward, measure_activations
from zcode_plugin.planning.forms import (
    ELEMENTS,
    Form,
    largest_experts,
    layers_by_kind,
    state_memory,
    traffic,
    training_memory,
)
from zcode_plugin.planning.shapes import ModelShape, build, measure_shape

SHAPE = ModelShape(
    dense=1000, sliced=800, experts=4000, largest=100, expert_layers=(8, 8), encoder_layers=4,
    decoder_layers=4, width=16, top_k=1, capacity_factor=1.0, active=1500,
)  # fmt: skip
FP32 = ELEMENTS["fp32"]


def options(arch: str, **given_options: Any) -> Namespace:
    args = Namespace(arch=arch, max_source_positions=100, max_target_positions=100, **given_options)
    fill(args, ARCHITECTURES[arch])
    return args


@pytest.mark.parametrize(
    ("form", "name", "parameters", "optimizer"),
    [
        (Form(1), "D", 4 * 5000, 8 * 5000),
        (Form(4), "D", 4 * 5000, 8 * 5000),
        (Form(4, 4), "E", 4 * 2000, 8 * 2000),
        (Form(4, 2), "E+D", 4 * 3000, 8 * 3000),
        (Form(4, 2, zero=1), "E+D+Z1", 4 * 3000, 8 * (250 + 1000)),
        (Form(4, 4, zero=1), "E+Z1", 4 * 2000, 8 * (250 + 1000)),
        (Form(4, 2, zero=3), "E+Z3", 4 * (250 + 1000), 8 * (250 + 1000)),
        # 200 are the same on both slices, 800 are halved, and so are experts.
        (Form(4, 2, tensor_parallel=2), "E+M", 4 * (200 + 400 + 1000), 8 * (200 + 400 + 1000)),
    ],
)
def test_bytes_by_hand(form: Form, name: str, parameters: int, optimizer: int) -> None:
    memory = state_memory(SHAPE, form, FP32)
    assert form.name == name
    assert (memory.parameters, memory.gradients, memory.optimizer) == (
        parameters,
        parameters,
        optimizer,
    )


def test_the_state_of_a_large_parameter_is_not_cut() -> None:
    shape = replace(SHAPE, largest=600)
    assert state_memory(shape, Form(4, 2, zero=1), FP32).optimizer == 8 * (600 + 1000)
    assert state_memory(shape, Form(4, 2, zero=3), FP32).optimizer == 8 * (250 + 1000)


def test_shards_are_in_float32_alone() -> None:
    halves = state_memory(SHAPE, Form(4, 2, zero=3), ELEMENTS["fp16"])
    whole = state_memory(SHAPE, Form(4, 2, zero=3), FP32)
    assert replace(halves, gathered=2 * halves.gathered) == whole


def test_offload_leaves_the_device_what_is_gathered() -> None:
    sharded = state_memory(SHAPE, Form(4, 2, zero=3), FP32)
    off = state_memory(SHAPE, Form(4, 2, zero=3, offload=True), FP32)
    assert off.host == sharded.parameters + sharded.gradients + sharded.optimizer
    assert off.total == off.gathered == sharded.gathered > 0


@pytest.mark.parametrize(
    ("form", "elements"),
    [
        # No layer is large enough to be wrapped: all that is no expert, and one layer's experts.
        (Form(4, 2, zero=3), 1000 + 1000),
        (Form(4, zero=3), 1000 + 4000),
        # Every layer is: embeddings, 100 of each layer, and its experts.
        (Form(4, 2, zero=3, least_wrapped=0), 200 + 100 + 1000),
        (Form(4, zero=3, least_wrapped=100), 200 + 100 + 2000),
        # Those with experts are: the 6 others are gathered with the embeddings.
        (Form(4, zero=3, least_wrapped=2100), 200 + 600 + 100 + 2000),
        (Form(4, zero=3, least_wrapped=2101), 1000 + 4000),
        # A shard of experts is counted, half of 1000.
        (Form(4, 2, zero=3, least_wrapped=600), 200 + 600 + 100 + 1000),
        (Form(4, 2, zero=3, least_wrapped=601), 1000 + 1000),
        # 400 of slices: 50 of each layer.
        (Form(4, 2, 2, zero=3, offload=True, least_wrapped=0), 200 + 50 + 500),
    ],
)
def test_gathered_by_hand(form: Form, elements: int) -> None:
    assert state_memory(SHAPE, form, FP32).gathered == 4 * elements


def test_owners_send_what_they_have_stepped() -> None:
    form, replicated = Form(4, 2, zero=1), 1000 * 3 / 4 + 2000 / 2
    for precision, sent in {"fp32": 12, "bf16": 2 * 2 + 4, "memory-efficient-bf16": 6}.items():
        assert traffic(SHAPE, form, ELEMENTS[precision]).update == sent * replicated


def test_traffic_by_hand() -> None:
    sent = traffic(SHAPE, Form(8, 2, tensor_parallel=2), ELEMENTS["fp16"])
    # A row of 16 numbers of 2 bytes, of which a tensor rank sends half; half of that stays.
    assert sent.exchange == 4 * 32 / 2 / 2
    # Sums: 4 of each attention, 2 of each network or expert, 3 outside; 4 gathers by 2 MoE layers.
    sums, gathers = 4 * (4 + 2 * 4) + 2 * 8 + 3, 4 * 2
    assert sent.slicing == (2 * sums + gathers) * 32 / 2 / 8
    # Gradients: 600 dense over 4 ranks, 1000 of experts over their 2 replicas; a ring sends twice.
    assert sent.update == pytest.approx(2 * 2 * (600 * 3 / 4 + 1000 / 2))
    assert traffic(SHAPE, Form(1), FP32) == replace(sent, exchange=0, slicing=0, update=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 3), "--expert-parallel-size 3 must divide the 4 ranks"),
        ((4, 4, 2), "--expert-parallel-size 4 must divide the 2 ranks"),
        ((3, 1, 2), "--model-parallel-size 2 must divide --ranks 3"),
    ],
)
def test_impossible_forms(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Form(*sizes)


@given(
    device=st.floats(1e4, 1e9),
    expert_parallel=st.sampled_from([1, 2, 8]),
    zero=st.sampled_from([0, 1, 3]),
)
def test_one_expert_more_than_the_largest_does_not_fit(
    device: float, expert_parallel: int, zero: Any
) -> None:
    form = Form(8, expert_parallel, zero=zero)
    most = largest_experts(SHAPE, form, FP32, 1000.0, device, 0.0)
    per_layer = SHAPE.experts / 16

    def total(count: int) -> float:
        shape = replace(SHAPE, experts=round(2 * per_layer * count), expert_layers=(count, count))
        return state_memory(shape, form, FP32).total + 1000

    assert most % expert_parallel == 0
    assert most == 0 or total(most) <= device
    assert total(most + expert_parallel) > device


def test_shapes_are_those_of_the_model() -> None:
    args = options("moe_transformer_tiny", moe_top_k=2, moe_expert_count="4,4,8")
    shape = measure_shape(args, 500)
    model = build(args, 500)
    assert shape.total == sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert shape.experts == experts
    assert shape.expert_layers == (4, 4, 8)
    one = 2 * 128 * 256 + 128 + 256
    assert shape.active == shape.dense + 3 * 2 * one
    assert layers_by_kind(shape) == {
        ("encoder", False): 2, ("encoder", True): 2, ("decoder", False): 1, ("decoder", True): 1,
    }  # fmt: skip


def test_the_models_of_the_paper() -> None:
    large, small = (
        measure_shape(options(arch), 128_000) for arch in ("zcode_m3_10b", "zcode_m3_5b")
    )
    assert large.experts == 18 * 64 * 8_393_728
    assert (round(large.total / 1e9, 1), round(small.total / 1e9, 1)) == (10.2, 5.3)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("moe_transformer_tiny", {}),
        ("moe_transformer_tiny", {"encoder_layers": 6, "activation_fn": "gelu", "dropout": 0.3}),
        ("moe_transformer_tiny_dense", {}),
    ],
)
def test_activations_are_those_of_a_pass(arch: str, changes: dict[str, Any]) -> None:
    """Of another number of layers, tokens and symbols than were measured, within 5%."""
    args = options(arch, **changes)
    vocabulary, sentences, length = 3000, 24, 20
    model = build(args, vocabulary).train()
    tokens = torch.randint(4, vocabulary, (sentences, length))
    with kept_for_backward(model) as kept:
        output = model(tokens, torch.full((sentences,), length), tokens)
        lprobs = model.get_normalized_probs(output, log_probs=True)
        nll_loss(lprobs.view(-1, vocabulary), tokens.view(-1), reduction="sum")
    memory = training_memory(
        measure_shape(args, vocabulary), Form(1), FP32, measure_activations(args, length),
        vocabulary, tokens.numel(),
    )  # fmt: skip
    assert memory.activations == pytest.approx(sum(kept.bytes.values()), rel=0.05)


def test_what_a_precision_and_checkpoints_leave_of_activations() -> None:
    kinds = {(side, moe): 100.0 + moe for side in ("encoder", "decoder") for moe in (False, True)}
    activations, dense = Activations(kinds, 60.0, 4.0), replace(SHAPE, expert_layers=())

    def per_token(shape: ModelShape, precision: str, checkpointed: bool) -> float:
        return training_memory(
            shape, Form(1), ELEMENTS[precision], activations, 10, 1, checkpointed
        ).activations

    # Log-probabilities stay in float32.
    assert per_token(dense, "fp32", False) == 8 * 100 + 60 + 40
    assert per_token(dense, "bf16", False) == (8 * 100 + 60) / 2 + 40
    # The inputs of 8 layers, and the largest layer of kinds that there are.
    assert per_token(dense, "fp32", True) == 8 * 4 * 16 + 100 + 60 + 40
    assert per_token(SHAPE, "fp32", True) == 8 * 4 * 16 + 101 + 60 + 40


def test_trillions_of_parameters_on_512_devices_of_40_gb() -> None:
    """Computed, as docs/parallel.md has it: with optimizer states in the host's memory."""
    shape = measure_shape(options("zcode_m3_10b"), 128_000)
    per_expert = shape.experts / 64

    def largest(form: Form, precision: str, host: float) -> float:
        element = ELEMENTS[precision]
        return shape.dense + per_expert * largest_experts(shape, form, element, 8e9, 40e9, host)

    assert largest(Form(512, 512), "memory-efficient-fp16", 0) > 1e12
    assert largest(Form(512, 512, zero=3, offload=True), "fp16", 128e9) > 3.5e12
