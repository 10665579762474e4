"""Stock fairseq-train on forked ranks of this machine: what a launcher starts, without its wait.

Each rank finds the others through the environment variables that torchrun sets, and ends as an
interpreter does. Nobody ends the others when one fails, as torchrun would: they must end by
themselves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import forked
from toy import MODEL, TASK

OPTIONS = (
    *TASK, *MODEL, "--criterion", "multitask_summed_loss", "--optimizer", "adam", "--lr", "0.003",
    "--cpu", "--num-workers", "0", "--data-buffer-size", "0", "--log-format", "json",
    "--log-interval", "1", "--encoder-langtok", "tgt", "--distributed-backend", "gloo",
    "--ddp-backend", "legacy_ddp", "--no-epoch-checkpoints",
)  # fmt: skip


class Ranks:
    """Running ranks; `logs` are files with their standard output and error.

    Args:
        arguments: of fairseq-train.
        world: number of ranks; one runs without torch.distributed.
        folder: for the logs.
        inside: called in each rank with its number, before fairseq: watches it, or makes it fail.
        launched: a single rank, too, has a process group, as under a launcher.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        world: int,
        folder: Path,
        inside: Callable[[int], None] | None = None,
        launched: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        line = ["fairseq-train", *(str(argument) for argument in arguments)]
        self.logs = [folder / f"log-{time.monotonic_ns()}-{rank}" for rank in range(world)]
        port = _free_port() if launched or world > 1 else None
        self.processes = [
            forked.start(
                line, log, environment=_environment(rank, world, port),
                inside=None if inside is None else partial(inside, rank),
            )
            for rank, log in enumerate(self.logs)
        ]  # fmt: skip

    def kill(self, rank: int) -> None:
        """End a rank as the kernel does when memory runs out."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def wait_for(self, text: str, rank: int = 0, seconds: float = 120) -> None:
        """Until a rank has logged a text."""
        deadline = time.monotonic() + seconds
        while text not in self.output(rank):
            if time.monotonic() > deadline or not self.processes[rank].is_alive():
                self.end()
                raise AssertionError(
                    f"rank {rank} never said {text!r}: {self.output(rank)[-6000:]}"
                )
            time.sleep(0.01)

    def end(self) -> None:
        """Kill all that still run."""
        for process in self.processes:
            process.kill()
            process.join()

    def exit_codes(self, seconds: float = 240) -> list[int | None]:
        """Wait for all to end; None for a rank that had to be killed after that time."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.end()
        return codes

    def output(self, rank: int = 0) -> str:
        """What a rank has logged so far."""
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""


def train(
    data: Path,
    save_dir: Path,
    *options: object,
    world: int = 1,
    inside: Callable[[int], None] | None = None,
    launched: bool = False,
) -> str:
    """Train to the end; what rank 0 logged. The options given come last, and win."""
    ranks = Ranks(
        [data, *OPTIONS, "--save-dir", save_dir, *options], world, save_dir.parent / "logs", inside,
        launched,
    )  # fmt: skip
    codes = ranks.exit_codes()
    assert codes == [0] * world, "\n".join(ranks.output(rank)[-4000:] for rank in range(world))
    return ranks.output()


def refusal(arguments: Sequence[object], folder: Path, world: int = 2) -> str:
    """The one line in which every rank refuses to train, each with exit code 2.

    Args:
        arguments: of fairseq-train.
        folder: for the logs.
        world: number of ranks.
    """
    ranks = Ranks(arguments, world, folder)
    codes = ranks.exit_codes()
    outputs = [ranks.output(rank) for rank in range(world)]
    assert codes == [2] * world, "\n".join(output[-4000:] for output in outputs)
    [told] = {
        line for output in outputs for line in output.splitlines() if "zcode_plugin: error:" in line
    }
    return told


def log(output: str, tag: str, key: str) -> list[float]:
    """The values of `key` in the log lines with the tag, such as train_inner or valid."""
    entries = [
        json.loads(line[line.index("{") :])
        for line in output.splitlines()
        if f"| {tag} | {{" in line
    ]
    return [float(entry[key]) for entry in entries if key in entry]


def watch(folder: Path, rank: int) -> None:
    """For `inside`: write down what the trainer knows of each update, before the log rounds it."""
    from fairseq.trainer import Trainer

    stock_reduce, stock_gather = Trainer._reduce_and_log_stats, Trainer._aggregate_logging_outputs
    targets: list[int] = []

    def gather(self, outputs, *args, **options):  # type: ignore[no-untyped-def]
        targets.extend(int(output["ntokens"]) for output in outputs)
        return stock_gather(self, outputs, *args, **options)

    def reduce(self, outputs, sample_size, grad_norm=None):  # type: ignore[no-untyped-def]
        total = {name: sum(float(output[name]) for output in outputs) for name in outputs[0]}
        if grad_norm is not None:
            entry = {
                "update": self.get_num_updates(),
                "loss": total["mt_loss"] / total["mt_ntokens"],
                "norm": float(grad_norm),
                "targets": targets,
            }
            with (folder / f"watch-{rank}").open("a") as file:
                file.write(json.dumps(entry) + "\n")
        targets.clear()
        return stock_reduce(self, outputs, sample_size, grad_norm)

    Trainer._aggregate_logging_outputs, Trainer._reduce_and_log_stats = gather, reduce


def watched(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What `watch` wrote: an entry for each update, with the targets of the rank's own batches."""
    return [json.loads(line) for line in (folder / f"watch-{rank}").read_text().splitlines()]


def _environment(rank: int, world: int, port: int | None) -> dict[str, str]:
    """What torchrun tells a rank."""
    if port is None:
        return {}
    return {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
        "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip


def _free_port() -> int:
    """Below the ports that the kernel hands out: one of those could be taken before it is used."""
    first = 20_000 + os.getpid() * 37 % 10_000
    for port in range(first, first + 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no free port from {first} on")
