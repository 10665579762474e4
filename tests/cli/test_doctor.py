"""`zcode doctor` where all is there, and where nothing is."""

import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import zcode_plugin

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_all_is_well_here(zcode: Run) -> None:
    ended = zcode("doctor")
    assert ended.returncode == 0, ended.stdout
    lines = ended.stdout.splitlines()
    assert lines[-1] == "all is well"
    assert len(lines) <= 24
    assert re.search(r"^ok  torch +\d+\.\d+", ended.stdout, re.MULTILINE)
    assert re.search(
        r"^ok  fairseq +0\.12\.2, with its compiled parts$", ended.stdout, re.MULTILINE
    )


def test_an_empty_environment_is_diagnosed(tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    python = tmp_path / "empty" / "bin" / "python"
    checkout = Path(zcode_plugin.__path__[0]).parent
    ended = subprocess.run(
        [python, "-m", "zcode_plugin.cli.main", "doctor"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout)},
    )
    assert ended.returncode == 1
    assert ended.stderr == ""
    listed, _, told = ended.stdout.partition("problems:\n")
    assert re.search(r"^!!  torch +not installed$", listed, re.MULTILINE)
    assert "torch: not installed\n    pip install torch==2.13.0\n" in told
    assert "fairseq: not installed\n    pip install --no-deps fairseq==0.12.2" in told
    assert f"ok  Python          {sys.version.split()[0]} ({python})" in listed.splitlines()
