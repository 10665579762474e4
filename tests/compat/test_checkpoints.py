"""Checkpoints stay behind torch's safe loader: what it is told to take, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zcode_plugin.checkpoint import io

Run = Callable[..., subprocess.CompletedProcess[str]]


class _RunsCode:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def state(checkpoint: Path) -> dict[str, Any]:
    """What the trained checkpoint holds."""
    # Not through torch's context manager safe_globals: on leaving, that takes the classes off the
    # process's list for good, the mend's own entries included.
    return io.load(checkpoint)


@pytest.fixture(scope="module")
def with_fraction(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint with a class in it that fairseq never saves."""
    path = tmp_path_factory.mktemp("refused") / "fraction.pt"
    torch.save(state | {"note": Fraction(1, 3)}, path)
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


def test_generate_refuses_another_class(generate: Run, with_fraction: Path) -> None:
    disabled = generate(with_fraction, ZCODE_COMPAT_DISABLE="checkpoint-refusal")
    assert disabled.returncode == 1
    assert "Traceback" in disabled.stderr
    done = generate(with_fraction)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"fairseq-generate: error: {with_fraction}: holds fractions.Fraction, which checkpoints "
        "may not hold because loading it could run code; if you trust the file, set "
        "ZCODE_COMPAT_ALLOW=fractions.Fraction in the environment, otherwise leave it alone"
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_train_refuses_another_class(train: Run, with_fraction: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", "--restore-file", with_fraction)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"fairseq-train: error: {with_fraction}: holds fractions.Fraction, which checkpoints may"
    )
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run").iterdir()) == []


def _as_numpy_1_wrote_it(path: Path, copy: Path) -> None:
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(copy, "w") as old:
        for record in new.namelist():
            content = new.read(record)
            if record.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(record.replace(path.name, copy.name), content)


def test_what_is_loaded_and_what_refused_and_why(
    stock: Run, state: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    numbers = [np.arange(3), np.float32(0.5), np.array([True, False])]
    torch.save(state | {"numbers": numbers}, tmp_path / "numpy2")
    _as_numpy_1_wrote_it(tmp_path / "numpy2", tmp_path / "numpy1")
    torch.save(state | {"numbers": [Decimal("0.5")]}, tmp_path / "allowed")
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
        print(load_checkpoint_to_cpu(path)["numbers"])
    except Exception as refusal:
        print(type(refusal).__name__, str(refusal)[len(path) :].partition(", which")[0])
"""
    names = ("numpy2", "numpy1", "allowed", "old", "code", "strings", "cut", "text", "empty")
    paths = [tmp_path / name for name in names]
    done = stock("python", "-c", script, *paths, ZCODE_COMPAT_ALLOW="decimal.Decimal")
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        "[array([0, 1, 2]), np.float32(0.5), array([ True, False])]",
        "[array([0, 1, 2]), np.float32(0.5), array([ True, False])]",
        "[Decimal('0.5')]",
        "CheckpointRefusedError : holds fractions.Fraction",
        "CheckpointRefusedError : holds posix.system",
        "CheckpointRefusedError : holds numpy.dtypes.StrDType",
        "CheckpointRefusedError : cannot be loaded",
        "CheckpointRefusedError : cannot be loaded",
        "CheckpointRefusedError : cannot be loaded",
    ], done.stderr
    assert not (tmp_path / "ran").exists()
