"""A plugin's task, model and criterion in the YAML of `fairseq-hydra-train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from toy import PLUGIN

from zcode_mends.hydra_plugins import _is_there

CONFIGS = PLUGIN.parent / "examples" / "configs"
BASE = (CONFIGS / "base_moe.yaml").read_text()
# Imports stock's command once and forks a process for each call of it.
CALLS = """
import json, os, sys
from fairseq_cli import hydra_train

for name, arguments in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        os.dup2(os.open(name + ".out", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(name + ".err", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["fairseq-hydra-train", *arguments]
        hydra_train.cli_main()
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(name + ".code", "w").write(str(code))
"""
# What is wrong: a change of the YAML, or an override; and the last line of standard error.
CHANGED = {
    "common": (
        "log_format",
        "log_formatt",
        "there is no option common.log_formatt; did you mean log_format?",
    ),
    "section": (
        "optimization:",
        "optimisation:",
        "there is no section optimisation; did you mean optimization?",
    ),
    "task": (
        "multitask:",
        "multitasks:",
        "there is no option task.multitasks; did you mean multitask?",
    ),
    "model": (
        "moe_expert_count",
        "moe_expert_cuont",
        "there is no option model.moe_expert_cuont; did you mean moe_expert_count?",
    ),
    "choice": (
        "priority: rts",
        "priority: rst",
        "model: --moe-token-priority: invalid choice: 'rst' (choose from",
    ),
    "arch": (
        "moe_transformer_base",
        "moe_trasformer_base",
        "there is no model moe_trasformer_base; did you mean moe_transformer_base?",
    ),
    "no_plugin": (
        "  user_dir: zcode_plugin",
        "  user_dir: null",
        "there is no task multitask_multilingual; a plugin's is known with common.user_dir",
    ),
    "indentation": (
        "  log_format",
        "   log_format",
        "wrong_indentation.yaml, line 5: no valid YAML, expected <block end>",
    ),
}
ADDED = {
    "added_folder": (
        "common.user_dir=nowhere",
        "common.user_dir nowhere: there is no such folder",
    ),
    "added_section": (
        "+foo.a=1",
        "there is no section foo",
    ),
    "added_value": (
        "+task.dae_mask=abc",
        "Value 'abc' of type 'str' could not be converted to Float in dae_mask",
    ),
}


def call(folder: Path, calls: Mapping[str, Sequence[str]], **variables: str) -> None:
    """Leaves files NAME.out, NAME.err and NAME.code of each call in the folder."""
    subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)], cwd=folder, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables},
    )  # fmt: skip


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "zcode_plugin").symlink_to(PLUGIN)
    calls = {}
    for name, (old, new, _) in CHANGED.items():
        assert old in BASE
        (folder / f"wrong_{name}.yaml").write_text(BASE.replace(old, new, 1))
        calls[name] = ["--config-dir", str(folder), "--config-name", f"wrong_{name}"]
    for name, (override, _) in ADDED.items():
        calls[name] = ["--config-dir", str(CONFIGS), "--config-name", "base_moe", override]
    call(folder, calls)
    return folder


@pytest.mark.parametrize("name", [*CHANGED, *ADDED])
def test_a_mistake_is_one_line(mistakes: Path, name: str) -> None:
    expected = {**CHANGED, **ADDED}[name][-1]
    errors = (mistakes / f"{name}.err").read_text()
    assert (mistakes / f"{name}.code").read_text() == "2"
    assert errors.splitlines()[-1].startswith("fairseq-hydra-train: error: ")
    assert expected in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_plugin_beside_fairseq_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `make install`, and as stock looks for it."""
    monkeypatch.chdir(tmp_path)
    assert _is_there("numpy")
    assert not _is_there("nowhere")


@pytest.mark.slow
def test_without_the_mend(tmp_path: Path) -> None:
    """A key of the model that nobody knows passes, and another option of the model is missed."""
    (tmp_path / "zcode_plugin").symlink_to(PLUGIN)
    (tmp_path / "data").mkdir()
    (tmp_path / "wrong.yaml").write_text(BASE.replace("moe_expert_count", "moe_expert_cuont"))
    line = ["--config-dir", ".", "--config-name", "wrong", "common.cpu=true"]
    call(tmp_path, {"wrong": line}, ZCODE_COMPAT_DISABLE="hydra-plugins")
    assert "moe_expert_cuont" in (tmp_path / "wrong.out").read_text()
    assert "did you mean" not in (tmp_path / "wrong.err").read_text()
