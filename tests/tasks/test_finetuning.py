"""From a multitask checkpoint on to other data: a new language, another kind of task."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import MODEL, TASK, command, generate, lines, records, run, train

from zcode_plugin.checkpoint import config, io

PRETRAIN = (
    "--multitask", "mt:1,dae:0.2,mlm:0.2,electra:0.1", "--objective-token", "--max-update", "80",
    "--warmup-updates", "50", "--lr-scheduler", "inverse_sqrt", "--validate-interval", "100",
    "--log-interval", "100", "--multitask-max-tokens", "dae:200,mlm:200,electra:200",
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four objectives in two languages."""
    save_dir = tmp_path_factory.mktemp("pretrained")
    train(reversal, save_dir, *PRETRAIN)
    return save_dir / "checkpoint_last.pt"


def entries(output: str) -> list[dict[str, str]]:
    """What training logged of each update."""
    return records(output, "train_inner")


def write_pair(
    directory: Path, src: str, tgt: str, to_target: Callable[[list[str]], list[str]]
) -> Path:
    """Binarised sentences of a..j and a target made of each, with a dictionary of their own."""
    draw = random.Random(2)
    for split, count in (("train", 2000), ("valid", 50), ("test", 100)):
        texts = [draw.choices("abcdefghij", k=draw.randint(3, 6)) for _ in range(count)]
        for lang, side in ((src, texts), (tgt, [to_target(words) for words in texts])):
            text = "".join(" ".join(words) + "\n" for words in side)
            (directory / f"{split}.{lang}").write_text(text)
    prefixes = [part for split in ("train", "valid", "test")
                for part in (f"--{split}pref", directory / split)]  # fmt: skip
    run("fairseq-preprocess", "-s", src, "-t", tgt, "--joined-dictionary", *prefixes,
        "--destdir", directory / "data")  # fmt: skip
    return directory / "data"


@pytest.fixture(scope="module")
def new_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cc is aa backwards in capitals: words that no old dictionary has."""
    directory = tmp_path_factory.mktemp("new")
    return write_pair(directory, "aa", "cc", lambda words: [w.upper() for w in words[::-1]])


GROWN = ("--langs", "aa,bb,cc", "--lang-pairs", "aa-cc", "--objective-token")


@pytest.fixture
def grown(
    configure: Callable[..., Any], pretrained: Path, new_language: Path, tmp_path: Path
) -> Callable[..., Any]:
    """Options of a run that goes on with another language, and further ones."""
    start = ("--finetune-from-model", str(pretrained), "--save-dir", str(tmp_path))
    return lambda *options: configure(new_language, *GROWN, *start, *options)


def test_rows_of_a_grown_dictionary(
    grown: Callable[..., Any], pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from fairseq import tasks

    cfg = grown()
    task = tasks.setup_task(cfg.task)
    with caplog.at_level("INFO"):
        model = task.build_model(cfg.model)
        state = io.load(pretrained)
        fresh = model.encoder.embed_tokens.weight.detach().clone()
        model.load_state_dict({**state["model"]}, strict=True)
    old = state["task_state"]["symbols"].split("\n")
    embeddings, before = model.encoder.embed_tokens.weight, state["model"]
    new = [symbol for symbol in task.dictionary.symbols if symbol not in old]
    assert set(new) >= {*"ABCDEFGHIJ", "__cc__"}
    for row, symbol in enumerate(task.dictionary.symbols):
        wanted = (
            before["encoder.embed_tokens.weight"][old.index(symbol)]
            if symbol in old
            else fresh[row]
        )
        assert torch.equal(embeddings[row], wanted), symbol
    assert embeddings is model.decoder.output_projection.weight
    assert f"vocabulary: {len(task.dictionary) - len(new)} symbols as in" in caplog.text
    for head in ("mlm", "electra"):
        assert f"the head of {head}: left out of the checkpoint" in caplog.text
    # Only once: what this run saves has its own rows.
    model.load_state_dict({**model.state_dict()}, strict=True)


def test_a_gate_by_numbers_of_tokens_is_told_that_they_changed(
    grown: Callable[..., Any],
    pretrained: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from fairseq import tasks

    state = io.load(pretrained)
    for gate in ("learned", "hash"):
        config.put(state["cfg"]["model"], "moe_gate", gate)
        io.save(state, tmp_path / "start.pt")
        cfg = grown("--finetune-from-model", str(tmp_path / "start.pt"))
        tasks.setup_task(cfg.task).build_model(cfg.model)
        assert ("symbols have another number than in" in caplog.text) == (gate == "hash")


def test_averages_of_another_vocabulary_are_refused(
    grown: Callable[..., Any], pretrained: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """Stock would load them row by row, and each symbol have the rows of another."""
    from fairseq import tasks

    state = io.load(pretrained)
    state["extra_state"]["ema"] = state["model"]
    io.save(state, tmp_path / "start.pt")
    cfg = grown("--finetune-from-model", str(tmp_path / "start.pt"), "--store-ema")
    task = tasks.setup_task(cfg.task)
    told = refusal(lambda: task.build_model(cfg.model))
    assert f"--store-ema: the averages in {tmp_path}/start.pt are of another vocabulary" in told


@pytest.fixture
def tuned(
    configure: Callable[..., Any], pretrained: Path, reversal: Path, tmp_path: Path
) -> Callable[..., Any]:
    """Options of a run that goes on with the same languages, and further ones."""
    start = ("--finetune-from-model", str(pretrained), "--save-dir", str(tmp_path))
    return lambda *options: configure(reversal, "--objective-token", *start, *options)


def test_a_gate_of_another_shape_than_the_files_is_refused(
    tuned: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tuned("--moe-gate-sees-token")
    assert "--moe-gate-sees-token False, this run True: drop the flag" in capsys.readouterr().err


def test_a_gate_without_weights_is_refused_where_the_file_has_some(
    tuned: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned("--moe-gate", "learned")  # as it is
    with pytest.raises(SystemExit, match="2"):
        tuned("--moe-gate", "hash")
    assert "has --moe-gate learned, this run hash: drop the flag" in capsys.readouterr().err


def test_experts_elsewhere_than_in_the_file_are_refused(
    tuned: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned("--moe-expert-count", "4,4")  # as it is
    for flags, found in {
        ("--moe-expert-count", "8"): "encoder layer 2 (8), decoder layer 2 (8)",
        ("--decoder-moe-freq", "0"): "encoder layer 2 (4)",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            tuned(*flags)
        said = capsys.readouterr().err
        assert f"in encoder layer 2 (4), decoder layer 2 (4), this run in {found}: drop" in said


def test_the_shape_is_that_of_the_checkpoint_whatever_became_of_the_first_file(
    configure: Callable[..., Any], pretrained: Path, reversal: Path, tmp_path: Path
) -> None:
    from fairseq.models import ARCH_CONFIG_REGISTRY

    state = io.load(pretrained)
    for name, value in (("moe_top_k", 2), ("activation_fn", "gelu"), ("moe_balance", "bias")):
        config.put(state["cfg"]["model"], name, value)
    first = tmp_path / "first.pt"
    io.save(state, first)
    run = (reversal, "--objective-token", "--save-dir", str(tmp_path / "run"))
    tuned = configure(*run, "--finetune-from-model", str(first)).model
    assert (tuned.moe_top_k, tuned.activation_fn, tuned.moe_balance) == (2, "gelu", "bias")

    # What it saves is complete: a file of another shape under that name says nothing to it.
    io.save(io.load(pretrained), first)
    ARCH_CONFIG_REGISTRY[tuned.arch](tuned)
    assert (tuned.moe_top_k, tuned.activation_fn) == (2, "gelu")

    # Nor does a second start look there, with the flag or without.
    (tmp_path / "run").mkdir()
    state["cfg"]["model"] = tuned
    io.save(state, tmp_path / "run" / "checkpoint_last.pt")
    first.unlink()
    for flags in ((), ("--finetune-from-model", str(first))):
        resumed = configure(*run, *flags).model
        assert (resumed.moe_top_k, resumed.activation_fn) == (2, "gelu")


def test_a_run_that_goes_on_with_another_shape_is_refused(
    configure: Callable[..., Any],
    pretrained: Path,
    reversal: Path,
    refusal: Callable[..., str],
) -> None:
    run = (reversal, "--objective-token", "--save-dir", str(pretrained.parent))
    told = f"{pretrained} has --moe-gate-sees-token False, this run True: drop the flag"
    assert told in refusal(lambda: configure(*run, "--moe-gate-sees-token"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["language", "summary"])
def test_a_new_language_and_summaries_are_learnt(
    pretrained: Path, new_language: Path, tmp_path: Path, kind: str
) -> None:
    data, src, tgt = new_language, "aa", "cc"
    if kind == "summary":
        src, tgt = "document", "summary"
        data = write_pair(tmp_path, src, tgt, lambda words: [max(words), words[-1]])
    languages = ("--langs", f"aa,bb,{src},{tgt}" if kind == "summary" else "aa,bb,cc")
    options = (*languages, "--objective-token", "--lang-pairs", f"{src}-{tgt}")
    train(
        data, tmp_path / "tuned", *options, "--finetune-from-model", pretrained,
        "--max-update", "400", "--log-interval", "100", "--validate-interval", "100",
    )  # fmt: skip
    tuned = tmp_path / "tuned" / "checkpoint_last.pt"
    output = generate(data, tuned, src, tgt, *languages, "--objective-token")
    right = [
        hypothesis.split("\t")[2] == reference.split("\t")[1]
        for hypothesis, reference in zip(lines(output, "H"), lines(output, "T"), strict=True)
    ]
    assert sum(right) > 80, sum(right)


def test_a_second_start_resumes_with_its_own_rows(
    pretrained: Path, new_language: Path, tmp_path: Path
) -> None:
    options = (*GROWN, "--finetune-from-model", pretrained, "--disable-validation")
    first = train(new_language, tmp_path, *options, "--max-update", "20")
    again = train(new_language, tmp_path, *options, "--max-update", "22")
    before = [float(entry["loss"]) for entry in entries(first)]
    after = [float(entry["loss"]) for entry in entries(again)]
    assert len(after) == 2
    assert max(after) < before[-1] + 0.5 < before[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --objective-token, with which it was trained"),
        (
            ("--objective-token", "--langs", "bb,aa"),
            "the checkpoint's languages are aa,bb, this run's are bb,aa: give --langs aa,bb",
        ),
    ],
)
def test_translation_with_other_symbols_is_refused(
    pretrained: Path, reversal: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = command(
        "fairseq-generate", reversal, *TASK, "-s", "aa", "-t", "bb", "--path", pretrained, "--cpu",
        *arguments,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_resuming_with_other_symbols_is_refused(
    pretrained: Path, new_language: Path, tmp_path: Path
) -> None:
    done = command(
        "fairseq-train", new_language, *TASK, *MODEL, *GROWN, "--criterion",
        "multitask_summed_loss", "--optimizer", "adam", "--max-tokens", "500", "--cpu",
        "--restore-file", pretrained, "--reset-optimizer", "--save-dir", tmp_path / "save",
        fresh=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "start from it with --finetune-from-model" in done.stderr


def test_worker_processes_make_the_same_batches(reversal: Path, tmp_path: Path) -> None:
    losses = []
    for workers in ("0", "2"):
        output = train(
            reversal, tmp_path / workers, "--multitask", "mt:1,dae:0.5,mlm:0.5,electra:0.2",
            "--max-tokens", "200", "--max-update", "6", "--num-workers", workers,
            "--dae-noise-schedule", "0.5@1,1@2", "--disable-validation", "--no-save",
        )  # fmt: skip
        names = [f"{name}_loss" for name in ("mt", "dae", "mlm", "electra")]
        losses.append([[entry[name] for name in names] for entry in entries(output)])
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
