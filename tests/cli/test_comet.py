"""COMET scores: a model of a few hundred weights, built here, through COMET's own loader."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from toy import MODEL, TASK, run

from zcode_plugin.errors import UserError
from zcode_plugin.evaluation import comet
from zcode_plugin.evaluation.generation import Translations

Run = Callable[..., subprocess.CompletedProcess[str]]

INSTALLED = find_spec("comet") is not None
needs_comet = pytest.mark.skipif(
    not INSTALLED, reason="runs where unbabel-comet is installed: pip install '.[comet]'"
)
TEXTS = Translations(["das Haus", "ein Baum"], ["the house", ""], ["the house", "a tree"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a COMET model of random weights."""
    import torch
    import yaml
    from comet.models import RegressionMetric
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("comet")
    encoder = folder / "encoder"
    encoder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    (encoder / "vocab.txt").write_text("\n".join(symbols) + "\n")
    BertTokenizerFast(vocab_file=str(encoder / "vocab.txt")).save_pretrained(encoder)
    config = BertConfig(
        vocab_size=len(symbols), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(1)
    BertModel(config, add_pooling_layer=False).save_pretrained(encoder)
    metric = RegressionMetric(
        encoder_model="BERT", pretrained_model=str(encoder), hidden_sizes=[4], dropout=0.0
    )
    (folder / "checkpoints").mkdir()
    saved = {
        "state_dict": metric.state_dict(),
        "hyper_parameters": dict(metric.hparams),
        "pytorch-lightning_version": "2.0.0",
    }
    torch.save(saved, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump({"class_identifier": "regression_metric"}))
    return folder


@needs_comet
def test_the_score_is_that_of_comet(model: Path) -> None:
    import torch
    from comet import load_from_checkpoint

    loaded = load_from_checkpoint(str(model / "checkpoints" / "model.ckpt")).eval()
    wanted = []
    for src, mt, ref in zip(TEXTS.sources, TEXTS.hypotheses, TEXTS.references, strict=True):
        inputs = loaded.prepare_for_inference([{"src": src, "mt": mt, "ref": ref}])
        with torch.no_grad():
            wanted.append(float(loaded(**inputs)["score"]))
    assert wanted[0] != wanted[1]
    for name in (model, model / "checkpoints" / "model.ckpt"):
        found = comet.score(comet.load(str(name)), TEXTS)
        assert found == pytest.approx(sum(wanted) / 2, abs=1e-5)


@needs_comet
def test_evaluate_shows_and_writes_it(zcode: Run, data: Path, model: Path, tmp_path: Path) -> None:
    run(
        "fairseq-train", data, *TASK, *MODEL, "--criterion", "multitask_summed_loss", "--optimizer",
        "sgd", "--lr", "0.1", "--max-tokens", "2000", "--max-update", "1", "--disable-validation",
        "--cpu", "--num-workers", "0", "--data-buffer-size", "0", "--save-dir", tmp_path,
    )  # fmt: skip
    out = tmp_path / "results.json"
    ended = zcode(
        *("evaluate", data, "--path", tmp_path / "checkpoint_last.pt", "--pairs", "de-en,en-de"),
        *("--comet", model, "--out", out, "--", "--max-len-b", "5"),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["comet_model"] == str(model)
    scorer = comet.load(str(model))
    scores = []
    for entry in record["directions"].values():
        texts = Translations(entry["sources"], entry["hypotheses"], entry["references"])
        scores.append(comet.score(scorer, texts))
        assert entry["comet"] == pytest.approx(scores[-1], abs=1e-6)
    assert record["means"]["all"]["comet"] == pytest.approx(sum(scores) / 2, abs=1e-6)
    header = next(line for line in ended.stdout.splitlines() if line.startswith("direction"))
    assert header.split() == ["direction", "sentences", "BLEU", "chrF++", "COMET"]
    assert f"\nCOMET: {model} (unbabel-comet " in ended.stdout


@needs_comet
def test_a_model_that_is_none_is_told_in_one_line(model: Path, tmp_path: Path) -> None:
    for name, message in (
        (tmp_path, f"--comet {tmp_path}: the folder holds no checkpoints/model.ckpt"),
        ("no/such-model", "--comet no/such-model: no such file or folder, and no model of this "
         "name can be fetched: give the folder of a model that you have"),
        (model / "hparams.yaml", f"--comet {model}/hparams.yaml: no model of COMET \\(.+\\): give "
         "a folder with hparams.yaml and checkpoints/model.ckpt"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{message}$"):
            comet.load(str(name))


@pytest.mark.skipif(INSTALLED, reason="runs where unbabel-comet is not installed")
def test_without_the_package_nothing_is_translated(zcode: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    ended = zcode("evaluate", data, "--path", tmp_path / "x.pt", "--comet", "some/model")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "zcode evaluate: error: --comet needs the package unbabel-comet: pip install '.[comet]'\n"
    )
