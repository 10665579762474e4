"""Options of a checkpoint in each of the forms in which fairseq saves them."""

from argparse import Namespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from zcode_plugin.checkpoint import config

FORMS = {
    "dict": lambda: {"cfg": {"model": {"base_layers": 1, "arch": None}}},
    "Namespace in a dict": lambda: {"cfg": {"model": Namespace(base_layers=1, arch=None)}},
    "struct DictConfig": lambda: {"cfg": _struct({"model": {"base_layers": 1, "arch": None}})},
    "args alone": lambda: {"cfg": None, "args": Namespace(base_layers=1, arch=None)},
}


def _struct(options: dict[str, Any]) -> Any:
    cfg = OmegaConf.create(options)
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.mark.parametrize("form", FORMS)
def test_get_and_put(form: str) -> None:
    state = FORMS[form]()
    model = config.section(state, "model")
    assert config.get(model, "base_layers") == 1
    assert config.get(model, "arch", "none") == "none"
    assert config.get(model, "no_such_option", 5) == 5
    config.put(model, "base_layers", 0)
    config.put(model, "expert_parallel_size", 1)
    again = config.section(state, "model")
    assert config.get(again, "base_layers") == 0
    assert config.get(again, "expert_parallel_size") == 1


def test_a_missing_section_is_empty() -> None:
    assert config.get(config.section({"cfg": {"model": {}}}, "task"), "langs") is None
    assert config.get(config.section({}, "task"), "langs") is None


def test_number_of_updates_is_that_of_the_last_optimizer() -> None:
    state = {"optimizer_history": [{"num_updates": 10}, {"num_updates": 25}]}
    assert config.num_updates(state) == 25
    assert config.num_updates({}) == 0


def test_expert_counts_are_those_of_each_side_in_the_order_of_layers() -> None:
    state = {"cfg": {"model": {"moe_expert_count": "8"}}}
    counts = {"decoder.layers.1.moe_layer": 3, "encoder.layers.10.moe_layer": 2}
    config.set_expert_counts(state, {**counts, "encoder.layers.3.moe_layer": 4})
    assert config.get(state["cfg"]["model"], "encoder_moe_expert_count") == "4,2"
    assert config.get(state["cfg"]["model"], "decoder_moe_expert_count") == "3"
