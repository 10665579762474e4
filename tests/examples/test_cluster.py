"""The launchers of examples/cluster train alike; machines share nothing but checkpoints."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from ranks import log
from toy import EXACT, MODEL, SCRIPTS

pytestmark = pytest.mark.slow

CLUSTER = Path(__file__).resolve().parents[2] / "examples" / "cluster"
SMALL = (
    *MODEL, *EXACT, "--lr-scheduler", "fixed", "--lr", "0.003", "--max-tokens", "300",
    "--max-update", "6", "--multitask", "mt:1", "--cpu", "--distributed-backend", "gloo",
    "--num-workers", "0", "--data-buffer-size", "0", "--log-format", "json", "--log-interval", "1",
    "--save-interval-updates", "3", "--disable-validation",
)  # fmt: skip
# Sets what SLURM sets for each of 4 tasks, 2 on each of 2 machines, and starts them.
SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit=1
export SLURM_JOB_NODELIST=node[1-2] SLURM_NNODES=2 SLURM_NTASKS_PER_NODE=2
for task in 0 1 2 3; do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NODEID=$((task / 2)) "$@" &
  tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames node[1-2]" ] || exit 1
printf '127.0.0.1\\nnode2\\n'
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    script: str, folder: Path, data: Path, **variables: object
) -> tuple[subprocess.Popen[str], Path]:
    """Start a launcher in a folder of its own; its output goes to a file."""
    folder.mkdir(parents=True)
    output = folder / "output"
    environment: Mapping[str, str] = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "EXPERT_RANKS": "2",
        "DATA": str(data),
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        **{name: str(value) for name, value in variables.items()},
    }
    process = subprocess.Popen(
        ["bash", CLUSTER / script, *SMALL], cwd=folder, env=environment, text=True,
        stdout=output.open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    return process, output


def finish(*started: tuple[subprocess.Popen[str], Path]) -> list[float]:
    """Losses of the one process that logs them."""
    logs = []
    for process, output in started:
        assert process.wait(300) == 0, output.read_text()[-6000:]
        logs.append(log(output.read_text(), "train_inner", "loss"))
    [losses] = [losses for losses in logs if losses]
    return losses


@pytest.fixture(scope="module")
def on_a_laptop(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("laptop")
    losses = finish(start("laptop.sh", folder / "run", reversal, RANKS=4, SAVE=folder / "save"))
    assert len(losses) == 6
    return losses


def rank_files(save: Path) -> set[str]:
    return {path.name for path in save.glob("checkpoint_last*")}


ALL_RANKS = {f"checkpoint_last-rank-{rank}.pt" for rank in range(4)}


def test_slurm(on_a_laptop: list[float], reversal: Path, tmp_path: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        stand_in = tmp_path / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(text)
        stand_in.chmod(0o755)
    losses = finish(
        start(
            "slurm.sh", tmp_path / "run", reversal, SAVE=tmp_path / "save", SLURM_NTASKS=4,
            PORT=free_port(), CLUSTER=CLUSTER,
            PATH=f"{tmp_path / 'bin'}:{SCRIPTS}:{os.environ['PATH']}",
        )
    )  # fmt: skip
    assert losses == on_a_laptop
    assert rank_files(tmp_path / "save") == ALL_RANKS


def test_four_rendezvous_clients(on_a_laptop: list[float], reversal: Path, tmp_path: Path) -> None:
    """Each with its own working directory, temporary directory and copy of the data."""
    port = free_port()
    clients = []
    for node in range(4):
        shutil.copytree(reversal, tmp_path / f"data-{node}")
        (tmp_path / f"tmp-{node}").mkdir()
        clients.append(
            start(
                "torchrun.sh", tmp_path / f"node-{node}", tmp_path / f"data-{node}",
                SAVE=tmp_path / "save", NODES=4, HEAD="127.0.0.1", PORT=port,
                TMPDIR=tmp_path / f"tmp-{node}",
            )
        )  # fmt: skip
    assert finish(*clients) == on_a_laptop
    assert rank_files(tmp_path / "save") == ALL_RANKS


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"zcode-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces need root and iproute2")
def test_four_network_namespaces(on_a_laptop: list[float], reversal: Path, tmp_path: Path) -> None:
    losses = finish(start("four_nodes.sh", tmp_path / "run", reversal, SAVE=tmp_path / "save"))
    assert losses == on_a_laptop
    assert rank_files(tmp_path / "save") == ALL_RANKS
