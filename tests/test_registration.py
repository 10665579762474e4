"""The plugin registers once, whichever way it is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Imports fairseq once and forks a process for each way.
PROGRAM = """
import argparse, json, os, sys, traceback
{before}
import fairseq.criterions, fairseq.models, fairseq.tasks
from fairseq.utils import import_user_module

def register(dirs, code):
    exec(code)
    for user_dir in dirs:
        import_user_module(argparse.Namespace(user_dir=user_dir))
    exec(code)
    assert fairseq.tasks.TASK_REGISTRY["multitask_multilingual"].__module__.startswith(
        "zcode_plugin.tasks"
    )
    assert "moe_transformer_tiny" in fairseq.models.ARCH_MODEL_REGISTRY
    assert "multitask_summed_loss" in fairseq.criterions.CRITERION_REGISTRY
    assert "tasks" not in sys.modules

failed = []
for name, way in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try:
            register(*way)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(", ".join(failed) or None)
"""

PLUGIN = str(ROOT / "zcode_plugin")
# Folders that are named, and what is called before and after.
WAYS = {
    "by its folder": ([PLUGIN], ""),
    "by a relative folder": (["zcode_plugin"], ""),
    "twice": ([PLUGIN, PLUGIN, "zcode_plugin"], ""),
    "imported after fairseq": ([PLUGIN], "import zcode_plugin"),
    "registered twice": ([PLUGIN], "import zcode_plugin; zcode_plugin.register()"),
}
BEFORE_FAIRSEQ = {"imported before fairseq": ([], "zcode_plugin.register()")}


@pytest.mark.parametrize(
    ("before", "ways"),
    [("", WAYS), ("import zcode_plugin", BEFORE_FAIRSEQ)],
    ids=["after fairseq", "before fairseq"],
)
def test_registers_once(before: str, ways: dict[str, tuple[list[str], str]]) -> None:
    program = PROGRAM.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(ways)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_package_alone_does_not_import_fairseq() -> None:
    program = "import sys, zcode_plugin; assert not {'fairseq', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
