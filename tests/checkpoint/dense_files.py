"""Checkpoints of small dense models, built by fairseq and saved as its trainer saves them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import build_model

import zcode_plugin

State = dict[str, Any]
SHAPE = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "dropout": 0.0,
}
ARCHITECTURES = ("moe_transformer_tiny_dense", "transformer")
SYMBOLS = 9


def build(options: Namespace) -> torch.nn.Module:
    """The model of these options, for a dictionary of 9 symbols."""
    zcode_plugin.register()
    dictionary = Dictionary()
    for letter in "abcde":
        dictionary.add_symbol(letter)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return build_model(options, task)


def dense_state(arch: str, optimizer: bool = True, ema: bool = True, **options: Any) -> State:
    """What a run of this architecture would have saved, with moments that tell parameters apart."""
    torch.manual_seed(1)
    model_options = Namespace(arch=arch, _name=arch, **{**SHAPE, **options})
    model = build(model_options)
    for parameter in model.parameters():  # away from the constants at the start
        parameter.data += 0.1 * torch.randn_like(parameter)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = [name for name, _ in model.named_parameters()]
    state: State = {
        "args": None,
        "cfg": {
            "model": model_options,
            "task": {"_name": "translation", "source_lang": "aa", "target_lang": "bb"},
            "distributed_training": {"distributed_world_size": 1, "distributed_rank": 0},
            "checkpoint": {"checkpoint_suffix": ""},
        },
        "model": _tied(model, weights),
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 7}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 7}},
    }
    if arch != "transformer":
        state["task_state"]["parameters"] = parameters
    if ema:
        state["extra_state"]["ema"] = {key: value + 1 for key, value in weights.items()}
    if optimizer:
        state["last_optimizer_state"] = _adam(model)
    return state


def _tied(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, with one tensor for parameters that are one in the model."""
    first: dict[int, str] = {}
    tied = {}
    for key, value in model.state_dict(keep_vars=True).items():
        tied[key] = weights[first.setdefault(id(value), key)]
    return tied


def _adam(model: torch.nn.Module) -> State:
    moments = {}
    names = [name for name, _ in model.named_parameters()]
    for number, parameter in enumerate(model.parameters()):
        if ".layers." in names[number] and names[number].count(".") == 3:
            continue  # stock's unused copies never have a gradient
        moments[number] = {
            "step": 7,
            "exp_avg": torch.full(parameter.shape, float(number)),
            "exp_avg_sq": torch.full(parameter.shape, number + 0.5),
        }
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(range(len(names)))}]}


def write(folder: Path, state: State, name: str = "dense.pt") -> Path:
    """Save a state."""
    torch.save(state, folder / name)
    return folder / name
