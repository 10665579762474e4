"""The optimizer's state by name and by number, where the numbers of experts need two digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zcode_plugin.checkpoint.names import parse_stack
from zcode_plugin.checkpoint.optimizer import by_number, stack_keys
from zcode_plugin.errors import UserError

NAME = "encoder.layers.1.moe_layer.experts.fc1_bias"
KEYS = [f"encoder.layers.1.moe_layer.experts.{expert}.fc1.bias" for expert in range(12)]
MODEL = {key: torch.zeros(2) for key in sorted(KEYS)}  # by name 10 comes before 2


def test_a_stack_has_its_experts_by_number() -> None:
    stack = parse_stack(NAME)
    assert stack is not None
    assert stack_keys(stack, MODEL) == KEYS


def test_each_row_is_taken_of_its_own_entry() -> None:
    moments = {"exp_avg": {key: torch.full((2,), float(number)) for number, key in enumerate(KEYS)}}
    asked = []

    def take(key: str, value: torch.Tensor) -> torch.Tensor:
        asked.append(key)
        return value[:1]

    found = by_number(moments, [NAME], MODEL, take=take)[0]["exp_avg"]
    assert asked == KEYS
    assert found.tolist() == [[float(number)] for number in range(12)]


def test_what_a_stack_has_once_must_be_the_same_of_all() -> None:
    moments: dict[str, dict[str, Any]] = {"step": dict.fromkeys(KEYS, 5)}
    assert by_number(moments, [NAME], MODEL) == {0: {"step": 5}}
    moments["step"][KEYS[7]] = 6
    with pytest.raises(UserError, match="the optimizer's step differs between experts of"):
        by_number(moments, [NAME], MODEL)
