"""Files in which ranks share the optimizer's state between them: divided anew, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint.rank_files import PARAMETERS, State, rank_state, write_rank_files
from checkpoint.test_reshard import assert_same
from checkpoint.test_resume import start

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.merge import merge
from zcode_plugin.checkpoint.reshard import plan
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.zero_owners import OWNED, Sized, owned_numbers, owners


def sharded_state(rank: int, size: int, world: int, zero: bool = True) -> State:
    """What one rank saves; `zero` False gives that of a run without `--zero-sharding`."""
    state = rank_state(rank, size, world)
    state["cfg"]["distributed_training"]["zero_sharding"] = "os" if zero else "none"
    if zero and size > 1:
        optimizer = state["last_optimizer_state"]
        parameters = [
            Sized(optimizer["state"][number]["exp_avg"].numel(), ".experts." in name)
            for number, name in enumerate(PARAMETERS)
        ]
        owned = owned_numbers(parameters, world=world, expert_parallel=size, rank=rank)
        optimizer["state"] = {number: optimizer["state"][number] for number in owned}
        optimizer[OWNED] = owned
    return state


def write(folder: Path, size: int, world: int, zero: bool = True) -> list[Path]:
    folder.mkdir(exist_ok=True)
    ranks = range(world if size > 1 else 1)
    return list(
        write_rank_files(
            folder, {rank: sharded_state(rank, size, world, zero) for rank in ranks}
        ).values()
    )


def test_every_parameter_has_one_owner_among_the_ranks_that_hold_it() -> None:
    sizes = [Sized(count, number % 3 == 0) for number, count in enumerate([9, 8, 5, 5, 4, 3, 2, 1])]
    owned = [owned_numbers(sizes, world=4, expert_parallel=2, rank=rank) for rank in range(4)]
    shared = [number for part in owned for number in part if number % 3]
    assert sorted(shared) == [1, 2, 4, 5, 7]
    for one, other in ((0, 2), (1, 3)):
        assert sorted(n for n in owned[one] + owned[other] if n % 3 == 0) == [0, 3, 6]
    assert owners([1, 5, 3, 2], 2) == [0, 0, 1, 1]
    assert owners([4], 3) == [0]


@pytest.mark.parametrize(
    ("before", "after", "zero"),
    [
        ((4, 4, True), (2, 2, True), None),
        ((2, 4, True), (2, 2, True), None),
        ((2, 4, True), (2, 4, False), "none"),
        ((2, 4, False), (2, 4, True), "os"),
        ((2, 2, True), (4, 4, False), "none"),
        ((2, 2, True), (1, 1, True), None),  # one file has the state of all
        ((1, 2, True), (2, 2, True), None),
        ((1, 1, False), (2, 2, True), "os"),
    ],
)
def test_files_are_those_of_a_run_of_that_layout(
    tmp_path: Path, before: tuple[int, int, bool], after: tuple[int, int, bool], zero: str | None
) -> None:
    (size, world, sharded), (new_size, new_world, new_sharded) = before, after
    files = write(tmp_path / "old", size, world, sharded)
    resharding = plan(files, new_world, new_size, zero)
    states = list(resharding.states())
    assert len(states) == (new_world if new_size > 1 else 1)
    for rank, state in enumerate(states):
        expected = sharded_state(rank, new_size, new_world, new_sharded)
        expected["extra_state"]["train_iterator"]["iterations_in_epoch"] = 5 * world // new_world
        assert_same(state, expected)


def test_merge_needs_no_optimizer(tmp_path: Path) -> None:
    files = write(tmp_path / "run", 2, 4)
    merged, report = merge(dict(enumerate(files)))
    assert report.ranks == 4
    assert_same(merged["model"], rank_state(0, 1)["model"])


def change(path: Path, edit: Callable[[State], object]) -> None:
    state = io.load(path)
    edit(state)
    io.save(state, path)


def whole_state(state: State) -> None:
    rank = state["cfg"]["distributed_training"]["distributed_rank"]
    state["last_optimizer_state"] = rank_state(rank, 2, 4)["last_optimizer_state"]


def part_of(other: int) -> Callable[[State], None]:
    def edit(state: State) -> None:
        state["last_optimizer_state"] = sharded_state(other, 2, 4)["last_optimizer_state"]

    return edit


@pytest.mark.parametrize(
    ("edit", "reshard_says", "start_says"),
    [
        (whole_state, "{2} is of another run than {0}: their optimizers differ", ""),
        (
            part_of(0),
            "{2} and {0} both hold the optimizer's state of encoder.embed_tokens.weight, which "
            "--zero-sharding gives to one rank: the files are not of one save",
            "{2} holds another part of the optimizer's state than rank 2 needs: divide it anew "
            "with zcode reshard {whole} --ranks 4 --expert-parallel-size 2 --zero-sharding os "
            "--out DIR",
        ),
        (
            lambda state: state["last_optimizer_state"].update(owned=[], state={}),
            "{0} and the other ranks' files hold no optimizer's state of "
            "encoder.layers.1.moe_layer.gate.wg.weight: they are not of one save",
            "{2} holds another part of the optimizer's state than rank 2 needs: divide it anew "
            "with zcode reshard {whole} --ranks 4 --expert-parallel-size 2 --zero-sharding os "
            "--out DIR",
        ),
    ],
)
def test_a_wrong_part_is_refused(
    tmp_path: Path, edit: Callable[[State], None], reshard_says: str, start_says: str
) -> None:
    files = write(tmp_path / "run", 2, 4)
    change(files[2], edit)
    whole = tmp_path / "run" / "checkpoint_last.pt"
    with pytest.raises(UserError) as refusal:
        plan(files, 2)
    assert str(refusal.value) == reshard_says.format(*files, whole=whole)
    told = start(tmp_path / "run", 4, expert_parallel_size=2, zero_sharding="os")
    assert told == start_says.format(*files, whole=whole)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = write(tmp_path / "run", 2, 4)
    files[3].unlink()
    message = f"{files[3]} is missing: the run had 4 ranks, each of which wrote a file"
    with pytest.raises(UserError, match=message):
        plan(files[:3], 2)
    assert message in start(tmp_path / "run", 4, expert_parallel_size=2, zero_sharding="os")


def test_what_a_start_accepts(tmp_path: Path) -> None:
    """A part goes with the flag alone; the state of all parameters with either."""
    run = {"expert_parallel_size": 2}
    files = write(tmp_path / "parts", 2, 2)
    write(tmp_path / "whole", 2, 2, zero=False)
    assert start(tmp_path / "parts", 2, **run, zero_sharding="os") == ""
    assert start(tmp_path / "whole", 2, **run, zero_sharding="os") == ""
    assert start(tmp_path / "parts", 2, **run, reset_optimizer=True) == ""
    assert start(tmp_path / "parts", 2, **run) == (
        f"{files[0]} is of a run with --zero-sharding os and holds a part of the optimizer's "
        "state: add the flag, or give each rank all of its own with zcode reshard "
        f"{tmp_path}/parts/checkpoint_last.pt --ranks 2 --expert-parallel-size 2 --zero-sharding "
        "none --out DIR"
    )
