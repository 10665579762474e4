"""The run of examples/configs as YAML and as flags is one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fairseq.dataclass.configs import FairseqBMUFConfig
from ranks import log
from toy import PLUGIN, SCRIPTS

CONFIGS = PLUGIN.parent / "examples" / "configs"
YAML = ("--config-dir", str(CONFIGS), "--config-name", "base_moe")
# Stops where stock is about to start ranks, and writes down the configurations with which it would.
CAPTURE = """
import json, sys
from fairseq.distributed import utils
from omegaconf import OmegaConf

path, flags, yaml = sys.argv[1], *map(json.loads, sys.argv[2:])
captured = []
utils.call_main = lambda cfg, main, **kwargs: captured.append(
    OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
)
for module, arguments in (("train", flags), ("hydra_train", yaml)):
    sys.argv = ["fairseq", *arguments]
    __import__(f"fairseq_cli.{module}", fromlist=["cli_main"]).cli_main()
with open(path, "w") as file:
    json.dump(captured, file, default=vars)
"""
TINY = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
SHORT = {
    "common.cpu": True, "common.log_format": "json", "common.log_interval": 1,
    "dataset.num_workers": 0, "dataset.data_buffer_size": 0, "dataset.max_tokens": 400,
    "optimization.max_update": 3, "distributed_training.distributed_backend": "gloo",
}  # fmt: skip


def environment(**variables: str) -> dict[str, str]:
    path = f"{SCRIPTS}:{os.environ['PATH']}"
    return {
        **os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables,
    }  # fmt: skip


def flags_of_script(folder: Path) -> list[str]:
    """What base_moe.sh gives to fairseq-train, caught by a torchrun that only writes it down."""
    stand_in = folder / "bin" / "torchrun"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{folder}/flags\n")
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{SCRIPTS}:{os.environ['PATH']}"
    subprocess.run(["bash", CONFIGS / "base_moe.sh"], env=environment(PATH=path), check=True)
    launcher, script, *flags = (folder / "flags").read_text().splitlines()
    assert (launcher, Path(script).name) == ("--nproc-per-node=2", "fairseq-train")
    return flags


def captured(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of the flags and of the YAML."""
    out = folder / "configurations.json"
    arguments = [json.dumps(line) for line in (flags_of_script(folder), YAML)]
    done = subprocess.run(
        [sys.executable, "-c", CAPTURE, out, *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    flags, yaml = json.loads(out.read_text())
    return flags, yaml


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory in which the relative paths of both files mean something."""
    (tmp_path / "zcode_plugin").symlink_to(PLUGIN)
    return tmp_path


def test_yaml_and_flags_are_one_configuration(folder: Path) -> None:
    flags, yaml = captured(folder)
    assert yaml.pop("job_logging_cfg")  # hydra's own, of how the command logs
    assert set(yaml) == set(flags)
    # Stock's parser has a default scorer, for which training has no use.
    assert (flags.pop("scoring")["_name"], yaml.pop("scoring")) == ("bleu", None)
    models = flags.pop("model"), yaml.pop("model")
    for section, expected in flags.items():
        assert yaml[section] == expected, section
    check_models(*models)


def check_models(flags: dict[str, Any], yaml: dict[str, Any]) -> None:
    """A model without a dataclass gets all options of a run; all that both have are the same."""
    only_flags, only_yaml = set(flags) - set(yaml), set(yaml) - set(flags)
    assert only_flags == {"pad", "eos", "unk", "no_seed_provided"}, "of the parser"
    bmuf = {field.name for field in fields(FairseqBMUFConfig)}
    assert only_yaml - bmuf == {"max_source_positions", "max_target_positions"}, "of the task"
    differing = {name for name in set(flags) & set(yaml) if flags[name] != yaml[name]}
    assert differing == {"scoring"}
    assert yaml["moe_jitter_eps"] == 0.01, "the architecture has been applied"
    assert yaml["base_layers"] == 1, "each rank has files of its own"


def start(line: Sequence[object], folder: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, line)), cwd=folder, env=environment(RANKS=str(ranks)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def short_runs(ranks: int) -> dict[str, list[object]]:
    """The commands of a tiny model and three updates; each saves in a folder of its name."""
    short = {**SHORT, "model.expert_parallel_size": ranks}
    overrides = [f"++model.{name}={value}" for name, value in TINY.items()]
    overrides += [f"++{name}={value}" for name, value in short.items()]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    flags += [
        f"--{name.partition('.')[2].replace('_', '-')}" + (f"={value}" * (value is not True))
        for name, value in short.items()
    ]
    launcher = [SCRIPTS / "torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    hydra = [*launcher, SCRIPTS / "fairseq-hydra-train", *YAML, *overrides]
    return {
        "flags": ["bash", CONFIGS / "base_moe.sh", *flags, "--save-dir=flags"],
        "yaml": [*hydra, "checkpoint.save_dir=yaml"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_both_train_alike(folder: Path, reversal: Path, ranks: int) -> None:
    (folder / "data").symlink_to(reversal)
    losses = {}
    lines = short_runs(ranks)
    for name, line in lines.items():
        done = start(line, folder, ranks)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        text = done.stdout.replace("[train_inner][INFO] - {", "| train_inner | {")
        losses[name] = log(text, "train_inner", "loss")
    assert len(losses["flags"]) == 3
    assert losses["yaml"] == losses["flags"]
    flags, yaml = ({path.name for path in (folder / name).iterdir()} for name in lines)
    assert flags == yaml
    if ranks == 2:
        (folder / "yaml" / "checkpoint_last-rank-1.pt").unlink()
        refused = start(lines["yaml"], folder, ranks)
        assert refused.returncode != 0
        assert "zcode_plugin: error: yaml/checkpoint_last-rank-1.pt is missing" in refused.stderr
