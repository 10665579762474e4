"""The flags that name objectives."""

from __future__ import annotations

import pytest

from zcode_plugin.data.objectives import Objective, parse_objectives, parse_token_budgets
from zcode_plugin.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mt", [("mt", 1.0)]),
        ("mt:1,dae:0.5", [("mt", 1.0), ("dae", 0.5)]),
        (" dae:0.5 , mt ", [("mt", 1.0), ("dae", 0.5)]),
        ("dae:2", [("dae", 2.0)]),
    ],
)
def test_objectives(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_objectives(text) == tuple(Objective(*item) for item in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--multitask is empty"),
        ("mt,mt:2", "mt stands there twice"),
        ("mt:0", "the number '0' of mt must be positive"),
        ("mt:-1", "must be positive"),
        ("mt:nan", "must be positive"),
        ("mt:inf", "must be positive"),
        ("mt:one", "the number 'one' of mt must be positive"),
        ("mt:1,dae:0@5,1", "unknown objective '1'"),
        ("mt:1,dae:x@5", "'x@5' of dae is no WEIGHT@UPDATE"),
        ("mt:1,dae:1@x", "'1@x' of dae is no WEIGHT@UPDATE"),
        ("mt:1,dae:1@9,0@9", "the updates of dae must ascend"),
        ("mt:1@0,0@10,dae:0@10,1@20", "after 10 updates all weights are 0"),
        ("lm:1", "unknown objective 'lm', choose from mt, dae"),
    ],
)
def test_bad_objectives(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_objectives(text)


def test_a_weight_that_changes() -> None:
    mt, dae = parse_objectives("mt:2,dae:0@100,1@300,0.5@400")
    updates = (0, 100, 150, 200, 300, 350, 400, 9999)
    assert [dae.weight_at(update) for update in updates] == [0, 0, 0.25, 0.5, 1, 0.75, 0.5, 0.5]
    assert {mt.weight_at(update) for update in updates} == {2}
    assert dae.weight_at(None) == 0.5
    # No update without any objective: one is on its way before the other has ended.
    parse_objectives("mt:1@0,0@10,dae:0@5,1@20")


def test_token_budgets() -> None:
    both = parse_objectives("mt,dae")
    assert parse_token_budgets("", both) == {}
    assert parse_token_budgets("dae:512", both) == {"dae": 512}
    with pytest.raises(UserError, match="dae is not among --multitask mt"):
        parse_token_budgets("dae:512", parse_objectives("mt"))
    with pytest.raises(UserError, match="the number '' of dae must be positive"):
        parse_token_budgets("dae", both)
    with pytest.raises(UserError, match=r"needs at least 1 token"):
        parse_token_budgets("dae:0.5", both)
