"""Checkpoints divided anew: bit for bit what a run of that layout would have saved, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.rank_files import State, rank_state, swap, write_rank_files

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.gather import find_files
from zcode_plugin.checkpoint.layout import Layout
from zcode_plugin.checkpoint.reshard import Position, plan
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.errors import UserError


def write(folder: Path, size: int, world: int) -> list[Path]:
    """The files of a run; one where its ranks have the same experts."""
    ranks = range(world if size > 1 else 1)
    states = {rank: rank_state(rank, size, world) for rank in ranks}
    return list(write_rank_files(folder, states).values())


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """The same keys and values all the way down, tensors bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, torch.Tensor):
        assert bit_equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [
        ((4, 4), (2, 2), None),
        ((2, 2), (4, 4), None),
        ((4, 4), (1, 1), None),
        ((1, 1), (4, 4), None),
        ((2, 4), (2, 2), None),  # two groups of ranks: their size stays
        ((2, 2), (2, 4), 2),
        ((2, 4), (4, 4), 4),
        ((4, 4), (1, 2), 1),  # all experts on both ranks: the first saves for all
        ((1, 2), (2, 2), None),
    ],
)
def test_files_are_those_of_a_run_of_that_layout(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int], asked: int | None
) -> None:
    (size, world), (new_size, new_world) = before, after
    resharding = plan(write(tmp_path, size, world), new_world, asked)
    assert resharding.after == Layout(world=new_world, expert_parallel=new_size)
    assert resharding.position_after == Position(2, *divmod(5 * world, new_world))
    files = [tmp_path / f"new-{rank}.pt" for rank in range(resharding.after.files)]
    io.save_all(zip(files, resharding.states(), strict=True))
    for rank, path in enumerate(files):
        expected = rank_state(rank, new_size, new_world)
        expected["extra_state"]["train_iterator"]["iterations_in_epoch"] = 5 * world // new_world
        state = io.load(path)
        assert_same(state, expected)
        for key, value in state["model"].items():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key
    assert len(files) == (new_world if new_size > 1 else 1)


def test_without_an_optimizer_there_is_none_after(tmp_path: Path) -> None:
    states = {rank: rank_state(rank) for rank in range(2)}
    for state in states.values():
        del state["last_optimizer_state"]
    [state] = plan(list(write_rank_files(tmp_path, states).values()), 1).states()
    assert "last_optimizer_state" not in state


def test_without_experts_there_is_one_file(tmp_path: Path) -> None:
    state = rank_state(0, size=1, world=2)
    for weights in (state["model"], state["extra_state"]["ema"]):
        for key in [key for key in weights if ".experts." in key]:
            del weights[key]
    del state["last_optimizer_state"]
    torch.save(state, tmp_path / "dense.pt")
    resharding = plan([tmp_path / "dense.pt"], 4)
    assert resharding.after == Layout(world=4, expert_parallel=1)
    [divided] = resharding.states()
    assert divided["cfg"]["model"].base_layers == 0


def flatten(state: State) -> None:
    state["last_optimizer_state"]["param_groups"][0]["params"] = [0]


def factor(state: State) -> None:
    for entries in state["last_optimizer_state"]["state"].values():
        entries["exp_avg_sq_col"] = torch.zeros(3)


def forget_names(state: State) -> None:
    state["task_state"] = {}


def differ(state: State) -> None:
    if state["cfg"]["distributed_training"]["distributed_rank"] == 1:
        state["last_optimizer_state"]["state"][0]["exp_avg"][0, 0] = 7


def group(state: State) -> None:
    state["cfg"]["dataset"] = {"grouped_shuffling": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flatten, "{0}: the optimizer has 1 parameters and the model 8; where --fp16 has flattened "
         "them, train with --fp16-no-flatten-grads or --memory-efficient-fp16 to change the number "
         "of ranks"),
        (factor, "{0}: exp_avg_sq_col of encoder.layers.1.moe_layer.experts.fc1_weight has the "
         "shape (3,), which is not divided by experts: the number of ranks can be changed with "
         "adam, sgd and others that treat each weight alike, or without the optimizer (zcode "
         "merge)"),
        (forget_names, "{0} does not name the optimizer's parameters, which the task "
         "multitask_multilingual does: it was saved by another task or an older version"),
        (differ, "{1}: encoder.embed_tokens.weight differs from the same entry of another rank "
         "(checkpoint_last-rank-0.pt and on): the files are not of one save"),
        (group, "--grouped-shuffling orders batches by the number of ranks, so that there is no "
         "such place in the middle of an epoch: use a checkpoint from the end of one"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused(
    tmp_path: Path, change: Callable[[State], None], message: str
) -> None:
    states = {rank: rank_state(rank) for rank in range(2)}
    for state in states.values():
        change(state)
    files = list(write_rank_files(tmp_path, states).values())
    with pytest.raises(UserError) as refusal:
        plan(files, 4)
    assert str(refusal.value) == message.format(*files)


@pytest.mark.parametrize(
    ("ranks", "expert_parallel", "message"),
    [
        (3, None, "--expert-parallel-size 3 must divide the world size 3 and --moe-expert-count 4: "
         "choose a common divisor, or other numbers of ranks and experts"),
        (4, 3, "--expert-parallel-size 3 does not divide --ranks 4: choose a divisor of 4"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide(
    tmp_path: Path, ranks: int, expert_parallel: int | None, message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        plan(write(tmp_path, 2, 2), ranks, expert_parallel)
    assert str(refusal.value) == message


def divide(
    files: list[Path], folder: Path, world: int, expert_parallel: int, tensor_parallel: int
) -> list[Path]:
    """Write the files of another layout."""
    folder.mkdir()
    resharding = plan(files, world, expert_parallel, tensor_parallel=tensor_parallel)
    paths = resharding.after.paths(folder / "checkpoint_last.pt")
    io.save_all(zip(paths, resharding.states(), strict=True))
    return paths


@pytest.mark.parametrize(
    ("world", "expert_parallel", "tensor_parallel", "names"),
    [
        (2, 1, 2, ["model_part-0", "model_part-1"]),
        (4, 1, 4, [f"model_part-{part}" for part in range(4)]),
        (4, 2, 2, [f"rank-{rank}" for rank in range(4)]),
        (8, 1, 2, ["model_part-0", "model_part-1"]),  # the first of those that hold a slice saves
    ],
)
def test_into_slices_and_back(
    tmp_path: Path, world: int, expert_parallel: int, tensor_parallel: int, names: list[str]
) -> None:
    """By way of another number of slices, too: bit for bit what was divided first."""
    files = write(tmp_path, 1, 8)
    sliced = divide(files, tmp_path / "sliced", world, expert_parallel, tensor_parallel)
    assert [path.stem.removeprefix("checkpoint_last-") for path in sliced] == names
    for rank, path in enumerate(sliced):
        state = io.load(path)
        cfg = state["cfg"]
        assert cfg["checkpoint"]["checkpoint_suffix"] == f"-{names[rank]}"
        assert cfg["model"].model_parallel_size == tensor_parallel
        assert cfg["model"].base_layers == int(expert_parallel > 1)
        assert cfg["distributed_training"] == {
            "distributed_world_size": world,
            "distributed_rank": rank,
        }
        assert state["extra_state"]["train_iterator"]["iterations_in_epoch"] == (
            5 * 8 * tensor_parallel // world
        )
        rows = 7 // tensor_parallel + 1  # of 7 symbols, rounded up
        assert len(state["last_optimizer_state"]["state"][0]["exp_avg"]) == rows
        part = range(7)[rank % tensor_parallel * rows :][:rows]
        embeddings = state["model"]["encoder.embed_tokens.weight"]
        assert len(embeddings) == len(part)
        for key, value in state["model"].items():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key
        assert state["model"]["decoder.output_projection.weight"].data_ptr() == (
            embeddings.data_ptr()
        )
    others = divide(sliced, tmp_path / "others", 4, 1, 4 if tensor_parallel == 2 else 2)
    [whole] = divide(others, tmp_path / "whole", 8, 1, 1)
    found, expected = io.load(whole), rank_state(0, 1, 8)
    assert_same(found, expected)


@pytest.mark.parametrize(("world", "expert_parallel"), [(2, 1), (4, 2)])
def test_files_under_each_others_names_are_refused(
    tmp_path: Path, world: int, expert_parallel: int
) -> None:
    first, second, *_ = divide(
        write(tmp_path, 1, 8), tmp_path / "sliced", world, expert_parallel, 2
    )
    swap(first, second)
    with pytest.raises(UserError, match=r"0\.pt was saved as .*-1: put the file of rank 0 in its"):
        plan(find_files(first), 1)


def test_sizes_of_slices_that_do_not_divide(tmp_path: Path) -> None:
    files = write(tmp_path, 2, 2)
    for arguments, message in (
        ((4, None, None, 3), "--model-parallel-size 3 does not divide --ranks 4: choose a divisor"),
        ((4, 4, None, 2), "--expert-parallel-size 4 does not divide --ranks 4 / "
         "--model-parallel-size 2: choose a divisor of 2"),
        ((4, None, "os", 2), "--zero-sharding os cannot go with --model-parallel-size 2"),
    ):  # fmt: skip
        with pytest.raises(UserError) as refusal:
            plan(files, *arguments)
        assert str(refusal.value).startswith(message)


def test_a_run_that_shared_its_state_is_sliced_without(tmp_path: Path) -> None:
    state = rank_state(0, 1, 2)
    state["cfg"]["distributed_training"]["zero_sharding"] = "os"
    torch.save(state, tmp_path / "checkpoint_last.pt")
    resharding = plan([tmp_path / "checkpoint_last.pt"], 2, tensor_parallel=2)
    assert not resharding.after.sharded
    for part in resharding.states():
        assert part["cfg"]["distributed_training"]["zero_sharding"] == "none"
