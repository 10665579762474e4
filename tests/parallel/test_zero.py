"""The optimizer's state spread over ranks (`--zero-sharding os`) while experts are, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from parallel.test_layouts import CLIP, COMPARABLE, Run, run_layout
from torch import Tensor

from zcode_plugin.checkpoint import io, names
from zcode_plugin.checkpoint.gather import find_files
from zcode_plugin.checkpoint.merge import merge
from zcode_plugin.checkpoint.reshard import plan
from zcode_plugin.checkpoint.tensors import count_elements
from zcode_plugin.parallel.zero_owners import OWNED

UPDATES = 5
ZERO = ("--zero-sharding", "os")
TO_THE_END = ("--max-update", UPDATES, *COMPARABLE)
FP16 = ("--fp16", "--fp16-init-scale", "16")
OTHERS = {
    "float32": (),
    "fp16": FP16,
    "memory-efficient-fp16": (*FP16, "--memory-efficient-fp16"),
    "bf16": ("--bf16",),
    "memory-efficient-bf16": ("--memory-efficient-bf16",),
    "pytorch_ddp": ("--ddp-backend", "pytorch_ddp"),
    "balance": ("--moe-balance", "bias", "--check-replicas", "2", "--store-ema", "--ema-fp32"),
    "experts": ("--freeze-except", "experts"),
    "dense": ("--freeze-except", "self_attn"),
}


def layouts(fast: Sequence[tuple[int, int]]) -> list[object]:
    """Ranks and `--expert-parallel-size`: two groups, or one of 2 or 4 ranks."""
    return [
        pytest.param(*layout, marks=[] if layout in fast else pytest.mark.slow)
        for layout in [(2, 2), (4, 2), (4, 4)]
    ]


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, 8 batches an update."""
    run = run_layout(reversal, tmp_path_factory.mktemp("single") / "run", 1, 1, *TO_THE_END)
    assert run.norms.min() > CLIP, "not every update was clipped"
    return run


def last(folder: Path) -> Path:
    return folder / "save" / "checkpoint_last.pt"


def assert_ends_as(run: Run, single: Run) -> None:
    """The run's updates, which are the last of `single`, and its weights."""
    done = len(run.losses)
    torch.testing.assert_close(run.losses, single.losses[-done:], rtol=0, atol=1e-5)
    torch.testing.assert_close(run.norms, single.norms[-done:], rtol=0, atol=1e-5)
    assert run.weights.keys() == single.weights.keys()
    for key, weight in single.weights.items():
        torch.testing.assert_close(run.weights[key], weight, rtol=0, atol=1e-5, msg=key)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, weight in one.items():
        assert torch.equal(other[key], weight), key


@pytest.mark.parametrize(("world", "size"), layouts(fast=[(4, 2)]))
def test_updates_equal_those_of_one_process_through_a_save_in_mid_epoch(
    single: Run, reversal: Path, tmp_path: Path, world: int, size: int
) -> None:
    begun, run = tmp_path / "begun", tmp_path / "run"
    first = run_layout(reversal, begun, world, size, *ZERO, *TO_THE_END, "--max-update", 3)
    assert io.load(names.with_rank(last(begun), 0))["extra_state"]["train_iterator"][
        "iterations_in_epoch"
    ] == 3 * (8 // world)
    assert torch.allclose(first.losses, single.losses[:3], rtol=0, atol=1e-5)
    assert torch.allclose(first.norms, single.norms[:3], rtol=0, atol=1e-5)
    restore = ("--restore-file", last(begun))
    second = run_layout(reversal, run, world, size, *ZERO, *TO_THE_END, *restore)
    assert len(second.losses) == UPDATES - 3
    assert_ends_as(second, single)
    assert_files_share_the_state(begun, world, size)
    assert_bytes(begun, first.weights, world, size)
    merged, _ = merge(names.find_rank_files(last(run)))
    assert_equal(second.weights, {key: merged["model"][key] for key in second.weights})


def assert_files_share_the_state(folder: Path, world: int, size: int) -> None:
    """Each parameter's state is in one of the files that could hold it."""
    states = [io.load(path) for path in names.find_rank_files(last(folder)).values()]
    parameters = states[0]["task_state"]["parameters"]
    owned = [state["last_optimizer_state"][OWNED] for state in states]
    for state, numbers in zip(states, owned, strict=True):
        assert list(state["last_optimizer_state"]["state"]) == numbers
    for number, name in enumerate(parameters):
        holders = [rank for rank in range(world) if number in owned[rank]]
        if names.parse_stack(name) is None:
            assert len(holders) == 1, name
        else:
            assert sorted(rank % size for rank in holders) == list(range(size)), name


def assert_bytes(folder: Path, weights: dict[str, Tensor], world: int, size: int) -> None:
    """Those of the formula in docs/checkpoints.md."""
    experts = count_elements(value for key, value in weights.items() if ".experts." in key)
    shared = count_elements(weights.values()) - experts
    files = names.find_rank_files(last(folder)).values()
    expected = world * 4 * (shared + experts / size) + 8 * (shared + experts)
    rest = sum(path.stat().st_size for path in files) - expected
    assert 0 < rest < world * (100_000 + 350 * 3 * len(weights))


@pytest.mark.slow
@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_the_same_bits_as_without(reversal: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """In every precision and beside other options, after a restart too."""
    world, size = 4, 2
    pairs = []
    for name, zero in (("with", ZERO), ("without", ())):
        folder = tmp_path / name
        given = (*zero, *options, *TO_THE_END)
        run_layout(reversal, folder, world, size, *given, "--max-update", 3)
        pairs.append(
            run_layout(
                reversal, tmp_path / f"{name}-on", world, size, *given,
                "--restore-file", last(folder),
            )
        )  # fmt: skip
    assert torch.equal(pairs[0].losses, pairs[1].losses)
    assert torch.equal(pairs[0].norms, pairs[1].norms)
    assert_equal(pairs[0].weights, pairs[1].weights)


@pytest.mark.parametrize(
    "ways",
    [
        [(2, 2, "os"), (2, 2, "none")],
        pytest.param(
            [(4, 4, "os"), (4, 2, "os"), (2, 2, "none"), (4, 2, "os"), (1, 1, "none")],
            marks=pytest.mark.slow,
        ),
        pytest.param([(2, 1, "os"), (2, 2, "os"), (4, 2, "none")], marks=pytest.mark.slow),
    ],
)
def test_a_run_moves_from_layout_to_layout(
    single: Run, reversal: Path, tmp_path: Path, ways: list[tuple[int, int, str]]
) -> None:
    """One update in each, and the rest in the last, are those of one process."""
    restore: tuple[object, ...] = ()
    for number, (world, size, zero) in enumerate(ways):
        folder, is_last = tmp_path / f"run-{number}", number == len(ways) - 1
        until = UPDATES if is_last else number + 1
        run = run_layout(
            reversal, folder, world, size, "--zero-sharding", zero, *TO_THE_END, *restore,
            "--max-update", until,
        )  # fmt: skip
        torch.testing.assert_close(run.losses, single.losses[number:until], rtol=0, atol=1e-5)
        if not is_last:
            world, size, zero = ways[number + 1]
            resharding = plan(find_files(last(folder)), world, size, zero)
            divided, layout = tmp_path / f"divided-{number}.pt", resharding.after
            paths = [layout.path(divided, rank) for rank in range(layout.files)]
            io.save_all(zip(paths, resharding.states(), strict=True))
            restore = ("--restore-file", divided)
    assert_ends_as(run, single)


@pytest.mark.slow
def test_a_run_without_starts_anew_with(single: Run, reversal: Path, tmp_path: Path) -> None:
    """Each rank takes what it owns out of a file that has all."""
    begun = tmp_path / "begun"
    run_layout(reversal, begun, 4, 2, *TO_THE_END, "--max-update", 3)
    restore = ("--restore-file", last(begun))
    run = run_layout(reversal, tmp_path / "run", 4, 2, *ZERO, *TO_THE_END, *restore)
    assert_ends_as(run, single)
    assert_files_share_the_state(tmp_path / "run", 4, 2)


@pytest.mark.slow
def test_where_all_ranks_hold_the_same_experts_stock_does_it(
    single: Run, reversal: Path, tmp_path: Path
) -> None:
    """One file, written by the first rank with the state of all."""
    begun, run = tmp_path / "begun", tmp_path / "run"
    run_layout(reversal, begun, 2, 1, *ZERO, *TO_THE_END, "--max-update", 3)
    state = io.load(last(begun))
    assert OWNED not in state["last_optimizer_state"]
    assert len(state["last_optimizer_state"]["state"]) == len(state["task_state"]["parameters"])
    restore = ("--restore-file", last(begun))
    assert_ends_as(run_layout(reversal, run, 2, 1, *ZERO, *TO_THE_END, *restore), single)
