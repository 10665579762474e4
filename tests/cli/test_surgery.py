"""`zcode stats`, `prune` and `aggregate` on a trained model, and what stock makes of it."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import ranks
import torch
from toy import TASK, generate, lines, run, train

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.cli.main import main

ENCODER = "encoder.layers.1.moe_layer"


@pytest.fixture(scope="module")
def trained(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose gates were not told to balance."""
    save_dir = tmp_path_factory.mktemp("trained")
    train(
        reversal, save_dir, "--max-update", "20", "--multitask", "mt:1,dae:0.2",
        "--multitask-max-tokens", "dae:200", "--moe-balance", "none", "--disable-validation",
        "--log-interval", "100", "--moe-capacity-factor", "0",
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def stats(trained: Path, reversal: Path) -> Path:
    out = trained.parent / "stats.json"
    assert main(["stats", str(trained), str(reversal), "--out", str(out)]) == 0
    return out


def words(reversal: Path, lang: str) -> int:
    """Words and ends of sentences in the validation data."""
    text = (reversal.parent / f"valid.{lang}").read_text().splitlines()
    return sum(len(line.split()) + 1 for line in text)


def test_statistics_count_every_token_once(stats: Path, reversal: Path) -> None:
    record = json.loads(stats.read_text())
    assert (record["format"], record["subset"]) == ("zcode-stats-1", "valid")
    rows = {(row["layer"], row["objective"], row["pair"]): row for row in record["rows"]}
    keys = [("mt", "aa-bb"), ("mt", "bb-aa"), ("dae", "aa"), ("dae", "bb")]
    assert {*rows} == {(f"{s}.layers.1", *key) for s in ("encoder", "decoder") for key in keys}
    for objective, pair in keys:
        target = pair.partition("-")[2] or pair
        decoder = rows["decoder.layers.1", objective, pair]
        assert sum(decoder["load"]) == decoder["tokens"] == words(reversal, target)
        sentences = (reversal.parent / f"valid.{target}").read_text().splitlines()
        places = [place for line in sentences for place in range(len(line.split()) + 1)]
        starts = [*record["sentence_positions"], 10**9]
        assert decoder["asked_by_sentence_position"] == [
            sum(low <= place < high for place in places) for low, high in pairwise(starts)
        ]
    # The encoder sees a language token, too.
    source = rows["encoder.layers.1", "mt", "aa-bb"]
    assert source["tokens"] == words(reversal, "aa") + 100
    assert 0 < sum(source["weight"]) < source["tokens"]
    lines_ = list(csv.DictReader(stats.with_suffix(".csv").read_text().splitlines()))
    assert len(lines_) == 8 * 4
    assert float(lines_[1]["norm"]) == record["rows"][0]["norm"][1]


def test_statistics_of_a_choice(trained: Path, reversal: Path, tmp_path: Path) -> None:
    out = tmp_path / "some.json"
    run(
        "zcode", "stats", trained, reversal, "--out", out, "--pairs", "bb-aa", "--objectives",
        "mt", "--gen-subset", "test", "--capacity-factor", "0.5", "--max-tokens", "300",
        fresh=True,
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [(row["objective"], row["pair"]) for row in rows] == [("mt", "bb-aa")] * 2
    assert all(row["dropped"] > 0.3 * row["tokens"] for row in rows)
    assert all(row["dropped"] == sum(row["dropped_by_sentence_position"]) for row in rows)
    # As rts drops in training: the first tokens of sentences, too, which `position` would keep.
    assert all(row["dropped_by_sentence_position"][0] > 0.2 * 100 for row in rows)


def test_pruned_by_use(
    trained: Path, stats: Path, reversal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half.pt"
    line = ["prune", str(trained), "--by", "utilisation", "--stats", str(stats), "--out", str(out)]
    assert main([*line, "--keep", "50%"]) == 0
    loads = [
        sum(row["load"][expert] for row in json.loads(stats.read_text())["rows"]
            if row["layer"] == "encoder.layers.1")
        for expert in range(4)
    ]  # fmt: skip
    best = sorted(sorted(range(4), key=lambda expert: -loads[expert])[:2])
    assert f"{ENCODER}        4     2             {best[0]},{best[1]}" in capsys.readouterr().out
    before, after = io.load(trained)["model"], io.load(out)["model"]
    for new, old in enumerate(best):
        weight = after[f"{ENCODER}.experts.{new}.fc2.weight"]
        assert torch.equal(weight, before[f"{ENCODER}.experts.{old}.fc2.weight"])
    assert torch.equal(
        after[f"{ENCODER}.gate.wg.weight"], before[f"{ENCODER}.gate.wg.weight"][best]
    )
    assert main(["inspect", str(out), "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert contents["experts"] == {"encoder.layers.1": 2, "decoder.layers.1": 2}
    assert contents["kept_experts"]["encoder.layers.1"] == best
    experts = 2 * 4 * (64 * 128 * 2 + 64 + 128) * 4  # bytes: 2 layers, 4 experts, d 64, ffn 128
    smaller = sum(x.numel() * 4 for x in before.values()) - sum(
        x.numel() * 4 for x in after.values()
    )
    assert smaller == pytest.approx(experts / 2, rel=0.02)
    assert main([*line, "--keep", "4", "--force"]) == 0
    same = io.load(out)["model"]
    assert all(torch.equal(same[key], before[key]) for key in before)
    assert len(lines(generate(reversal, out, "aa", "bb"), "H")) == 100


def test_a_pruned_model_is_translated_with_and_trained_on_without_flags(
    trained: Path, reversal: Path, tmp_path: Path
) -> None:
    """Not even those of its shape: stock takes them from the file, and so does training."""
    out = tmp_path / "pruned.pt"
    run("zcode", "prune", trained, "--keep", "3", "--by", "random", "--across-layers", "--ratio",
        "2:1", "--out", out)  # fmt: skip
    assert len(lines(generate(reversal, out, "aa", "bb", fresh=True), "H")) == 100
    log = run(
        "fairseq-train", reversal, *TASK, "--arch", "moe_transformer_tiny", "--criterion",
        "multitask_summed_loss", "--optimizer", "adam", "--lr", "0.001", "--max-tokens", "500",
        "--cpu", "--num-workers", "0", "--data-buffer-size", "0", "--finetune-from-model", out,
        "--max-update", "2", "--save-dir", tmp_path / "on", "--encoder-langtok", "tgt",
        "--disable-validation", fresh=True,
    )  # fmt: skip
    assert "--encoder-embed-dim 64" in log
    assert "--encoder-moe-expert-count 4, --decoder-moe-expert-count 2" in log
    last = io.load(tmp_path / "on" / "checkpoint_last.pt")
    assert last["model"]["decoder.layers.1.moe_layer.gate.wg.weight"].shape == (2, 64)


def test_a_flag_against_the_file_is_refused(
    trained: Path, reversal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairseq import options

    line = [
        str(reversal),
        *TASK,
        "--arch",
        "moe_transformer_tiny",
        "--encoder-attention-heads",
        "8",
    ]
    with pytest.raises(SystemExit) as stopped:
        options.parse_args_and_arch(
            options.get_training_parser(), [*line, "--finetune-from-model", str(trained)]
        )
    assert stopped.value.code == 2
    message = "has --encoder-attention-heads 4, this run 8: drop the flag"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_aggregated_and_the_gate_alone_fitted(
    trained: Path, reversal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.pt"
    assert main(["aggregate", str(trained), str(trained), "--out", str(out)]) == 0
    assert f"{ENCODER}    4+4=8   4.000" in capsys.readouterr().out
    output = ranks.train(
        reversal, tmp_path / "fitted", "--max-tokens", "400", "--max-update", "4",
        "--finetune-from-model", out, "--freeze-except", "gate", "--moe-expert-count", "8",
        "--expert-parallel-size", "2", "--disable-validation", world=4,
    )  # fmt: skip
    assert "num. trained" in output
    run("zcode", "merge", tmp_path / "fitted" / "checkpoint_last-rank-0.pt")
    before, after = (
        io.load(out)["model"],
        io.load(tmp_path / "fitted" / "checkpoint_last.pt")["model"],
    )
    assert before.keys() == after.keys()
    changed = {
        key
        for key in before
        if not (key.endswith(UNSET_BUFFER) or torch.equal(before[key], after[key]))
    }
    assert changed == {
        f"{side}.layers.1.moe_layer.gate.wg.weight" for side in ("encoder", "decoder")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "{model}", "--keep", "2", "--by", "utilisation"),
         "--by utilisation needs --stats FILE: gather it with zcode stats {model} DATA"),
        (("prune", "{model}", "--keep", "2", "--by", "random", "--pairs", "a-b"),
         "--by random needs no --stats and no --pairs: leave them out"),
        (("prune", "{model}", "--keep", "0", "--by", "random"),
         "--keep 0 is 0 of 4 experts: give a whole number from 1 to 4"),
        (("prune", "{model}", "--keep", "2", "--by", "random", "--ratio", "3"),
         "--ratio 3: give two positive numbers, such as 3:1"),
        (("prune", "{model}", "--keep", "2", "--by", "utilisation", "--stats", "{model}"),
         "{model} is no file of zcode stats: gather one with zcode stats CKPT DATA"),
        (("prune", "{model}.pt", "--keep", "2", "--by", "random"),
         "there is no {model}.pt, nor {folder}/checkpoint_last.pt-rank-0.pt: name a checkpoint"),
        (("aggregate", "{model}"), "give two checkpoints or more; one may stand there twice"),
        (("aggregate", "{model}", "{model}", "--weights", "1"),
         "--weights 1: give 2 numbers, not all 0"),
        (("aggregate", "{model}", "{model}", "--weights", "1,-1"), "--weights -1: give 0 or more"),
        (("aggregate", "{model}", "{model}", "--gate-scale", "big"),
         "--gate-scale big: give a number above 0"),
        (("aggregate", "{model}", "{model}", "--top-k", "9"),
         "--top-k 9: layers have 8 experts; give 1 to 8"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    names = {"model": trained, "folder": trained.parent}
    line = [part.format(**names) for part in arguments]
    assert main([*line, "--out", str(tmp_path / "out.pt")]) == 2
    wanted = message.format(**names)
    assert capsys.readouterr().err == f"zcode {line[0]}: error: {wanted}\n"
    assert list(tmp_path.iterdir()) == []


def test_statistics_without_a_place_are_not_gathered(
    trained: Path, reversal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", str(trained), str(reversal), "--out", f"{tmp_path}/no/s.json"]) == 2
    streams = capsys.readouterr()
    assert streams.err.endswith(f"there is no folder {tmp_path}/no; make it first\n")
    assert streams.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pairs", "aabb"), "--pairs: 'aabb' is no pair, write it as src-tgt"),
        (("--capacity-factor", "-1"), "--capacity-factor -1.0 must not be negative"),
        (("--max-tokens", "3"), "--max-tokens 3: no sentence fits; give more"),
        (("--objectives", "dae"), "--objectives dae: {model} is of stock's task translation, with "
         "one direction: leave it out"),
    ],
)  # fmt: skip
def test_statistics_that_cannot_be(
    trained: Path,
    reversal: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    model = trained
    if "--objectives" in options:
        state = io.load(trained)
        state["cfg"]["task"] = {"_name": "translation", "source_lang": "aa", "target_lang": "bb"}
        model = tmp_path / "stock.pt"
        torch.save(state, model)
    out = tmp_path / "s.json"
    assert main(["stats", str(model), str(reversal), "--cpu", "--out", str(out), *options]) == 2
    wanted = message.format(model=model)
    assert capsys.readouterr().err.splitlines()[-1] == f"zcode stats: error: {wanted}"
    assert not out.exists()


def test_data_that_are_cut_off_are_named(
    trained: Path, reversal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(reversal, tmp_path / "data")
    path = data / "valid.aa-bb.aa.bin"
    path.write_bytes(path.read_bytes()[:100])
    out = tmp_path / "s.json"
    assert main(["stats", str(trained), str(data), "--cpu", "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"zcode stats: error: {data}: the data cannot be read (")


def test_nothing_is_overwritten(trained: Path, stats: Path, reversal: Path) -> None:
    taken = str(stats.parent / "taken.pt")
    Path(taken).write_text("")
    for line in (
        ["prune", str(trained), "--keep", "1", "--by", "random", "--out", taken],
        ["aggregate", str(trained), str(trained), "--out", taken],
        ["stats", str(trained), str(reversal), "--out", str(stats)],
    ):
        assert main(line) == 2
    assert Path(taken).read_text() == ""
