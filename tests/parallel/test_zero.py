"""The optimizer's state spread over ranks (`--zero-sharding os`) while experts are, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parallel.test_layouts import COMPARABLE, Run, run_layout

ZERO = ("--zero-sharding", "os", "--max-update", "5")


@pytest.fixture(scope="module")
def single(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("single") / "run"
    return run_layout(reversal, folder, 1, 1, "--max-update", "5", *COMPARABLE)


@pytest.mark.parametrize(("world", "size"), [(2, 2), (4, 2), (4, 4)])
def test_updates_equal_those_of_one_process(
    single: Run, reversal: Path, tmp_path: Path, world: int, size: int
) -> None:
    run = run_layout(reversal, tmp_path / "run", world, size, *ZERO, *COMPARABLE)
    torch.testing.assert_close(run.losses, single.losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(run.norms, single.norms, rtol=0, atol=1e-5)
    for key, weight in single.weights.items():
        torch.testing.assert_close(run.weights[key], weight, rtol=0, atol=1e-5, msg=key)
