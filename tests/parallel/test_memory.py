"""Bytes on a rank in each form of parallelism: those of the closed form."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from ranks import train

from zcode_plugin.planning.forms import ELEMENTS, Form, Memory, state_memory
from zcode_plugin.planning.shapes import ModelShape

RUN = ("--max-tokens", "300", "--max-update", "1", "--disable-validation", "--no-save")


def measure(folder: Path, rank: int) -> None:
    """For `inside`: write down what is in memory when the optimizer has stepped."""
    from zcode_plugin.parallel.zero import ShardedOptimizer
    from zcode_plugin.tasks.training import TrainingTask

    stock = TrainingTask.optimizer_step

    def optimizer_step(self, optimizer, model, update_num):  # type: ignore[no-untyped-def]
        stock(self, optimizer, model, update_num)
        named = dict(model.named_parameters())
        of_torch = optimizer.optimizer
        sharded = isinstance(of_torch, ShardedOptimizer)
        states = [one.state for one in (of_torch.shards if sharded else [of_torch])]
        found = {
            "elements": [
                sum(p.numel() for name, p in named.items() if (".experts." in name) == is_expert)
                for is_expert in (False, True)
            ],
            "bytes": [
                sum(p.numel() * p.element_size() for p in named.values()),
                sum(p.grad.numel() * p.grad.element_size() for p in named.values()),
                sum(
                    value.numel() * value.element_size()
                    for state in states
                    for entries in state.values()
                    for value in entries.values()
                    if hasattr(value, "numel") and value.dim()
                ),
            ],
        }
        (folder / f"measured-{rank}").write_text(json.dumps(found))

    TrainingTask.optimizer_step = optimizer_step


def measured(data: Path, folder: Path, world: int, size: int, *options: str) -> list[dict]:
    """What each rank measured."""
    folder.mkdir()
    train(
        data, folder / "save", *RUN, "--expert-parallel-size", size, *options, world=world,
        inside=partial(measure, folder),
    )  # fmt: skip
    return [json.loads((folder / f"measured-{rank}").read_text()) for rank in range(world)]


def closed_form(dense: int, experts: int, form: Form) -> Memory:
    """What `zcode plan` computes for a model of so many elements."""
    shape = ModelShape(
        dense=dense, sliced=0, experts=experts, largest=0, expert_layers=(4, 4), encoder_layers=2,
        decoder_layers=2, width=64, top_k=1, capacity_factor=1.0, active=0,
    )  # fmt: skip
    return state_memory(shape, form, ELEMENTS["fp32"])


@pytest.fixture(scope="module")
def elements(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Shared parameters and experts of the model."""
    [one] = measured(reversal, tmp_path_factory.mktemp("one") / "run", 1, 1)
    dense, experts = one["elements"]
    expected = closed_form(dense, experts, Form(1))
    assert [expected.parameters, expected.gradients, expected.optimizer] == one["bytes"]
    return one["elements"]


@pytest.mark.parametrize(
    ("form", "world", "size"),
    [
        pytest.param("E", 2, 2, marks=pytest.mark.slow),
        pytest.param("E", 4, 4, marks=pytest.mark.slow),
        pytest.param("E+D", 4, 2, marks=pytest.mark.slow),
        pytest.param("E+Z1", 2, 2),
        pytest.param("E+Z1", 4, 4, marks=pytest.mark.slow),
        pytest.param("E+D+Z1", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_bytes_are_those_of_the_closed_form(
    elements: list[int], reversal: Path, tmp_path: Path, form: str, world: int, size: int
) -> None:
    options = ("--zero-sharding", "os") if "Z1" in form else ()
    of_plan = Form(world, size, zero=1 if "Z1" in form else 0)
    assert of_plan.name == form
    expected = closed_form(*elements, of_plan)
    found = [one["bytes"] for one in measured(reversal, tmp_path / "run", world, size, *options)]
    for parameters, gradients, optimizer in found:
        assert parameters == expected.parameters
        assert gradients == expected.gradients
        assert optimizer == pytest.approx(expected.optimizer, rel=0.05)
    assert sum(optimizer for *_, optimizer in found) == 8 * (
        sum(elements) if "Z1" in form else world * elements[0] + world // size * elements[1]
    )
