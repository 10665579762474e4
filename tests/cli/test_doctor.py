"""`zcode doctor` where all is there, and where nothing is."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.metadata import version as metadata_version
from pathlib import Path

import pytest

import zcode_plugin

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_all_is_well_here(zcode: Run) -> None:
    ended = zcode("doctor")
    assert ended.returncode == 0, ended.stdout
    lines = ended.stdout.splitlines()
    assert lines[-1] == "all is well"
    assert len(lines) <= 24
    assert re.search(r"^ok  torch +\d+\.\d+", ended.stdout, re.MULTILINE)
    assert "ok  fairseq imports with its compiled parts" in lines


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


class Environment:
    """A virtual environment with links to the packages of this one, of which some are not there."""

    def __init__(self, folder: Path, without: tuple[str, ...] = ()):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        self.origin = Path(sysconfig.get_path("purelib"))
        for path in self.origin.iterdir():
            if not any(fnmatch(path.name, pattern) for pattern in without):
                (self.packages / path.name).symlink_to(path)

    def own(self, name: str, *patterns: str) -> Path:
        """Replace the link to a package by a copy, without files of these names."""
        copy = self.packages / name
        copy.unlink()
        ignore = shutil.ignore_patterns(*patterns)
        shutil.copytree(self.origin / name, copy, ignore=ignore)
        return copy

    def claim(self, package: str, version: str) -> None:
        """Have a package say that it is of another version."""
        [folder] = self.packages.glob(f"{package}-*.dist-info")
        metadata = self.own(folder.name) / "METADATA"
        text = re.sub(r"(?m)^Version: .*$", f"Version: {version}", metadata.read_text())
        metadata.write_text(text)

    def doctor(self) -> tuple[int, dict[str, str], list[str]]:
        """Exit code, the marks of all lines by name, and what is told below them."""
        environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        ended = subprocess.run(
            [self.python, "-m", "zcode_plugin.cli.main", "doctor"],
            capture_output=True,
            encoding="utf-8",
            cwd=self.packages.parent,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        assert ended.stderr == ""
        listed, _, told = ended.stdout.partition("\n\n")
        marks = {line[4:20].strip(): line[:2] for line in listed.splitlines()}
        return ended.returncode, marks, told.splitlines()


def test_without_torch(tmp_path: Path) -> None:
    patterns = ("torch", "torch-*", "torchgen", "functorch")
    code, marks, told = Environment(tmp_path / "env", patterns).doctor()
    assert code == 1
    assert [name for name, mark in marks.items() if mark == "!!"] == ["torch"]
    assert marks["fairseq imports"] == "??"
    assert told == ["1 problem:", "torch: not installed", "    pip install torch==2.13.0"]


@pytest.mark.parametrize(
    ("version", "what"),
    [
        ("2.4.0", "2.4.0 is not supported"),
        ("2.0.6", "2.0.6 does not go with hydra-core {0}"),
        ("2.1.2", "2.1.2 does not go with hydra-core {0}"),
    ],
)
def test_with_another_omegaconf(tmp_path: Path, version: str, what: str) -> None:
    # Without torch, whose import takes seconds and has nothing to do with it.
    environment = Environment(tmp_path / "env", ("torch", "torch-*"))
    environment.claim("omegaconf", version)
    code, marks, told = environment.doctor()
    assert code == 1
    assert [name for name, mark in marks.items() if mark == "!!"] == ["torch", "omegaconf"]
    assert told[3] == f"omegaconf: {what.format(metadata_version('hydra-core'))}"
    assert told[4].startswith("    pip install ")
    assert "'omegaconf>=2.3,<2.4'" in told[4]


def test_fairseq_without_a_compiled_part(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.own("fairseq", "libbleu*.so", "data_utils_fast*.so")
    code, marks, told = environment.doctor()
    assert code == 1
    assert [name for name, mark in marks.items() if mark == "!!"] == ["fairseq imports"]
    assert told == [
        "1 problem:",
        "fairseq imports: does not import: ModuleNotFoundError: No module named 'fairseq.libbleu'",
        "    pip install --no-deps fairseq==0.12.2 fairscale==0.4.13 --force-reinstall "
        "--no-cache-dir",
    ]


@pytest.mark.slow
def test_fairseq_without_a_package_that_it_imports(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", ("yaml", "_yaml", "[pP]y[yY][aA][mM][lL]-*"))
    _, marks, told = environment.doctor()
    assert [name for name, mark in marks.items() if mark == "!!"] == ["fairseq imports"]
    assert told[2:] == ["    pip install PyYAML"]


@pytest.mark.slow
def test_without_fairscale(tmp_path: Path) -> None:
    code, marks, told = Environment(tmp_path / "env", ("fairscale", "fairscale-*")).doctor()
    assert code == 1
    assert marks["fairseq imports"] == "ok"
    assert told == [
        "1 problem:",
        "fairscale: not installed",
        "    pip install --no-deps fairseq==0.12.2 fairscale==0.4.13",
    ]
