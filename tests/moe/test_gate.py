"""The gate's choices, weights and losses, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zcode_plugin.moe import GateOptions, LayerStats, TopKGate
from zcode_plugin.moe.losses import balance_loss, z_loss


def gate_with_logits(logits: list[list[float]], **options: object) -> tuple[TopKGate, torch.Tensor]:
    """A gate and an input for which its logits are the given ones."""
    table = torch.tensor(logits)
    gate = TopKGate(table.size(0), table.size(1), GateOptions(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        gate.wg.weight.copy_(table.t())
    return gate, torch.eye(table.size(0))


def log_probabilities(rows: list[list[float]]) -> list[list[float]]:
    return [[math.log(value) for value in row] for row in rows]


def test_top_1_weight_is_the_probability() -> None:
    gate, x_TM = gate_with_logits(log_probabilities([[0.9, 0.1], [0.3, 0.7]]))
    output = gate.eval()(x_TM)
    assert output.routing.token_A.tolist() == [0, 1]
    assert output.routing.kept_E.tolist() == [1, 1]
    torch.testing.assert_close(output.weight_A, torch.tensor([0.9, 0.7]))


def test_top_2_weights_sum_to_one() -> None:
    rows = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]
    gate, x_TM = gate_with_logits(log_probabilities(rows), k=2)
    output = gate.eval()(x_TM)
    # By expert: token 0 to experts 0 and 1, token 1 to experts 1 and 2.
    assert output.routing.token_A.tolist() == [0, 1, 0, 1] or output.routing.token_A.tolist() == [
        0,
        0,
        1,
        1,
    ]
    by_pair = dict(
        zip(
            zip(
                output.routing.token_A.tolist(),
                torch.arange(3).repeat_interleave(output.routing.kept_E).tolist(),
                strict=True,
            ),
            output.weight_A.tolist(),
            strict=True,
        )
    )
    expected = {(0, 0): 0.6 / 0.9, (0, 1): 0.3 / 0.9, (1, 1): 0.3 / 0.8, (1, 2): 0.5 / 0.8}
    assert by_pair == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("before", "expected"), [(False, [1.0, 0.6 / 0.9]), (True, [0.6 / 0.9, 0.6 / 0.9])]
)
def test_weights_are_normalised_over_kept_or_over_all(before: bool, expected: list[float]) -> None:
    rows = [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]
    gate, x_TM = gate_with_logits(
        log_probabilities(rows),
        k=2,
        capacity_factor=0.6,  # 2 * 2 / 3 * 0.6 -> 1 place in each expert
        min_capacity=0,
        token_priority="position",
        normalize_before_dropping=before,
    )
    output = gate(x_TM)
    assert output.routing.token_A.tolist() == [0, 0]
    expected_first = 0.6 / 0.9
    assert output.weight_A[0].item() == pytest.approx(expected_first, abs=1e-6)
    # A token that loses its second expert keeps weight 1 only when the sum is taken afterwards.
    solo, x_TM = gate_with_logits(
        log_probabilities([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1]]),
        k=2,
        capacity_factor=0.6,
        min_capacity=0,
        token_priority="position",
        normalize_before_dropping=before,
    )
    assert solo(x_TM).weight_A[0].item() == pytest.approx(expected[0], abs=1e-6)


def test_balance_loss_by_hand() -> None:
    gate_TE = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    loss = balance_loss(gate_TE=gate_TE, expert_T=torch.tensor([0, 0, 1, 0]), keep_T=None)
    # 2 * (mean gate 0.65 * share 0.75 + 0.35 * 0.25)
    assert loss.item() == pytest.approx(2 * (0.65 * 0.75 + 0.35 * 0.25), abs=1e-6)


def test_balance_loss_is_one_when_balanced() -> None:
    gate_TE = torch.full((6, 3), 1 / 3)
    loss = balance_loss(gate_TE=gate_TE, expert_T=torch.tensor([0, 1, 2, 0, 1, 2]), keep_T=None)
    assert loss.item() == pytest.approx(1.0, abs=1e-6)


def test_losses_do_not_see_padding() -> None:
    logits_TE = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    keep_T = torch.tensor([True, True, False, True, False])
    gate_TE, expert_T = logits_TE.softmax(1), logits_TE.argmax(1)
    kept = logits_TE[keep_T]
    torch.testing.assert_close(
        balance_loss(gate_TE=gate_TE, expert_T=expert_T, keep_T=keep_T),
        balance_loss(gate_TE=kept.softmax(1), expert_T=kept.argmax(1), keep_T=None),
    )
    torch.testing.assert_close(
        z_loss(logits_TE=logits_TE, keep_T=keep_T), z_loss(logits_TE=kept, keep_T=None)
    )


def test_z_loss_by_hand() -> None:
    logits_TE = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert z_loss(logits_TE=logits_TE, keep_T=None).item() == pytest.approx(expected, abs=1e-6)


def test_losses_of_no_token_are_zero() -> None:
    empty = torch.empty(0, 3)
    assert z_loss(logits_TE=empty, keep_T=None).item() == 0
    expert_T = torch.empty(0, dtype=torch.int64)
    assert balance_loss(gate_TE=empty, expert_T=expert_T, keep_T=None).item() == 0


def test_evaluation_is_deterministic_and_drops_nothing() -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, 4, GateOptions(jitter_eps=0.5, capacity_factor=0.1)).eval()
    nn.init.normal_(gate.wg.weight)
    x_TM = torch.randn(100, 8)
    first, second = gate(x_TM), gate(x_TM)
    assert first.routing.token_A.tolist() == second.routing.token_A.tolist()
    assert first.routing.token_A.numel() == 100
    assert first.stats.dropped.item() == 0


def test_jitter_moves_training_only() -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, 4, GateOptions(jitter_eps=0.1, capacity_factor=0.0))
    nn.init.normal_(gate.wg.weight)
    plain = TopKGate(8, 4, GateOptions(capacity_factor=0.0))
    plain.load_state_dict(gate.state_dict())
    x_TM = torch.randn(50, 8)
    noisy = gate(x_TM).stats.z_loss
    assert noisy.item() != plain(x_TM).stats.z_loss.item()
    assert gate.eval()(x_TM).stats.z_loss.item() == plain.eval()(x_TM).stats.z_loss.item()


def test_gate_is_float32_in_a_half_model() -> None:
    torch.manual_seed(0)
    gate = TopKGate(16, 4).eval()
    nn.init.normal_(gate.wg.weight)
    x_TM = torch.randn(20, 16).bfloat16()
    expected = (x_TM.float() @ gate.wg.weight.bfloat16().float().t()).softmax(1).amax(1)
    output = gate.bfloat16()(x_TM)
    assert output.weight_A.dtype == torch.float32
    weights = torch.empty(20).index_copy(0, output.routing.token_A, output.weight_A)
    torch.testing.assert_close(weights, expected)


def test_statistics() -> None:
    rows = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.5, 0.5]]
    gate, x_TM = gate_with_logits(
        log_probabilities(rows), capacity_factor=1.0, min_capacity=0, token_priority="position"
    )
    padding_T = torch.tensor([False, False, False, True])
    stats = LayerStats.unpack(gate(x_TM, padding_T).stats.pack())
    assert stats.tokens.item() == 3
    assert stats.load_E.tolist() == [3, 0]
    assert stats.dropped.item() == 1  # capacity ceil(3 / 2) = 2
    entropy = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.9, 0.8, 0.7))
    assert stats.entropy.item() == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "at least 1"), ({"jitter_eps": 1.0}, r"\[0, 1\)"), ({"k": 5}, "top-5")],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopKGate(4, 4, GateOptions(**options))  # type: ignore[arg-type]
