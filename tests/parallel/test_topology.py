"""The grid of ranks: who shares experts, who holds the same ones, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from distributed import run_ranks
from ranks import OPTIONS, Ranks

from zcode_plugin.errors import UserError
from zcode_plugin.parallel.faults import set_timeout
from zcode_plugin.parallel.topology import check_sizes, current_timeout, expert_topology


def _places(rank: int, size: int) -> list[list[int]]:
    topology = expert_topology(size, [4])
    groups = (topology.group, topology.data_group)
    members = [dist.get_process_group_ranks(group) if group else [] for group in groups]
    return [*members, list(topology.local_experts(4))]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [[[], [0, 1, 2, 3], [0, 1, 2, 3]]] * 4),
        (
            2,
            [
                [[0, 1], [0, 2], [0, 1]],
                [[0, 1], [1, 3], [2, 3]],
                [[2, 3], [0, 2], [0, 1]],
                [[2, 3], [1, 3], [2, 3]],
            ],
        ),
        (4, [[[0, 1, 2, 3], [], [rank]] for rank in range(4)]),
    ],
)
def test_groups_and_experts_of_four_ranks(size: int, expected: list[list[list[int]]]) -> None:
    assert run_ranks(_places, 4, size) == expected


@pytest.mark.parametrize(
    ("size", "world", "experts"), [(3, 4, [8]), (4, 4, [8, 6]), (0, 4, [8]), (2, 1, [8])]
)
def test_errors_name_the_three_numbers(size: int, world: int, experts: list[int]) -> None:
    with pytest.raises(UserError) as refused:
        check_sizes(size, world, experts)
    for part in (
        f"--expert-parallel-size {size} ",
        f"world size {world} ",
        f"--moe-expert-count {','.join(map(str, sorted(experts)))}:",
    ):
        assert part in str(refused.value)


def _timeouts(rank: int) -> list[float]:
    set_timeout(7, [None])
    before = current_timeout().total_seconds()
    topology = expert_topology(2)
    assert topology.group is not None
    device = topology.group._device_types[0]
    return [before, topology.group._get_backend(device).options._timeout.total_seconds()]


def test_expert_groups_wait_as_long_as_the_default_group() -> None:
    assert run_ranks(_timeouts, 2) == [[7, 7]] * 2


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        (2, ["--expert-parallel-size", "4"], "4 must divide the world size 2 and"),
        (1, ["--expert-parallel-size", "2"], "2 must divide the world size 1 and"),
        (
            2,
            ["--expert-parallel-size", "2", "--moe-expert-count", "4,3"],
            "--expert-parallel-size 2 must divide the world size 2 and --moe-expert-count 3,4",
        ),
        (
            2,
            ["--expert-parallel-size", "2", "--zero-sharding", "os", "--use-bmuf"],
            "--zero-sharding os and --use-bmuf: drop one of them",
        ),
        (
            1,
            ["--zero-sharding", "os"],
            "--zero-sharding os spreads the optimizer's state over ranks",
        ),
        (
            2,
            ["--expert-parallel-size", "2", "--encoder-layerdrop", "0.1"],
            "--encoder-layerdrop and --decoder-layerdrop drop different layers",
        ),
        (2, ["--distributed-timeout", "0"], "--distributed-timeout 0.0 must be positive"),
    ],
)
def test_a_run_that_does_not_fit_ends_with_one_line(
    reversal: Path, tmp_path: Path, world: int, options: list[str], message: str
) -> None:
    arguments = [reversal, *OPTIONS, "--max-tokens", "300", "--save-dir", tmp_path, *options]
    ranks = Ranks(arguments, world, tmp_path / "logs")
    assert ranks.exit_codes() == [2] * world
    for rank in range(world):
        [line] = [line for line in ranks.output(rank).splitlines() if "error:" in line]
        assert message in line
        assert "Traceback" not in ranks.output(rank)
