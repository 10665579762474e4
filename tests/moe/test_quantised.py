"""Quantised experts: how far from the weights, and the outputs of the weights they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zcode_plugin.moe import Experts, QuantisedExperts
from zcode_plugin.moe.quantised import LARGEST, dequantise, pack, quantise, unpack

D, FFN, COUNT = 16, 24, 3
BITS = sorted(LARGEST)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Channels of very different sizes, zeros among them; odd numbers of inputs, too."""
    outputs, inputs = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    sizes = st.sampled_from([0.0, 1e-45, 1e-38, 1e-10, 1.0, 1e10, 3e38])
    channel = st.lists(st.floats(-1, 1, width=32), min_size=inputs, max_size=inputs)
    rows = [(draw(sizes), draw(channel)) for _ in range(outputs)]
    return torch.tensor([[size * value for value in values] for size, values in rows])


@settings(deadline=None)
@given(weight=matrices(), bits=st.sampled_from(BITS))
def test_a_weight_moves_by_half_a_step_at_most(weight: Tensor, bits: int) -> None:
    stored, scale = quantise(weight, bits)
    integers = unpack(stored, weight.size(1))
    assert scale.dtype == torch.float32
    assert integers.shape == weight.shape
    assert integers.abs().max() <= LARGEST[bits]
    steps = scale.double()[:, None]
    assert ((weight.double() - steps * integers).abs() <= (0.5 + 1e-5) * steps).all()
    # No step is larger than it must be: where it is a normal number, all integers are used.
    largest = integers.abs().amax(1)
    assert (largest[weight.abs().amax(1) > 1e-35] == LARGEST[bits]).all()


@settings(deadline=None)
@given(rows=st.integers(1, 4).flatmap(lambda width: st.lists(
    st.lists(st.integers(-8, 7), min_size=width, max_size=width), min_size=1, max_size=4,
)))  # fmt: skip
def test_four_bits_are_packed_two_to_a_byte(rows: list[list[int]]) -> None:
    integers = torch.tensor(rows, dtype=torch.int8)
    packed = pack(integers)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(rows), -(-len(rows[0]) // 2))
    assert torch.equal(unpack(packed, len(rows[0])), integers)


def test_the_layout_of_a_byte() -> None:
    packed = pack(torch.tensor([[1, -1, 7, -8, 3]], dtype=torch.int8))
    assert packed.tolist() == [[0x81, 0x3F, 0x07]]


def pair(bits: int, size: float = 1.0, hidden: int = FFN) -> tuple[Experts, QuantisedExperts]:
    """Quantised experts, and float ones of the weights that the integers stand for."""
    torch.manual_seed(1)
    exact = Experts(D, hidden, COUNT)
    state = {name: size * value for name, value in exact.state_dict().items()}
    for name in [name for name in state if name.endswith("weight")]:
        inputs = state[name].size(1)
        stored, scale = quantise(state[name], bits)
        exact.state_dict()[name].copy_(dequantise(stored, scale, inputs))
        state |= {name: stored, name.replace("weight", "scale"): scale}
        exact.state_dict()[name.replace("weight", "bias")].copy_(
            state[name.replace("weight", "bias")]
        )
    quantised = QuantisedExperts(D, hidden, COUNT, bits)
    quantised.load_state_dict(state)
    return exact.eval(), quantised.eval()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kept", [[0, 0, 0], [0, 1, 0], [3, 0, 4], [100, 150, 50]], ids=sum)
def test_outputs_are_those_of_the_weights_that_integers_stand_for(
    bits: int, kept: list[int]
) -> None:
    exact, quantised = pair(bits, hidden=FFN + 1)  # the last byte of a row is half empty
    x = torch.randn(sum(kept), D)
    with torch.no_grad():
        expected, output = exact(x, kept), quantised(x, kept)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_depend_on_the_rows_beside_it(bits: int) -> None:
    _, quantised = pair(bits)
    x = torch.randn(7, D)
    crowded = torch.cat([x[:1], 1000 * x[1:]])
    alone, beside = quantised(x[:1], [0, 1, 0]), quantised(crowded, [0, 7, 0])
    torch.testing.assert_close(beside[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_a_model_of_half_precision_keeps_integers_and_scales(bits: int, dtype: torch.dtype) -> None:
    # Scales of such weights are below the normal numbers of float16.
    exact, quantised = pair(bits, size=1e-3)
    before = {name: value.clone() for name, value in quantised.state_dict().items()}
    quantised.to(dtype)
    for name, value in quantised.state_dict().items():
        if name.endswith("bias"):
            assert value.dtype == dtype
        else:
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name]), name
    x = 100 * torch.randn(7, D)
    with torch.no_grad():
        expected = exact(x, [3, 0, 4])
    output = quantised(x.to(dtype), [3, 0, 4])
    assert output.dtype == dtype
    error = (output.float() - expected).norm() / expected.norm()
    assert error < (0.005 if dtype == torch.float16 else 0.02)


def test_large_sums_do_not_overflow_in_float16() -> None:
    exact, quantised = pair(8, size=0.01)
    x = torch.full((5, D), 100.0)
    expected = exact(x, [5, 0, 0])
    output = quantised.half()(x.half(), [5, 0, 0])
    assert output.isfinite().all()
    assert (output.float() - expected).norm() / expected.norm() < 0.005


def test_weights_of_another_kind_are_not_loaded() -> None:
    exact, quantised = pair(8)
    integers = quantised.state_dict()
    with pytest.raises(RuntimeError, match=r"0\.fc1\.weight is torch\.int8, this model needs"):
        exact.load_state_dict(integers, strict=False)
    floats = {**integers, "1.fc2.weight": exact.state_dict()["1.fc2.weight"]}
    with pytest.raises(RuntimeError, match=r"1\.fc2\.weight is torch\.float32, this model needs"):
        quantised.load_state_dict(floats)
    with pytest.raises(RuntimeError, match=r"fc1\.weight has shape \(24, 16\), this model needs"):
        QuantisedExperts(D, FFN, COUNT, 4).load_state_dict(integers)


def test_training_is_refused() -> None:
    _, quantised = pair(8)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        quantised.train()(torch.randn(2, D), [2, 0, 0])
