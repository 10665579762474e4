"""Stock fairseq's console scripts as subprocesses, and tiny data and a tiny model for them."""

from __future__ import annotations

import os
import random
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

SCRIPTS = Path(sysconfig.get_path("scripts"))
TINY_LAYERS = [
    f"--{side}-{size}"
    for side in ("encoder", "decoder")
    for size in ("layers=1", "embed-dim=8", "ffn-embed-dim=8", "attention-heads=1")
]


@pytest.fixture(scope="session")
def stock() -> Run:
    """Runs a console script of this Python's environment, or ``python``, on the CPU."""

    def run(
        command: str, *arguments: object, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ZCODE_")}
        return subprocess.run(
            [SCRIPTS / command, *map(str, arguments)],
            env=inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, stock: Run) -> Path:
    """Binarised: 16 pairs de-en of 1 to 8 words, as train and valid; the German alone in ``lm``."""
    raw = tmp_path_factory.mktemp("raw")
    draw = random.Random(1)
    sources = [" ".join(draw.choices("abcdefgh", k=1 + i % 8)) for i in range(16)]
    (raw / "text.de").write_text("".join(f"{line}\n" for line in sources))
    (raw / "text.en").write_text("".join(f"{line[::-1]}\n" for line in sources))
    text, binary = raw / "text", raw / "binary"
    splits = ["--trainpref", text, "--validpref", text]
    for done in (
        stock("fairseq-preprocess", "-s", "de", "-t", "en", *splits, "--destdir", binary),
        stock("fairseq-preprocess", "--only-source", "--trainpref", raw / "text.de",
              "--validpref", raw / "text.de", "--destdir", binary / "lm"),
    ):  # fmt: skip
        assert done.returncode == 0, done.stderr
    return binary


@pytest.fixture(scope="session")
def train(data: Path, stock: Run) -> Run:
    """Runs two updates of stock fairseq-train on the CPU; the options given come last, and win."""

    def run(
        save_dir: Path, *options: object, launcher: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        script = (*launcher, SCRIPTS / "fairseq-train") if launcher else ("fairseq-train",)
        return stock(
            *script, data, "--task=translation", "--arch=transformer", *TINY_LAYERS, "--cpu",
            "--optimizer=adam", "--lr=0.01", "--max-tokens=64", "--max-update=2", "--num-workers=0",
            "--data-buffer-size=0",
            "--log-format=simple", "--log-interval=1", "--save-dir", save_dir, *options,
            **environment,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, train: Run) -> Path:
    """Trained with BLEU in validation and bucketed lengths: its meters hold numpy arrays."""
    save_dir = tmp_path_factory.mktemp("checkpoint")
    done = train(
        save_dir, "--num-batch-buckets=2", "--eval-bleu", "--eval-bleu-args", '{"max_len_b": 5}'
    )
    assert done.returncode == 0, done.stderr
    return save_dir / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def generate(data: Path, stock: Run) -> Run:
    """Translates the validation set with a checkpoint, by stock fairseq-generate on the CPU."""

    def run(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        options = ("--gen-subset=valid", "--path", path, "--max-tokens=64", "--max-len-b=5")
        return stock("fairseq-generate", data, "--cpu", *options, **environment)

    return run
