"""`zcode inspect` as users call it."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from checkpoint.rank_files import rank_state, write_rank_files

from zcode_plugin.checkpoint.inspect import inspect

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_text_and_json_say_the_same(zcode: Run, tmp_path: Path) -> None:
    files = list(write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)}).values())
    before = [file.read_bytes() for file in files]
    ended = zcode("inspect", files[1])
    assert (ended.returncode, ended.stderr) == (0, "")
    text, _, numbers = ended.stdout.partition("\n\n")
    assert {line[:20].rstrip(): line[20:].strip() for line in text.splitlines()[2:]} == {
        "files": "2",
        "bytes": f"{sum(map(len, before)):,}",
        "updates": "40",
        "architecture": "moe_transformer",
        "task": "multitask_multilingual",
        "languages": "de, en",
        "vocabulary": "7 (encoder)",
        "experts": "4 (encoder.layers.1, decoder.layers.0)",
        "experts of a token": "1",
        "gate": "learned",
        "optimizer": "FairseqAdam, state of 2,240 bytes",
        "averaged weights": "yes",
        "ranks": "2",
        "expert parallel size": "2",
    }
    assert [line.split() for line in numbers.splitlines()[2:]] == [
        ["embeddings", "21"],
        ["encoder", "15"],
        ["experts", "160"],
        ["gates", "24"],
        ["total", "220"],
        ["active", "per", "token", "100"],
        ["as", "float32", "205"],
        ["as", "float16", "15"],
    ]
    ended = zcode("inspect", files[0], "--json")
    assert ended.stdout.count("\n") == 1
    assert json.loads(ended.stdout) == asdict(inspect(files[0]))
    assert [file.read_bytes() for file in files] == before


def test_a_set_with_a_file_missing_is_refused(zcode: Run, tmp_path: Path) -> None:
    files = write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})
    files[1].unlink()
    ended = zcode("inspect", files[0], "--json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"zcode inspect: error: {files[1]} is missing: the run had 2 ranks, each of which wrote a "
        "file\n"
    )
