"""Checkpoints stay behind torch's safe loader: what it is told to take, and what it refuses."""

from __future__ import annotations

import argparse
import os
import subprocess
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(
    not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"),
    reason="torch before 2.6 does not load safely by default",
)
SCORE = "Generate valid with beam=5: BLEU4 ="


class _RunsCode:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def generate(data: Path, stock: Run) -> Run:
    def run(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        options = ("--gen-subset=valid", "--path", path, "--max-tokens=64", "--max-len-b=5")
        return stock("fairseq-generate", data, "--cpu", *options, **environment)

    return run


@pytest.fixture(scope="module")
def with_fraction(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint with a class in it that fairseq never saves."""
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)
    assert "argparse.Namespace" in refused
    assert "numpy._core.multiarray._reconstruct" in refused
    core = np._core.multiarray
    known = [argparse.Namespace, core._reconstruct, core.scalar, np.ndarray, np.dtype]
    with torch.serialization.safe_globals([*known, *map(type, map(np.dtype, "ld"))]):
        state = torch.load(checkpoint, weights_only=True)
    state["extra_state"]["note"] = Fraction(1, 3)
    path = tmp_path_factory.mktemp("refused") / "fraction.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("mend", "refused"),
    [
        ("checkpoint-namespace", "argparse.Namespace"),
        ("checkpoint-numpy", "numpy._core.multiarray._reconstruct"),
    ],
)
def test_what_fairseq_saves(generate: Run, checkpoint: Path, mend: str, refused: str) -> None:
    done = generate(checkpoint, ZCODE_COMPAT_DISABLE=mend)
    assert done.returncode == 2
    assert refused in done.stderr.splitlines()[-1]


def test_generate_takes_what_fairseq_saves(generate: Run, checkpoint: Path) -> None:
    done = generate(checkpoint)
    assert done.returncode == 0, done.stderr
    assert SCORE in done.stdout


def test_generate_refuses_another_class(generate: Run, with_fraction: Path) -> None:
    done = generate(with_fraction)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"fairseq-generate: error: {with_fraction}: holds fractions.Fraction, which checkpoints "
        "may not hold because loading it could run code; if you trust the file, set "
        "ZCODE_COMPAT_ALLOW=fractions.Fraction in the environment, otherwise leave it alone"
    )
    assert "Traceback" not in done.stderr
    assert SCORE not in done.stdout


def test_generate_refuses_with_a_traceback_without_the_mend(
    generate: Run, with_fraction: Path
) -> None:
    done = generate(with_fraction, ZCODE_COMPAT_DISABLE="checkpoint-refusal")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_generate_takes_a_class_that_the_user_allows(generate: Run, with_fraction: Path) -> None:
    done = generate(with_fraction, ZCODE_COMPAT_ALLOW="fractions.Fraction")
    assert done.returncode == 0, done.stderr
    assert SCORE in done.stdout


def test_train_refuses_another_class(train: Run, with_fraction: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", "--restore-file", with_fraction)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"fairseq-train: error: {with_fraction}: holds fractions.Fraction, which checkpoints may"
    )
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run").iterdir()) == []


def test_what_is_refused_and_why(stock: Run, checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"note": Fraction(1, 3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    torch.save({"model": _RunsCode(f"touch {tmp_path}/ran")}, tmp_path / "code")
    torch.save({"names": np.array(["a", "b"])}, tmp_path / "strings")
    (tmp_path / "cut").write_bytes(checkpoint.read_bytes()[:-100])
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").touch()
    script = """
import sys
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
for path in sys.argv[1:]:
    try:
        load_checkpoint_to_cpu(path)
    except Exception as refusal:
        print(type(refusal).__name__, str(refusal).partition(", which")[0][len(path) :])
"""
    names = ("old", "code", "strings", "cut", "text", "empty")
    done = stock("python", "-c", script, *(tmp_path / name for name in names))
    assert done.stdout.splitlines() == []
    assert not (tmp_path / "ran").exists()


def test_arrays_and_numbers_of_numpy_1_and_2(stock: Run, tmp_path: Path) -> None:
    values = {"array": np.arange(3), "number": np.float32(0.5), "flags": np.array([True, False])}
    torch.save({"model": {}, "extra_state": values}, tmp_path / "numpy_2")
    with (
        zipfile.ZipFile(tmp_path / "numpy_2") as new,
        zipfile.ZipFile(tmp_path / "numpy_1", "w") as old,
    ):
        for record in new.namelist():
            content = new.read(record)
            if record.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(record.replace("numpy_2", "numpy_1"), content)
    script = """
import sys
import fairseq.checkpoint_utils, torch
for path in sys.argv[1:]:
    state = torch.load(path)["extra_state"]
    print(state["array"].tolist(), state["number"].item(), state["flags"].tolist())
"""
    done = stock("python", "-c", script, tmp_path / "numpy_2", tmp_path / "numpy_1")
    assert done.stdout == "[0, 1, 2] 0.5 [True, False]\n" * 2, done.stderr
