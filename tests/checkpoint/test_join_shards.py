"""Flat pieces of `--use-sharded-state` joined, with the optimizer's state of them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from checkpoint.rank_files import State, swap
from distributed import run_ranks
from torch import Tensor

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.gather import find_files, gather_pieces
from zcode_plugin.checkpoint.reshard import plan
from zcode_plugin.checkpoint.resume import check_start
from zcode_plugin.checkpoint.tensors import put_together
from zcode_plugin.errors import UserError

EMBEDDINGS, GATE, LAYER = "embed_tokens.weight", "gate.wg.weight", "layers.0.moe_layer"
PARAMETERS = [
    f"encoder.{EMBEDDINGS}",
    f"encoder.{LAYER}.{GATE}",
    f"encoder.{LAYER}.experts.fc1_weight",
]
EXPERTS = [f"encoder.{LAYER}.experts.{expert}.fc1.weight" for expert in range(4)]


def numbers(first: int, *shape: int) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.arange(first, first + size, dtype=torch.float32).view(shape)


def whole(first: int) -> dict[str, Tensor]:
    """Parameters, or a moment of them: consecutive numbers."""
    shared = {PARAMETERS[0]: numbers(first, 5, 3), PARAMETERS[1]: numbers(first + 15, 4, 3)}
    return shared | {key: numbers(first + 27 + 6 * e, 2, 3) for e, key in enumerate(EXPERTS)}


def pieces(first: int, world: int, size: int, rank: int) -> tuple[Tensor, Tensor]:
    """What a rank has of the two flat parameters: what is shared, and the experts of its place."""
    entries, local = whole(first), 4 // size
    own = EXPERTS[rank % size * local :][:local]
    flat = [torch.cat([entries[key].view(-1) for key in keys]) for keys in (PARAMETERS[:2], own)]
    cut = []
    for whole_flat, members, place in (
        (flat[0], world, rank),
        (flat[1], world // size, rank // size),
    ):
        length = -(-len(whole_flat) // members)
        cut.append(torch.nn.functional.pad(whole_flat, (0, length * members - len(whole_flat)))
                   [place * length :][:length])  # fmt: skip
    return cut[0], cut[1]


def padding(elements: int, members: int, place: int) -> int:
    return -elements % members if place == members - 1 else 0


def shard(world: int, size: int, rank: int) -> State:
    shared, experts = pieces(0, world, size, rank)
    moments = pieces(1000, world, size, rank)
    local = 4 // size
    metadata = [
        {
            "fsdp_path": "encoder",
            "params": {
                "flat_param_0": {
                    "names": [EMBEDDINGS, f"{LAYER}.{GATE}"], "shapes": [(5, 3), (4, 3)],
                    "numels": [15, 12], "padding": padding(27, world, rank),
                }
            },
            "shared_param_info": [],
        },
        {
            "fsdp_path": f"encoder.{LAYER}.experts",
            "params": {
                "flat_param_0": {
                    "names": ["fc1_weight"], "shapes": [(local, 2, 3)], "numels": [local * 6],
                    "padding": padding(local * 6, world // size, rank // size),
                }
            },
            "shared_param_info": [],
        },
    ]  # fmt: skip
    return {
        "cfg": {
            "model": Namespace(base_layers=int(size > 1), expert_parallel_size=size),
            "distributed_training": {
                "distributed_world_size": world,
                "distributed_rank": rank,
                "use_sharded_state": True,
            },
            "checkpoint": {"checkpoint_suffix": f"-rank-{rank}" if size > 1 else ""},
        },
        "model": {
            "encoder.flat_param_0": shared,
            f"encoder.{LAYER}.experts.flat_param_0": experts,
            "encoder.version": torch.ones(1),
        },
        "fsdp_metadata": {"param_metadata": metadata, "buffer_names": ["encoder.version"]},
        "optimizer_history": [{"num_updates": 3}],
        "task_state": {"parameters": PARAMETERS},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 4}},
        "last_optimizer_state": {
            "state": {number: {"step": 3, "exp_avg": m} for number, m in enumerate(moments)},
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
            "loss_scale": 8.0,
        },
    }


def write(folder: Path, world: int, size: int) -> list[Path]:
    paths = []
    for rank in range(world):
        middle = f"-rank-{rank}" if size > 1 else ""
        paths.append(folder / f"checkpoint_last{middle}-shard{rank}.pt")
        torch.save(shard(world, size, rank), paths[-1])
    return paths


LAYOUTS = [(2, 1), (3, 1), (2, 2), (4, 2), (4, 4)]


@pytest.mark.parametrize(("world", "size"), LAYOUTS)
def test_weights_and_moments_are_whole_again(tmp_path: Path, world: int, size: int) -> None:
    write(tmp_path, world, size)
    files = find_files(tmp_path / "checkpoint_last.pt", shards_too=True)
    gathered = gather_pieces(files, with_optimizer=True)
    model, moments = gathered.state["model"], gathered.moments
    assert moments["step"] == dict.fromkeys(whole(0), 3)
    assert torch.equal(model.pop("encoder.version"), torch.ones(1))
    assert model.pop(f"decoder.{EMBEDDINGS}") is model[f"encoder.{EMBEDDINGS}"]
    for found, expected in ((model, whole(0)), (moments["exp_avg"], whole(1000))):
        put_together(found)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
    assert gathered.experts == {f"encoder.{LAYER}": 4}


@pytest.mark.parametrize(("world", "size"), LAYOUTS)
def test_one_process_goes_on(tmp_path: Path, world: int, size: int) -> None:
    [state] = plan(write(tmp_path, world, size), 1).states()
    own = state["last_optimizer_state"]
    assert own["loss_scale"] == 8.0
    assert own["param_groups"] == [{"lr": 0.1, "params": [0, 1, 2]}]
    assert torch.equal(own["state"][2]["exp_avg"], numbers(1027, 4, 2, 3))
    assert torch.equal(own["state"][0]["exp_avg"], numbers(1000, 5, 3))
    assert state["cfg"]["distributed_training"]["use_sharded_state"] is False
    assert state["extra_state"]["train_iterator"]["iterations_in_epoch"] == 4 * world
    assert "fsdp_metadata" not in state


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, 3, 1)
    with pytest.raises(UserError, match=r"had 3 ranks, .* there are those of ranks 0, 2"):
        plan([files[0], files[2]], 1)
    with pytest.raises(UserError, match=r"shard0.pt is a shard of all weights: join the shards"):
        find_files(tmp_path / "checkpoint_last.pt")


@pytest.mark.parametrize(("world", "size"), [(2, 1), (2, 2)])
def test_shards_under_each_others_names_are_refused(tmp_path: Path, world: int, size: int) -> None:
    files = write(tmp_path, world, size)
    swap(*files)
    message = "was saved by rank 1: put the shard of rank 0 in its place"
    with pytest.raises(UserError, match=message):
        gather_pieces(files, with_optimizer=False)


@pytest.mark.parametrize("size", [1, 2])
def test_an_interrupted_save_of_shards_is_completed(tmp_path: Path, size: int) -> None:
    files = write(tmp_path, 2, size)
    for rank, path in enumerate(files):
        state = shard(2, size, rank)
        state["optimizer_history"][-1]["num_updates"] = 4
        torch.save(state, f"{path}.tmp")
    Path(f"{files[0]}.tmp").rename(files[0])
    options = Namespace(
        save_dir=str(tmp_path), use_sharded_state=True, expert_parallel_size=size,
    )  # fmt: skip
    run_ranks(start, 2, options)
    assert sorted(tmp_path.iterdir()) == files
    assert {config.num_updates(torch.load(path, weights_only=True)) for path in files} == {4}


def start(rank: int, options: Namespace) -> None:
    check_start(options, [])


def test_parameters_that_no_shard_holds_are_named(tmp_path: Path) -> None:
    files = write(tmp_path, 2, 1)
    state = shard(2, 1, 0)
    state["task_state"]["parameters"] = ["flat_param_0"]
    torch.save(state, files[0])
    with pytest.raises(UserError, match="hold no flat_param_0, which was trained"):
        plan(files, 1)
