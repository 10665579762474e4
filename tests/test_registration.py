"""The plugin registers once, whichever way it is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import argparse
import sys
{first}
from fairseq.utils import import_user_module
for user_dir in {dirs!r}:
    import_user_module(argparse.Namespace(user_dir=user_dir))
{last}
from fairseq.tasks import TASK_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.criterions import CRITERION_REGISTRY
assert TASK_REGISTRY["multitask_multilingual"].__module__.startswith("zcode_plugin.tasks")
assert "moe_transformer_tiny" in ARCH_MODEL_REGISTRY
assert "multitask_summed_loss" in CRITERION_REGISTRY
assert "tasks" not in sys.modules
"""

PLUGIN = str(ROOT / "zcode_plugin")
WAYS = {
    "by its folder": ("", [PLUGIN], ""),
    "by a relative folder": ("", ["zcode_plugin"], ""),
    "twice": ("", [PLUGIN, PLUGIN, "zcode_plugin"], ""),
    "imported after fairseq": ("import fairseq, zcode_plugin", [PLUGIN], ""),
    "imported before fairseq": ("import zcode_plugin", [], "zcode_plugin.register()"),
    "registered twice": ("import zcode_plugin; zcode_plugin.register()", [PLUGIN], ""),
}


@pytest.mark.parametrize("way", WAYS)
def test_registers_once(way: str) -> None:
    first, dirs, last = WAYS[way]
    program = PROGRAM.format(first=first, dirs=dirs, last=last)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_package_alone_does_not_import_fairseq() -> None:
    program = "import sys, zcode_plugin; assert not {'fairseq', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
