"""The package installed and uninstalled as a user does, with the stock console scripts after it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
PACKAGE = [
    *("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"),
    *("zcode_compat.py", "zcode_compat.pth", "zcode_mends", "zcode_plugin"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what the package is built from: a build leaves folders behind."""
    target = tmp_path / "source"
    target.mkdir()
    for name in PACKAGE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    return target


def _run(python: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ZCODE_")}
    return subprocess.run(
        [python, *map(str, arguments)],
        env=inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _environment(folder: Path, *options: str) -> tuple[Path, Path]:
    """A new environment that finds this one's packages behind its own: (python, site-packages)."""
    done = _run(Path(sys.executable), "-m", "venv", *options, folder)
    assert done.returncode == 0, done.stderr
    (site_packages,) = folder.glob("lib/python*/site-packages")
    behind = [path for path in sys.path if path.endswith("-packages")]
    (site_packages / "zz_behind.pth").write_text("".join(f"{path}\n" for path in behind))
    return folder / "bin" / "python", site_packages


def _names(site_packages: Path) -> set[str]:
    return {path.name for path in site_packages.iterdir()} - {"__pycache__"}


@pytest.mark.parametrize("editable", [[], ["-e"]], ids=["wheel", "editable"])
def test_install_and_uninstall(source: Path, tmp_path: Path, editable: list[str]) -> None:
    python, site_packages = _environment(tmp_path / "environment", "--without-pip")
    before = _names(site_packages)
    flags = ("--no-deps", "--no-build-isolation", "--no-index")
    done = _run(python, "-m", "pip", "install", *flags, *editable, source)
    assert done.returncode == 0, done.stderr
    assert {"zcode_compat.py", "zcode_compat.pth"} <= _names(site_packages)
    assert ("zcode_plugin" in _names(site_packages)) == (not editable)
    done = _run(python, SCRIPTS / "fairseq-train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--max-update" in done.stdout
    done = _run(python, "-m", "pip", "uninstall", "--yes", "zcode_plugin")
    assert done.returncode == 0, done.stderr
    assert _names(site_packages) == before


@pytest.mark.slow
def test_hydra_1_0_and_omegaconf_2_0(source: Path, tmp_path: Path) -> None:
    """What pip before 24.1 installs for fairseq 0.12.2 by fairseq's own requirements."""
    python, _ = _environment(tmp_path / "environment")
    old_pip = _run(python, "-m", "pip", "install", "pip<24.1", "setuptools>=70.1")
    assert old_pip.returncode == 0, old_pip.stderr
    pins = _run(python, "-m", "pip", "install", "hydra-core==1.0.7", "omegaconf==2.0.6")
    assert pins.returncode == 0, pins.stderr
    done = _run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", source)
    assert done.returncode == 0, done.stderr
    versions = "import hydra, omegaconf; print(hydra.__version__, omegaconf.__version__)"
    assert _run(python, "-c", versions).stdout == "1.0.7 2.0.6\n"
    done = _run(python, SCRIPTS / "fairseq-train", "--help")
    assert done.returncode == 0, done.stderr
    fails = (SCRIPTS / "fairseq-hydra-train", "task=language_modeling", "task.data=/nonexistent")
    options = (*fails, "model=transformer_lm/transformer_lm_gpt", f"hydra.run.dir={tmp_path}/run")
    disabled = _run(python, *options, ZCODE_COMPAT_DISABLE="hydra-plugins")
    assert re.search("TypeError: print_exception.*'etype'", disabled.stderr)
    enabled = _run(python, *options)
    assert "Must specify batch size either with --max-tokens or --batch-size" in enabled.stderr
    assert "TypeError" not in enabled.stderr
