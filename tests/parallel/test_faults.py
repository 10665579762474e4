"""One rank fails in every way that ranks fail: the others end soon and say which one it was.

Nobody ends the others here, as torchrun or SLURM would: they end by themselves.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import OPTIONS, Ranks
from toy import command

from zcode_plugin.parallel import faults

RUN = (
    "--expert-parallel-size", "2", "--max-tokens", "300", "--save-interval-updates", "5",
    "--max-update", "12", "--distributed-timeout", "60",
)  # fmt: skip
# From the fault to the end of the last rank, in seconds: the roll call, and what Python needs on a
# machine that is busy.
BOUND = faults.ROLL_CALL + 15

Fault = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_value_error() -> None:
    raise ValueError("a bad sentence")


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def before_call(owner: Any, name: str, call: int, fault: Fault) -> None:
    """Have the fault happen when a function of a module or class is called for the n-th time."""
    stock, calls = getattr(owner, name), iter(range(1, 10**9))

    def faulty(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            (Path(os.environ["FAULT_TIME"])).write_text(str(time.time()))
            fault()
        return stock(*args, **options)

    setattr(owner, name, faulty)


def in_all_to_all(fault: Fault) -> None:
    """Within the 8th update: 4 counts and 16 exchanges in each, of 2 layers and both ways."""
    from zcode_plugin.moe.exchange import _AllToAll

    before_call(_AllToAll, "apply", 60, fault)


def in_validation(fault: Fault) -> None:
    """Before the second batch of the second validation."""
    from fairseq_cli import train

    stock = train.validate

    def validate(cfg: Any, trainer: Any, *args: Any) -> Any:
        if trainer.get_num_updates() == 10:
            before_call(trainer, "valid_step", 2, fault)
        return stock(cfg, trainer, *args)

    train.validate = validate


def in_save(fault: Fault) -> None:
    """Half the file of the second save is on disk."""
    from fairseq import checkpoint_utils

    stock, saves = checkpoint_utils._torch_persistent_save, iter(range(1, 10**9))

    def save(state: Any, file: Any) -> None:
        if next(saves) == 2:
            file.write(b"half")
            file.flush()
            Path(os.environ["FAULT_TIME"]).write_text(str(time.time()))
            fault()
        stock(state, file)

    checkpoint_utils._torch_persistent_save = save


def start(
    data: Path,
    folder: Path,
    place: Callable[[Fault], None] | None,
    fault: Fault,
    *options: object,
    victim: int = 1,
) -> Ranks:
    """Two ranks, of which one fails."""

    def inside(rank: int) -> None:
        os.environ["FAULT_TIME"] = str(folder / "fault-time")
        if rank == victim and place is not None:
            place(fault)

    arguments = [data, *OPTIONS, "--save-dir", folder / "save", *RUN, *options]
    return Ranks(arguments, 2, folder / "logs", inside)


def end(ranks: Ranks, folder: Path) -> tuple[list[int | None], float]:
    """Exit codes, and seconds between the fault and the end."""
    codes = ranks.exit_codes(120)
    return codes, time.time() - float((folder / "fault-time").read_text())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_value_error, "rank 1 of 2 failed: update 8: ValueError: a bad sentence"),
        (
            run_out_of_memory,
            "rank 1 of 2 failed: update 8: OutOfMemoryError: CUDA memory exhausted. Tried",
        ),
    ],
)
def test_an_exception_ends_all_ranks(
    reversal: Path, tmp_path: Path, fault: Fault, message: str
) -> None:
    ranks = start(reversal, tmp_path, in_all_to_all, fault, "--disable-validation")
    codes, seconds = end(ranks, tmp_path)
    assert codes == [1, 1]
    assert seconds < BOUND
    assert message in ranks.output(1)
    assert f"rank 0 of 2 lost its connection, because {message}" in ranks.output(0)
    # What one rank would save alone would lack the experts of the other.
    assert not (tmp_path / "save" / "crash.pt").exists()
    assert "attempting to recover" not in ranks.output(1)


@pytest.mark.parametrize(
    ("place", "options"),
    [
        pytest.param(in_all_to_all, ["--disable-validation"], marks=pytest.mark.slow),
        pytest.param(in_validation, [], marks=pytest.mark.slow),
        (in_save, ["--disable-validation"]),
    ],
)
def test_a_rank_is_killed(
    reversal: Path,
    tmp_path: Path,
    place: Callable[[Fault], None],
    options: list[object],
) -> None:
    ranks = start(reversal, tmp_path, place, die, *options)
    codes, seconds = end(ranks, tmp_path)
    assert codes == [1, -signal.SIGKILL]
    assert seconds < BOUND
    assert "rank 0 of 2 lost its connection: rank 1 gave no sign: killed" in ranks.output(0)
    again = start(reversal, tmp_path, None, die, *options)
    assert again.exit_codes(120) == [0, 0], again.output(0)[-3000:] + again.output(1)[-3000:]
    assert "@ 5 updates" in again.output(0)
    assert '"num_updates": "12"' in again.output(0)


@pytest.mark.parametrize("fault", [raise_value_error, die])
def test_the_rank_that_holds_the_store_fails(reversal: Path, tmp_path: Path, fault: Fault) -> None:
    """Without torchrun rank 0 holds the store, and takes its words with it."""
    ranks = start(reversal, tmp_path, in_all_to_all, fault, "--disable-validation", victim=0)
    codes, seconds = end(ranks, tmp_path)
    assert codes[1] == 1
    assert seconds < BOUND
    assert "rank 1 of 2 lost its connection: rank 0 gave no sign" in ranks.output(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_value_error, "rank 1 of 2 failed: update 8: ValueError: a bad sentence"),
        (die, "rank      : 1 (local_rank: 1)"),
    ],
)
def test_under_torchrun(
    reversal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, message: str
) -> None:
    """The fault comes with a user directory that imports the plugin's."""
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "__init__.py").write_text(
        "import os, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]\n"
        "import zcode_plugin, test_faults\n"
        "if os.environ['RANK'] == '1':\n"
        f"    test_faults.in_all_to_all(test_faults.{fault.__name__})\n"
    )
    monkeypatch.setenv("FAULT_TIME", str(tmp_path / "fault-time"))
    done = command(
        "fairseq-train", reversal, *OPTIONS, "--user-dir", tmp_path / "faulty", "--save-dir",
        tmp_path / "save", *RUN, "--disable-validation", ranks=2,
    )  # fmt: skip
    seconds = time.time() - float((tmp_path / "fault-time").read_text())
    assert done.returncode == 1
    assert seconds < BOUND
    assert message in done.stdout + done.stderr


def test_a_rank_hangs(reversal: Path, tmp_path: Path) -> None:
    ranks = start(
        reversal, tmp_path, in_all_to_all, lambda: time.sleep(60), "--disable-validation",
        "--distributed-timeout", "4",
    )  # fmt: skip
    ranks.processes[0].join(60)
    seconds = time.time() - float((tmp_path / "fault-time").read_text())
    assert ranks.processes[0].exitcode == 1
    assert 4 <= seconds < 4 + BOUND
    assert "rank 0 of 2 lost its connection: rank 1 gave no sign" in ranks.output(0)
    ranks.end()
