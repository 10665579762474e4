"""Made-up checkpoints of expert-parallel runs: each rank's, and what one process would have."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]

LAYERS = ("encoder.layers.1.moe_layer", "decoder.layers.0.moe_layer")
EXPERTS, D_MODEL, D_FFN = 4, 3, 5


def whole_model() -> dict[str, torch.Tensor]:
    """All weights, as one process has them; input and output embeddings are one tensor."""
    draw = torch.Generator().manual_seed(1)
    embeddings = torch.randn(7, D_MODEL, generator=draw)
    model = {
        "encoder.embed_tokens.weight": embeddings,
        "decoder.output_projection.weight": embeddings,
        "encoder.version": torch.tensor([3.0]),
        "encoder.layers.0.fc1.weight": torch.randn(D_FFN, D_MODEL, generator=draw).half(),
    }
    for layer in LAYERS:
        model[f"{layer}.gate.wg.weight"] = torch.randn(EXPERTS, D_MODEL, generator=draw)
        for name, shape in (("weight", (EXPERTS, D_FFN, D_MODEL)), ("bias", (EXPERTS, D_FFN))):
            stacked = torch.randn(shape, generator=draw)
            for expert in range(EXPERTS):
                model[f"{layer}.experts.{expert}.fc1.{name}"] = stacked[expert]
    return model


def rank_model(rank: int, size: int) -> dict[str, torch.Tensor]:
    """The weights of one of `size` ranks: its experts are views of one stacked tensor a layer."""
    local = EXPERTS // size
    first = rank % size * local
    model = {key: value for key, value in whole_model().items() if ".experts." not in key}
    model["decoder.output_projection.weight"] = model["encoder.embed_tokens.weight"]
    whole = whole_model()
    for layer in LAYERS:
        for name in ("fc1.weight", "fc1.bias"):
            keys = [f"{layer}.experts.{first + index}.{name}" for index in range(local)]
            stacked = torch.stack([whole[key] for key in keys])
            model.update(zip(keys, stacked.unbind(), strict=True))
    return model


PARAMETERS = [
    "encoder.embed_tokens.weight",
    "encoder.layers.0.fc1.weight",
    *(
        f"{layer}.{name}"
        for layer in LAYERS
        for name in ("gate.wg.weight", "experts.fc1_weight", "experts.fc1_bias")
    ),
]


def rank_optimizer(rank: int, size: int) -> State:
    """Adam's state of one of `size` ranks: a number apart for each parameter, an expert's too."""
    local = EXPERTS // size
    first = rank % size * local
    shapes = {key: value.shape for key, value in rank_model(rank, size).items()}
    state: dict[int, dict[str, Any]] = {}
    for number, name in enumerate(PARAMETERS):
        layer, is_stack, stack = name.partition(".experts.")
        if is_stack:
            shape = shapes[f"{layer}.experts.{first}.{stack.replace('_', '.')}"]
            rows = torch.arange(first, first + local).reshape(local, *(1 for _ in shape))
            moment = 100.0 * number + rows.expand(local, *shape).float()
        else:
            moment = torch.full(shapes[name], 100.0 * number)
        state[number] = {"step": 40, "exp_avg": moment, "exp_avg_sq": moment + 0.5}
    numbers = list(range(len(PARAMETERS)))
    return {"state": state, "param_groups": [{"lr": 0.003, "params": numbers}], "loss_scale": 128.0}


def rank_state(rank: int, size: int = 2, world: int | None = None) -> State:
    """A checkpoint of one rank as fairseq's trainer saves it; the only one where `size` is 1."""
    return {
        "args": None,
        "cfg": {
            "_name": None,
            "model": Namespace(
                arch="moe_transformer",
                base_layers=int(size > 1),
                expert_parallel_size=size,
                model_parallel_size=1,
            ),
            "common": {"model_parallel_size": 1},
            "task": {"_name": "multitask_multilingual", "langs": "de,en"},
            "distributed_training": {
                "distributed_world_size": world or size,
                "distributed_rank": rank,
            },
            "checkpoint": {"checkpoint_suffix": f"-rank-{rank}" if size > 1 else ""},
        },
        "model": rank_model(rank, size),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "MultitaskSummedLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 40,
            }
        ],
        "task_state": {"parameters": PARAMETERS},
        "extra_state": {
            "train_iterator": {"epoch": 2, "iterations_in_epoch": 5},
            "val_loss": 1.5,
            "ema": rank_model(rank, size),
        },
        "last_optimizer_state": rank_optimizer(rank, size),
    }


def swap(one: Path, other: Path) -> None:
    """Give two files each other's names."""
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def write_rank_files(folder: Path, states: Mapping[int, State]) -> dict[int, Path]:
    """Write `checkpoint_last-rank-N.pt`, N from each state's options; paths by rank."""
    suffixes = {
        rank: state["cfg"]["checkpoint"]["checkpoint_suffix"] for rank, state in states.items()
    }
    paths = {rank: folder / f"checkpoint_last{suffix}.pt" for rank, suffix in suffixes.items()}
    for rank, path in paths.items():
        torch.save(states[rank], path)
    return paths
