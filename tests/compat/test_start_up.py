"""What the start-up module does to a Python that never imports fairseq, and to one that does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]


def test_the_installed_copy_is_this_checkouts() -> None:
    installed = importlib.util.find_spec("zcode_compat")
    assert installed is not None
    assert installed.origin is not None
    assert Path(installed.origin).read_text() == (ROOT / "zcode_compat.py").read_text(), (
        "zcode_compat.py has changed since the package was installed: install it again"
    )


def test_start_up_costs_less_than_5_ms(stock: Run) -> None:
    costs_us = []
    for _ in range(10):
        done = stock("python", "-X", "importtime", "-c", "pass")
        lines = [line for line in done.stderr.splitlines() if line.endswith(" zcode_compat")]
        assert len(lines) == 1, done.stderr
        costs_us.append(int(lines[0].split("|")[1]))
    assert min(costs_us) < 5000


def test_start_up_imports_nothing_and_other_imports_meet_no_mend(stock: Run) -> None:
    script = (
        "import sys; at_start = set(sys.modules); import numpy, yaml;"
        "print(sorted(at_start & {'typing', 'dataclasses', 'functools', 'torch'}),"
        " [name for name in sys.modules if name.startswith('zcode')],"
        " type(sys.meta_path[0]).__module__)"
    )
    # -S leaves site-packages, and the .pth files of everybody else, out.
    alone = [sys.executable, "-S", "-c", "import sys; sys.path.append(sys.argv[1])"]
    alone[-1] += (
        f"; import zcode_compat; sys.path.append({os.fspath(_site_packages())!r}); {script}"
    )
    done = subprocess.run([*alone, ROOT], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ['zcode_compat'] zcode_compat\n"
    installed = stock("python", "-c", script)
    assert installed.stdout.endswith("['zcode_compat'] zcode_compat\n")


def _site_packages() -> Path:
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    assert numpy.origin is not None
    return Path(numpy.origin).parents[1]


def test_without_fairseq_its_import_fails_as_ever() -> None:
    script = f"""
import sys, importlib.util
sys.path.append({os.fspath(ROOT)!r})
import dataclasses, zcode_compat
stock = dataclasses.dataclass
print(importlib.util.find_spec("fairseq"))
try:
    import fairseq
except ModuleNotFoundError as error:
    print(error)
print(dataclasses.dataclass is stock)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\nNo module named 'fairseq'\nTrue\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 takes fairseq's configs as is")
def test_config_defaults(stock: Run) -> None:
    # That the commands start with the mend is what every other test of this folder stands on.
    done = stock("fairseq-train", "--help", ZCODE_COMPAT_DISABLE="config-defaults")
    assert done.returncode == 1
    assert "use default_factory" in done.stderr


def test_config_defaults_leaves_other_dataclasses_alone(stock: Run) -> None:
    script = (
        "import dataclasses, hydra\n"
        "@dataclasses.dataclass\n"
        "class Mine: x: int = 1\n"
        "print(Mine.__hash__, dataclasses.dataclass(frozen=True)(type('F', (), {})).__name__)\n"
    )
    done = stock("python", "-c", script)
    assert done.stdout == "None F\n"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ZCODE_COMPAT_DISABLE", "numpy-names, warp-drive", "no mend is called warp-drive"),
        ("ZCODE_COMPAT_ALLOW", "no.such.Class", "there is no 'no.such.Class' to import"),
    ],
)
def test_a_wrong_setting_is_refused(
    stock: Run, tmp_path: Path, variable: str, value: str, message: str
) -> None:
    script = "from fairseq.checkpoint_utils import load_checkpoint_to_cpu as f; f('/dev/null')"
    done = stock("python", "-c", script, **{variable: value})
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith(f"{variable}: error: ")
    assert "Traceback" not in done.stderr
