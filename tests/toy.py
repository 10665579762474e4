"""A tiny task that a tiny model learns in a minute, and the stock commands on it.

The language bb is the language aa read backwards: a model that gets it right has learnt to look
at the right positions.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sysconfig
from pathlib import Path

import forked
import torch

SCRIPTS = Path(sysconfig.get_path("scripts"))
PLUGIN = Path(__file__).resolve().parent.parent / "zcode_plugin"
TASK = ("--user-dir", str(PLUGIN), "--task", "multitask_multilingual")
MODEL = (
    "--arch", "moe_transformer_tiny", "--encoder-layers", "2", "--decoder-layers", "2",
    "--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128", "--moe-expert-count", "4",
)  # fmt: skip
# Nothing random and nothing dropped: what several ranks do must be what one process does.
EXACT = (
    "--dropout", "0", "--moe-capacity-factor", "0", "--moe-jitter-eps", "0",
)  # fmt: skip


def command(
    *arguments: object, ranks: int = 1, timeout: int = 300, gpu: bool = False, fresh: bool = False
) -> subprocess.CompletedProcess:
    """Run a console script; with `ranks` > 1 under torchrun. Never raises for its exit code.

    Args:
        arguments: the name of the script, and its own arguments.
        ranks: number of processes.
        timeout: in seconds.
        gpu: without it the script sees none.
        fresh: it has an interpreter of its own even where a fork of this one does.
    """
    script, *rest = (str(argument) for argument in arguments)
    # torch cannot be forked once it has used a GPU.
    if not (fresh or gpu or ranks > 1 or torch.cuda.is_available()):
        return forked.run([script, *rest], timeout)
    line = [str(SCRIPTS / script), *rest]
    if ranks > 1:
        line = [str(SCRIPTS / "torchrun"), "--standalone", "--nproc-per-node", str(ranks), *line]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        line, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def run(
    *arguments: object, ranks: int = 1, timeout: int = 300, gpu: bool = False, fresh: bool = False
) -> str:
    """Output of a command that must succeed; what it logged is in the failure."""
    done = command(*arguments, ranks=ranks, timeout=timeout, gpu=gpu, fresh=fresh)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def records(output: str, kind: str) -> list[dict[str, str]]:
    """What was logged as JSON on lines that hold `kind`, such as `train_inner`."""
    found = [line for line in output.splitlines() if kind in line]
    return [json.loads(line[line.index("{") :]) for line in found]


def write_reversal(directory: Path, sentences: dict[str, int], longest: int = 6) -> Path:
    """Text and binarised data of aa-bb, as stock fairseq-preprocess makes it; monolingual too."""
    draw = random.Random(1)
    seen: set[tuple[str, ...]] = set()
    for split, count in sentences.items():
        lines = []
        while len(lines) < count:
            words = tuple(draw.choices("abcdefghij", k=draw.randint(2, longest)))
            if words not in seen:
                seen.add(words)
                lines.append(words)
        for lang, step in (("aa", 1), ("bb", -1)):
            text = "".join(" ".join(words[::step]) + "\n" for words in lines)
            (directory / f"{split}.{lang}").write_text(text)
    data = directory / "data"
    prefixes = [item for split in sentences for item in (f"--{split}pref", str(directory / split))]
    run(
        "fairseq-preprocess", "-s", "aa", "-t", "bb", "--joined-dictionary", *prefixes,
        "--destdir", data,
    )  # fmt: skip
    for lang in ("aa", "bb"):
        run(
            "fairseq-preprocess", "--only-source", "-s", lang, "--srcdict", data / "dict.aa.txt",
            "--trainpref", directory / "train", "--validpref", directory / "valid",
            "--destdir", data,
        )  # fmt: skip
    return data


def train(
    data: Path,
    save_dir: Path,
    *options: object,
    ranks: int = 1,
    gpu: bool = False,
    fresh: bool = False,
) -> str:
    """Stock fairseq-train with the plugin; the options given come last, and win."""
    distributed = (
        ("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp") if ranks > 1 else ()
    )
    return run(
        "fairseq-train", data, *TASK, *MODEL, "--criterion", "multitask_summed_loss",
        "--optimizer", "adam", "--lr", "0.003", "--max-tokens", "1000",
        "--num-workers", "0", "--data-buffer-size", "0", "--log-format", "json",
        "--log-interval", "1",
        "--no-epoch-checkpoints", "--encoder-langtok", "tgt", *distributed,
        "--save-dir", save_dir, *_device(gpu), *options,
        ranks=ranks, gpu=gpu, fresh=fresh,
    )  # fmt: skip


def _device(gpu: bool) -> tuple[str, ...]:
    return () if gpu else ("--cpu",)


def generate(
    data: Path,
    checkpoint: Path,
    src: str,
    tgt: str,
    *options: object,
    gpu: bool = False,
    fresh: bool = False,
) -> str:
    """Output of stock fairseq-generate."""
    return run(
        "fairseq-generate", data, *TASK, "-s", src, "-t", tgt, "--encoder-langtok", "tgt",
        "--path", checkpoint, "--scoring", "sacrebleu", "--max-len-b", "10",
        *_device(gpu), *options,
        gpu=gpu, fresh=fresh,
    )  # fmt: skip


def bleu(output: str) -> float:
    """The score that fairseq-generate printed."""
    found = re.search(r"BLEU\S* = ([0-9.]+)", output)
    assert found, output[-2000:]
    return float(found[1])


def lines(output: str, letter: str) -> list[str]:
    """The lines `H-...`, `D-...` and so on of fairseq-generate, by sentence."""
    marked = [line for line in output.splitlines() if re.match(rf"{letter}-\d+\t", line)]
    return sorted(marked, key=lambda line: int(line.split("\t")[0][2:]))
