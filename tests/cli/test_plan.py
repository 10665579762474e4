"""`zcode plan`: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from zcode_plugin.cli.main import main

LINE = ["plan", "--arch", "moe_transformer_tiny", "--vocabulary", "1000", "--max-tokens", "256"]


def test_forms_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*LINE, "--ranks", "8", "--memory", "1", "--host-memory", "1"]
    assert main([*line, "--", "--moe-expert-count", "16"]) == 0
    output = capsys.readouterr().out
    for form in ("E", "E+Z1", "E+Z3", "E+Z-Off", "E+M", "E+Z-Off+M"):
        assert f"\n{form} " in output
    assert "--moe-expert-count 16 --expert-parallel-size 8" in output
    assert main([*line, "--json", "--", "--moe-expert-count", "16"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["forms"][0]["form"] == "E"
    assert plan["forms"][0]["memory"]["optimizer"] > plan["forms"][1]["memory"]["optimizer"]
    assert plan["forms"][0]["fits"]
    assert plan["forms"][3]["largest_parameters"] > plan["forms"][0]["largest_parameters"]


def test_slices_in_shards_may_be_the_only_form_that_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [*LINE, "--ranks", "8", "--host-memory", "1"]
    assert main([*line, "--memory", "1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    totals = {row["form"]: row["memory"]["total"] for row in plan["forms"]}
    least, second = sorted(totals.values())[:2]
    assert least == totals["E+Z-Off+M"]
    assert main([*line, "--memory", str((least + second) / 2e9)]) == 0
    output = capsys.readouterr().out
    assert "to run E+Z-Off+M:" in output
    assert "--model-parallel-size 2 --ddp-backend fully_sharded --cpu-offload" in output


def test_the_default_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*LINE, "--ranks", "8", "--memory", "1", "--host-memory", "1", "--json"]
    plans = []
    for given in ([], ["--expert-parallel-size", "8", "--model-parallel-size", "2"]):
        assert main([*line, *given]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1]
    assert main([*line, "--model-parallel-size", "1"]) == 0
    forms = [row["form"] for row in json.loads(capsys.readouterr().out)["forms"]]
    assert forms == ["E", "E+Z1", "E+Z3", "E+Z-Off"]
    # Nothing is sliced by 2 on 3 ranks; nor are experts spread that are not there.
    assert main([*LINE, "--ranks", "3", "--memory", "1", "--json", "--", "--moe-freq", "0"]) == 0
    forms = [row["form"] for row in json.loads(capsys.readouterr().out)["forms"]]
    assert forms == ["D", "D+Z1", "Z3", "Z-Off"]


@pytest.mark.parametrize(
    ("flags", "names", "reason"),
    [
        (["--precision", "memory-efficient-fp16"], ["E+Z3", "E+Z-Off"],
         "--memory-efficient-fp16 cannot go with --ddp-backend fully_sharded: "),
        (["--", "--moe-balance", "bias"], ["E+Z3", "E+Z-Off"],
         "--fp16 and --moe-balance bias cannot go with --ddp-backend fully_sharded: "),
        (["--precision", "bf16"], ["E+Z3", "E+Z-Off"],
         "--bf16 and --memory-efficient-bf16 cannot go with --ddp-backend fully_sharded: "),
        (["--precision", "fp32", "--", "--moe-balance", "bias"], [], ""),
        (["--model-parallel-size", "2", "--", "--adaptive-softmax-cutoff", "100"],
         ["E+M", "E+Z-Off+M"],
         "--adaptive-softmax-cutoff cannot go with --model-parallel-size 2"),
        (["--ranks", "1"], ["Z1"], "--zero-sharding os spreads the optimizer's state over ranks"),
    ],
)  # fmt: skip
def test_forms_that_training_refuses_are_left_out(
    capsys: pytest.CaptureFixture[str], flags: list[str], names: list[str], reason: str
) -> None:
    line = [*LINE, "--ranks", "4", "--model-parallel-size", "1", "--memory", "1"]
    assert main([*line, *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    told = [line for line in printed if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in told] == names
    assert all(line.partition(": ")[2].partition(": ")[2].startswith(reason) for line in told)
    main([*line, "--json", *flags])
    plan = json.loads(capsys.readouterr().out)
    assert {row["form"] for row in plan["forms"]}.isdisjoint(names)
    assert list(plan["left_out"]) == names


def test_what_is_gathered_follows_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """Layers gather their weights one by one only where they are wrapped."""
    line = [*LINE, "--ranks", "4", "--memory", "1", "--json"]

    def gathered(*flags: str) -> float:
        assert main([*line, *flags]) == 0
        forms = {row["form"]: row for row in json.loads(capsys.readouterr().out)["forms"]}
        return float(forms["E+Z3"]["memory"]["gathered"])

    wrapped = gathered("--", "--min-params-to-wrap", "0")
    assert gathered() > wrapped == gathered("--checkpoint-activations")


def test_the_command_has_the_precision(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*LINE, "--ranks", "2", "--memory", "1", "--precision", "memory-efficient-bf16"]
    assert main(line) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.endswith("--max-tokens 256 --memory-efficient-bf16 ...")


@pytest.mark.parametrize("number", [0, 1])
def test_the_tables_of_the_docs(capsys: pytest.CaptureFixture[str], number: int) -> None:
    """What docs/parallel.md shows is what the verb prints."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "parallel.md").read_text()
    blocks = re.findall(r"^```\n(zcode plan .*?)```\n\n```text\n(.*?)^```", text, re.M | re.S)
    command, shown = blocks[number]
    main(shlex.split(command.replace("\\\n", " "))[1:])
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in shown.splitlines() if line and not line.startswith("(")]
    assert printed[: len(lines)] == lines


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--ranks", "2", "--memory", "0.001"]) == 1
    assert "no form fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "--ranks 0 is too small"),
        (["--ranks", "4", "--expert-parallel-size", "3"], "must divide --ranks 4 and the experts"),
        (["--ranks", "6", "--expert-parallel-size", "3"], "each layer (8): give one of 1, 2"),
        (
            ["--ranks", "4", "--model-parallel-size", "3"],
            "--model-parallel-size 3 must divide --ranks 4",
        ),
        (["--ranks", "6", "--model-parallel-size", "3"], "must divide --encoder-attention-heads 4"),
        (["--ranks", "4", "--", "--moe-expert-cont", "3"], "flags of the model, after --: "),
        (
            ["--ranks", "2", "--", "--encoder-embed-dim", "98"],
            "flags of the model, after --: embed_dim must be divisible by num_heads",
        ),
        (
            ["--ranks", "2", "--", "--decoder-embed-dim", "64"],
            "flags of the model, after --: --share-all-embeddings requires",
        ),
        (["--ranks", "2", "--", "--encoder-embed-dim", "0"], "flags of the model, after --: "),
        (["--ranks", "2", "--", "--moe-expert-bits", "8"], "--moe-expert-bits, after --: experts"),
        (
            ["--ranks", "4", "--", "--expert-parallel-size", "2"],
            "give --expert-parallel-size before --",
        ),
        (
            ["--ranks", "4", "--", "--checkpoint-activations"],
            "give --checkpoint-activations before --",
        ),
        (["--ranks", "2", "--length", "2000"], "--length 2000: a sentence has at most 1024 tokens"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main([*LINE, "--memory", "1", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_dropped_layers_leave_out_spread_experts(capsys: pytest.CaptureFixture[str]) -> None:
    extra = ("--", "--encoder-layerdrop", "0.5")
    assert main([*LINE, "--ranks", "2", "--memory", "4", "--json", *extra]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {"E", "E+Z1"} <= plan["left_out"].keys()
    assert "--encoder-layerdrop" in plan["left_out"]["E"]
