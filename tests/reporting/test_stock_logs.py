"""What stock's loggers get of a real training: JSON, TensorBoard, tqdm and simple lines, W&B."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from toy import MODEL, SCRIPTS, TASK, train

from zcode_plugin.reporting.logs import TRAIN, read_logs

# Metrics of experts and of objectives that a reader of any logger must find.
TRAINING = {
    "loss", "mt_loss", "mt_nll_loss", "dae_loss", "dae_nll_loss", "moe_gate_loss",
    "overflow_expert1", "entropy_gating", "expert1_balance_top", "expert1_balance_bottom",
    "unused_expert1_count", "mt_overflow_expert1", "dae_moe_gate_loss", "lr", "gnorm", "wps",
    "wall",
}  # fmt: skip
VALIDATION = {"mt_nll_loss_aa-bb", "mt_nll_loss_bb-aa", "dae_nll_loss_aa", "mt_accuracy"}
# Names with which the criterion and the experts add up what they report, and nobody reads.
BOOKKEEPING = re.compile(
    r"moe_layer_tokens|moe_assignments|moe_dropped|_place\b|_weight\b|_ntokens|\b_\w|_corpus_"
)
OPTIONS = (
    "--multitask", "mt:1,dae:1", "--max-epoch", "2", "--train-subset", "valid",
    "--max-tokens", "300",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    out = train(
        reversal, folder / "checkpoints", *OPTIONS, "--log-file", folder / "train.log",
        "--tensorboard-logdir", folder / "tensorboard", fresh=True,
    )  # fmt: skip
    (folder / "stdout.txt").write_text(out)
    return folder


def test_log_file_and_standard_output_say_the_same_once(trained: Path) -> None:
    log, printed = (read_logs([trained / name]) for name in ("train.log", "stdout.txt"))
    assert log is not None
    assert printed is not None
    assert log.points == printed.points
    assert (log.damaged, log.restarts) == (0, 0)
    assert set(log.names(TRAIN)) >= TRAINING
    assert set(log.names("valid")) >= VALIDATION
    assert log.objectives() == ["mt", "dae"]
    assert log.corpora("mt") == ["aa-bb", "bb-aa"]
    lines = (trained / "train.log").read_text().splitlines()
    records = [line for line in lines if line.startswith('{"epoch": ')]
    assert len(records) == len(set(records)) == len(log.points[TRAIN]) + 2 * 2


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by name and update, of the only event file."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, start = path.read_bytes(), 0
    scalars: dict[str, dict[int, float]] = {}
    while start < len(data):  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[start : start + 8], "little")
        event = Event.FromString(data[start + 12 : start + 12 + length])
        start += length + 16
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def test_tensorboard_gets_all_metrics(trained: Path) -> None:
    log = read_logs([trained / "train.log"])
    assert log is not None
    for split in (TRAIN, "valid"):
        scalars = events(trained / "tensorboard" / split)
        for name in (TRAINING - {"wall"}) if split == TRAIN else VALIDATION:
            expected = dict(zip(*log.curve(split, name), strict=True))
            assert scalars[name] == pytest.approx(expected, rel=1e-4), name
        assert not [name for name in scalars if BOOKKEEPING.search(name)]


def train_on_terminal(data: Path, save_dir: Path, log_format: str, *options: object) -> str:
    """What a training prints with a terminal as its standard error."""
    line = [
        SCRIPTS / "fairseq-train", data, *TASK, *MODEL, *OPTIONS, "--criterion",
        "multitask_summed_loss", "--optimizer", "adam", "--cpu", "--num-workers", "0",
        "--data-buffer-size", "0", "--no-save", "--encoder-langtok", "tgt", "--log-interval", "1",
        "--save-dir", save_dir, "--log-format", log_format, *options,
    ]  # fmt: skip
    leader, follower = pty.openpty()
    with subprocess.Popen(
        list(map(str, line)), stdout=follower, stderr=follower, stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "4000"},
    ) as process:  # fmt: skip
        os.close(follower)
        output = b""
        try:
            while part := os.read(leader, 1 << 16):
                output += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(leader)
    assert process.returncode == 0, output.decode()[-3000:]
    return output.decode()


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["tqdm", "simple"])
def test_lines_for_people_hold_no_bookkeeping(
    reversal: Path, tmp_path: Path, log_format: str
) -> None:
    output = train_on_terminal(reversal, tmp_path, log_format)
    lines = [line for line in re.split(r"[\r\n]", output) if "mt_nll_loss" in line]
    assert any("mt_nll_loss_aa-bb" in line for line in lines)
    assert any(re.search(r"overflow_expert1[= ]", line) for line in lines)
    assert not [line for line in lines if BOOKKEEPING.search(line)]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None,
    reason="wandb is not installed: pip install wandb (20 MB) runs this test",
)
def test_wandb_gets_all_metrics(
    reversal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(reversal, tmp_path / "checkpoints", *OPTIONS, "--wandb-project", "test", fresh=True)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    for name in {f"{TRAIN}/{name}" for name in TRAINING} | {f"valid/{n}" for n in VALIDATION}:
        assert name.encode() in data, name
