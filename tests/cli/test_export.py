"""`zcode export` as users call it."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.exported import build, checkpoint, load
from fairseq.data import Dictionary, data_utils
from safetensors.torch import load_file
from toy import generate, lines, train

from zcode_plugin.checkpoint import io
from zcode_plugin.data.languages import add_special_symbols
from zcode_plugin.data.objectives import KNOWN

Run = Callable[..., subprocess.CompletedProcess[str]]

HUGGINGFACE = ("--format", "huggingface")
LANGTOK = ("--decoder-langtok", "--objective-token")


@pytest.fixture(scope="module")
def learnt(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt a part of the task."""
    save_dir = tmp_path_factory.mktemp("learnt")
    train(
        reversal, save_dir, *LANGTOK, "--max-update", "100", "--max-tokens", "500",
        "--moe-top-k", "2", "--moe-expert-count", "4,2", "--label-smoothing", "0.1",
        "--disable-validation", "--log-interval", "100",
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


@pytest.fixture
def untrained(data: Path, tmp_path: Path) -> Path:
    """A checkpoint with the vocabulary and the languages of prepared data."""
    langs = (data / "langs.txt").read_text().split()
    symbols = Dictionary.load(str(data / f"dict.{langs[0]}.txt"))
    add_special_symbols(symbols, langs)
    state = checkpoint(*build(symbols), decoder_langtok=True, encoder_langtok="src")
    state["task_state"] = {"symbols": "\n".join(symbols.symbols), "langs": langs}
    path = tmp_path / "untrained.pt"
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_translations_and_scores_are_those_of_fairseq_generate(
    zcode: Run, learnt: Path, reversal: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    ended = zcode("export", learnt, "--data", reversal, "--out", out, *HUGGINGFACE)
    assert (ended.returncode, ended.stderr) == (0, "")
    model, tokenizer = load(out)
    source = (reversal.parent / "test.aa").read_text().splitlines()
    batch = tokenizer(source, tgt_lang="bb", padding=True, return_tensors="pt")
    output = generate(reversal, learnt, "aa", "bb", *LANGTOK, "--beam", "5")
    wanted = [line.split("\t") for line in lines(output, "H")]
    found = model.generate(
        **batch, forced_bos_token_id=tokenizer.forced_bos_token_id, num_beams=5,
        max_new_tokens=11, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    text = tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    assert len(text) == 100
    assert text == [hypothesis for _, _, hypothesis in wanted]
    scores = found.sequences_scores / math.log(2)  # fairseq's are in bits
    assert scores.tolist() == pytest.approx([float(score) for _, score, _ in wanted], abs=1e-4)


def test_says_what_it_wrote(here: Run, learnt: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    ended = here("export", learnt, "--out", out, *HUGGINGFACE)
    printed = ended.stdout.splitlines()
    assert printed[0].startswith(f"export {learnt} ... {out} (")
    assert [line.split()[0] for line in printed[3:11]] == sorted(p.name for p in out.iterdir())
    parameters = sum(weight.numel() for weight in load_file(out / "model.safetensors").values())
    assert printed[11:] == [
        f"{parameters:,} parameters, 2 MoE layers of 2, 4 experts",
        "stored once, as encoder.embed_tokens.weight: decoder.embed_tokens.weight, "
        "decoder.output_projection.weight",
        "languages: aa,bb (--encoder-langtok tgt, --decoder-langtok, --objective-token)",
        "text is cut at spaces: neither --data nor --sentencepiece-model has a SentencePiece model",
        f'load it with from_pretrained("{out}", trust_remote_code=True)',
    ]


def test_rank_files_give_the_weights_of_one_file(here: Run, learnt: Path, tmp_path: Path) -> None:
    here("reshard", learnt, "--ranks", "2", "--out", tmp_path / "two")
    rank = tmp_path / "two" / "checkpoint_last-rank-1.pt"
    for path, name in ((learnt, "one"), (rank, "both")):
        ended = here("export", path, "--out", tmp_path / name, "--format", "safetensors")
        assert ended.returncode == 0, ended.stderr
    one, both = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "both"))
    model = io.load(learnt)["model"]
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert one.keys() == both.keys()
    assert {*one, *config["tied"]} == {name for name in model if "_float_tensor" not in name}
    for name in one:
        assert torch.equal(one[name], model[name]), name
        assert torch.equal(both[name], model[name]), name
    for name, other in config["tied"].items():
        assert torch.equal(one[other], model[name])
    assert config["experts"] == {"encoder.layers.1.moe_layer": 4, "decoder.layers.1.moe_layer": 2}
    assert config["model"]["moe_top_k"] == 2
    symbols = (tmp_path / "one" / "symbols.txt").read_text().splitlines()
    assert symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert symbols[-7:-4] == ["__aa__", "__bb__", "<mask>"]
    assert symbols[-4:] == [f"<objective_{name}>" for name in KNOWN]


def test_text_gets_the_numbers_of_the_binarised_data(
    here: Run, untrained: Path, raw: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    ended = here("export", untrained, "--data", data, "--out", out, *HUGGINGFACE)
    assert ended.returncode == 0, ended.stderr
    assert f"text is cut into pieces by {data}/sentencepiece.model\n" in ended.stdout
    assert (out / "sentencepiece.model").read_bytes() == (data / "sentencepiece.model").read_bytes()
    _, tokenizer = load(out)
    stored = {
        lang: data_utils.load_indexed_dataset(str(data / f"test.en-de.{lang}"), None)
        for lang in ("en", "de")
    }
    text = {
        lang: (raw / f"test.en-de.{lang}").read_text(encoding="utf-8").splitlines()
        for lang in ("en", "de")
    }
    found = tokenizer(text["en"], text_target=text["de"], src_lang="en", tgt_lang="de")
    assert len(text["en"]) == len(stored["en"]) == 6
    for row in range(6):
        source = [tokenizer.get_lang_id("en"), *stored["en"][row].tolist()]
        assert found["input_ids"][row] == source
        assert found["labels"][row] == [tokenizer.get_lang_id("de"), *stored["de"][row].tolist()]
        assert tokenizer.decode(source, skip_special_tokens=True) == text["en"][row]
    assert tokenizer.forced_bos_token_id == tokenizer.get_lang_id("de")
    tokenizer.src_lang = None
    with pytest.raises(ValueError, match="src_lang is not set, whose token the model needs"):
        tokenizer("a")
    with pytest.raises(ValueError, match="language 'xx' is none of de, en, fr"):
        tokenizer("a", src_lang="xx")


def test_an_older_checkpoint_takes_its_vocabulary_from_the_data(
    here: Run, untrained: Path, data: Path, tmp_path: Path
) -> None:
    state = io.load(untrained)
    symbols = state["task_state"].pop("symbols").split("\n")
    torch.save(state, tmp_path / "older.pt")
    out = tmp_path / "exported"
    ended = here("export", tmp_path / "older.pt", "--out", out, *HUGGINGFACE)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"zcode export: error: {tmp_path}/older.pt does not name its vocabulary, as newer ones do: "
        "give --data, the directory it was trained on\n"
    )
    ended = here("export", tmp_path / "older.pt", "--data", data, "--out", out, *HUGGINGFACE)
    assert ended.returncode == 0, ended.stderr
    assert (out / "symbols.txt").read_text(encoding="utf-8").splitlines() == symbols


def test_what_is_there_stays_until_the_new_folder_is_whole(
    here: Run, zcode: Run, untrained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    out = folder / "exported"
    command = ("export", untrained, "--out", out, "--format", "safetensors")
    assert here(*command).returncode == 0
    (out / "mine.txt").write_text("a note")
    assert here(*command, "--force").stderr == (
        f"zcode export: error: --out {out} holds mine.txt, which is no part of an export: move it "
        "away, or name another folder\n"
    )
    (out / "mine.txt").unlink()
    assert here(*command).stderr == (
        f"zcode export: error: {out} exists: --force replaces it, --out names another\n"
    )
    before = {path: path.read_bytes() for path in out.iterdir()}
    ended = zcode(
        *command, "--force",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "cannot be written" in ended.stderr
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert list(folder.iterdir()) == [out]
    assert here(*command, "--force").returncode == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "model.safetensors", "symbols.txt",
    ]  # fmt: skip
    assert list(folder.iterdir()) == [out]


def test_the_working_folder_is_not_replaced(
    here: Run, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = here("export", untrained, *HUGGINGFACE, "--out", ".")
    assert ended.returncode == 2
    assert "--out . is the working folder: name one that is to be made" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{0}/a/b"], "--out {0}/a/b: there is no folder {0}/a; make it first"),
        (["--out", "{0}/untrained.pt"], "--out {0}/untrained.pt is a file: name a folder"),
        (["--out", "{0}", "--force"],
         "--out {0} holds other files than an export: name another folder"),
        (["--out", "{0}/x", "--data", "{0}/none"], "--data {0}/none is no directory"),
        (["--out", "{0}/x", "--data", "{1}"],
         "--data {1} has another dictionary than {0}/untrained.pt: give the directory it was "
         "trained on"),
        (["--out", "{0}/x", "--sentencepiece-model", "{0}/no.model"],
         "--sentencepiece-model {0}/no.model: there is no such file"),
        (["--out", "{0}/x", "--sentencepiece-model", "{0}/untrained.pt"],
         "{0}/untrained.pt is no SentencePiece model"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    here: Run, untrained: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "dict.de.txt").write_text("der 3\ndie 2\n")
    words = [word.format(tmp_path, other) for word in arguments]
    ended = here("export", untrained, *HUGGINGFACE, *words)
    assert ended.returncode == 2
    assert ended.stderr == f"zcode export: error: {message.format(tmp_path, other)}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "untrained.pt"]


def test_quantised_experts_have_no_place_in_transformers(
    here: Run, untrained: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.pt"
    here("quantise", untrained, "--bits", "8", "--out", small)
    ended = here("export", small, "--out", tmp_path / "x", *HUGGINGFACE)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"zcode export: error: {small} holds experts of 8 bits, made by zcode quantise to "
        "translate with, not for transformers: name the checkpoint it was made of\n",
    )
    assert not (tmp_path / "x").exists()


def test_a_missing_package_is_named(
    here: Run, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcode_plugin.cli.export.find_spec", lambda name: None)
    ended = here("export", untrained, "--out", tmp_path / "x", *HUGGINGFACE)
    assert ended.returncode == 2
    assert ended.stderr == (
        "zcode export: error: the package safetensors is missing: pip install safetensors\n"
    )


def test_needs_no_transformers(
    here: Run, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    ended = here("export", untrained, "--out", tmp_path / "x", *HUGGINGFACE)
    assert ended.returncode == 0, ended.stderr
