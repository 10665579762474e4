"""What the task reads out of a data directory, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fairseq import tasks
from fairseq.logging import metrics

from zcode_plugin.data.objectives import KNOWN

Configure = Callable[..., Any]


def load(configure: Configure, data: Path, *arguments: str, split: str = "train") -> Any:
    cfg = configure(data, *arguments)
    task = tasks.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.load_dataset(split)
    return task


def first_batch(task: Any, split: str = "train") -> dict[str, Any]:
    dataset = task.dataset(split)
    batch = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=200)[0]
    return dataset.collater([dataset[index] for index in batch])


def test_all_directions_and_languages_of_the_data_are_found(
    configure: Configure, reversal: Path
) -> None:
    task = load(configure, reversal, "--multitask", "mt,dae")
    assert [str(pair) for pair in task.pairs] == ["aa-bb", "bb-aa"]
    assert task.langs == ["aa", "bb"]
    mt, dae = task.dataset("train").streams
    assert [(corpus.name, len(corpus)) for corpus in mt.corpora] == [
        ("aa-bb", 4000),
        ("bb-aa", 4000),
    ]
    assert [(corpus.name, len(corpus)) for corpus in dae.corpora] == [("aa", 4000), ("bb", 4000)]


def test_symbols_are_appended_and_nothing_is_renumbered(
    configure: Configure, reversal: Path
) -> None:
    from fairseq.data import Dictionary

    stock = Dictionary.load(str(reversal / "dict.aa.txt"))
    task = load(configure, reversal)
    symbols = task.dictionary.symbols
    assert symbols[: len(stock)] == stock.symbols
    assert symbols[len(stock) :] == ["__aa__", "__bb__", "<mask>"]


def test_a_dictionary_that_has_the_symbols_stays_as_it_is(
    configure: Configure, reversal: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(reversal, data)
    for path in data.glob("dict.*.txt"):
        path.write_text("__bb__ 1\n<mask> 1\n__aa__ 1\n" + path.read_text())
    task = tasks.setup_task(configure(data).task)
    assert task.dictionary.symbols.count("<mask>") == 1
    assert task.dictionary.symbols[4:7] == ["__bb__", "<mask>", "__aa__"]


@pytest.mark.parametrize(
    ("options", "source", "target"),
    [
        ([], None, None),
        (["--encoder-langtok", "src"], "__aa__", None),
        (["--encoder-langtok", "tgt"], "__bb__", None),
        (["--encoder-langtok", "tgt", "--decoder-langtok"], "__bb__", "__bb__"),
    ],
)
def test_language_tokens(
    configure: Configure, reversal: Path, options: list[str], source: str | None, target: str | None
) -> None:
    task = load(configure, reversal, "--lang-pairs", "aa-bb", *options)
    batch = first_batch(task)["mt"]
    symbols, pad, eos = task.dictionary.symbols, task.dictionary.pad(), task.dictionary.eos()
    for row in batch["net_input"]["src_tokens"]:
        tokens = row[row != pad].tolist()
        assert tokens[-1] == eos
        assert symbols[tokens[0]] == source if source else symbols[tokens[0]] in "abcdefghij"
    for row, shifted in zip(batch["target"], batch["net_input"]["prev_output_tokens"], strict=True):
        tokens = row[row != pad].tolist()
        assert tokens[-1] == eos
        assert symbols[tokens[0]] == target if target else symbols[tokens[0]] in "abcdefghij"
        assert shifted[shifted != pad].tolist() == [eos, *tokens[:-1]]


def test_objective_tokens(configure: Configure, reversal: Path) -> None:
    task = load(
        configure, reversal, "--multitask", "mt,dae,mlm,electra", "--objective-token",
        "--encoder-langtok", "tgt",
    )  # fmt: skip
    symbols = task.dictionary.symbols
    first = symbols.index("<mask>") + 1
    assert symbols[first:] == [f"<objective_{name}>" for name in KNOWN]
    for name, batch in first_batch(task).items():
        for row in batch["net_input"]["src_tokens"]:
            tokens = [symbols[token] for token in row if token != task.dictionary.pad()]
            assert tokens[0] == f"<objective_{name}>"
            assert tokens[1] in ("__aa__", "__bb__")
            assert tokens[2] in {*"abcdefghij", "<mask>"}
    assert not {*range(first, len(symbols))} & {*task.loader.ordinary}


def test_noise_grows_from_epoch_to_epoch_in_training_alone(
    configure: Configure, reversal: Path
) -> None:
    task = load(
        configure, reversal, "--multitask", "dae", "--dae-noise-schedule", "0@1,1@3",
        "--dae-mask", "0.4", "--dae-delete", "0", "--dae-shuffle-distance", "0",
    )  # fmt: skip
    task.load_dataset("valid")
    mask = task.dictionary.index("<mask>")

    def share(split: str, epoch: int) -> float:
        dataset = task.dataset(split)
        dataset.set_epoch(epoch)
        rows = [dataset[index] for index in dataset.ordered_indices()[:600]]
        masks = sum(int((row["source"] == mask).sum()) for row in rows)
        return masks / sum(len(row["target"]) - 1 for row in rows)

    for epoch, expected in ((1, 0.0), (2, 0.2), (3, 0.4), (4, 0.4)):
        # About 2,400 words: five standard deviations are 0.05.
        assert share("train", epoch) == pytest.approx(expected, abs=0.05)
        assert share("valid", epoch) == pytest.approx(0.4, abs=0.09)


def test_denoising_restores_the_clean_sentence(configure: Configure, reversal: Path) -> None:
    task = load(
        configure, reversal, "--multitask", "dae", "--mono-langs", "aa", "--dae-mask", "0.5",
        "--encoder-langtok", "tgt",
    )  # fmt: skip
    clean = set((reversal.parent / "train.aa").read_text().splitlines())
    batch = first_batch(task)["dae"]
    assert {
        task.dictionary.string(row, extra_symbols_to_ignore=[1]) for row in batch["target"]
    } <= clean
    sources = batch["net_input"]["src_tokens"]
    assert (sources == task.dictionary.index("<mask>")).any()
    assert (sources == task.dictionary.index("__aa__")).sum() == len(sources)
    assert not (batch["target"] == task.dictionary.index("<mask>")).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--multitask", "mt,lm"], "unknown objective 'lm'"),
        (["--multitask-max-tokens", "dae:5"], "dae is not among --multitask mt"),
        (["--lang-pairs", "aabb"], "'aabb' is no pair, write it as src-tgt"),
        (
            ["--lang-pairs", "aa-cc", "--langs", "aa,bb,cc"],
            "has no train.aa-cc.* nor train.cc-aa.*",
        ),
        (["--lang-pairs", "aa-cc", "--langs", "aa,bb"], "language cc of the pair aa-cc is not in"),
        (["--langs", "aa,bb", "--lang-dict", "x"], "--langs and --lang-dict exclude each other"),
        (["--lang-dict", "/nowhere"], "cannot read the list of languages /nowhere"),
        (["--multitask", "dae", "--mono-langs", "cc"], "--mono-langs: cc is none of the languages"),
        (["-s", "aa"], "--source-lang and --target-lang belong together"),
        (
            ["--sampling-method", "temperature", "--sampling-temperature", "0"],
            "--sampling-temperature 0.0 must be 0.05 or more",
        ),
        (
            ["--sampling-method", "temperature", "--sampling-temperature-end", "-1"],
            "--sampling-temperature-end -1.0 must be 0.05 or more",
        ),
        (["--sampling-temperature-end", "5"], "goes with --sampling-method temperature"),
        (["--sampling-weights", "aa-bb"], "--sampling-weights: 'aa-bb' is no NAME:FACTOR"),
        (["--sampling-weights", "aa-bb:0"], "--sampling-weights: 'aa-bb:0' is no NAME:FACTOR"),
        (
            ["--sampling-weights", "aa-cc:2"],
            "--sampling-weights: aa-cc is none of the corpora aa-bb, bb-aa",
        ),
        (["--dae-noise-schedule", "1"], "'1' is no FACTOR@EPOCH such as 0.5@3"),
        (["--dae-noise-schedule", "1@5,0@2"], "the epochs must ascend"),
        (["--dae-noise-schedule", "1@1,20@5"], "20 times the rates: --dae-delete 2.0 must lie in"),
        (["--dae-mask", "1.5"], "--dae-mask 1.5 must lie in"),
        (["--moe-top-k", "9"], "--moe-top-k 9 is more than --moe-expert-count 4"),
        (["--moe-expert-count", "0"], "--moe-expert-count 0 is too small: give at least 1"),
        (["--moe-jitter-eps", "1"], "--moe-jitter-eps 1.0 must be less than 1"),
        (["--moe-capacity-factor", "inf"], "--moe-capacity-factor inf is no finite number"),
        (["--moe-capacity-factor", "nan"], "--moe-capacity-factor nan is no finite number"),
        (["--dataset-impl", "raw"], "--dataset-impl raw: text is not read"),
        (["--moe-capacity-factor", "-1"], "--moe-capacity-factor -1.0 is too small"),
        (
            ["--moe-batch-prioritized-routing", "--moe-token-priority", "position"],
            "contradicts --moe-token-priority position",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    configure: Configure,
    reversal: Path,
    refusal: Callable[..., str],
    arguments: list[str],
    message: str,
) -> None:
    line = refusal(lambda: load(configure, reversal, *arguments))
    assert line.startswith("zcode_plugin: error: ")
    assert message in line


def test_monolingual_text_of_a_language_that_is_none_of_the_others(
    configure: Configure, reversal: Path, refusal: Callable[..., str], tmp_path: Path
) -> None:
    for path in reversal.iterdir():
        shutil.copy(path, tmp_path)
        if "aa-None" in path.name:
            shutil.copy(path, tmp_path / path.name.replace("aa", "cc"))
    message = refusal(lambda: load(configure, tmp_path, "--multitask", "dae"))
    assert f"{tmp_path} has monolingual text of cc, which is none of the languages aa,bb" in message
    assert "--mono-langs: cc" not in message


def test_missing_and_damaged_data_are_named(
    configure: Configure, reversal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(directory: Path, *arguments: str) -> str:
        with pytest.raises(SystemExit):
            load(configure, directory, *arguments)
        return capsys.readouterr().err

    assert f"no data directory {tmp_path / 'none'}" in message(tmp_path / "none")
    data = tmp_path / "data"
    shutil.copytree(reversal, data)
    (data / "dict.bb.txt").write_text("other 1\n")
    assert "dict.aa.txt and" in message(data)
    shutil.copy(reversal / "dict.bb.txt", data)
    for path in data.glob("train.*-None.*"):
        path.unlink()
    assert "has no monolingual data" in message(data, "--multitask", "mt,dae")
    (data / "train.aa-bb.aa.idx").write_bytes(b"MMIDIDX\x00\x00")
    assert "train.aa-bb.aa.idx" in message(data)


def test_shards_are_looked_at_before_the_first_epoch(
    configure: Configure, reversal: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    second = tmp_path / "second"
    both = Path(f"{reversal}:{second}")
    assert f"no data directory {second}" in refusal(lambda: load(configure, both))
    shutil.copytree(reversal, second)
    for path in second.glob("train.bb-None.*"):
        path.unlink()
    # What one shard has is enough for a weight; a language may be in one alone.
    weights = "--sampling-weights"
    task = load(configure, both, "--multitask", "mt,dae", weights, "bb:2")
    task.load_dataset("train", epoch=2)
    assert [corpus.name for corpus in task.dataset("train").streams[1].corpora] == ["aa"]
    message = "--sampling-weights: cc is none of the corpora aa-bb, bb-aa, aa, bb"
    line = refusal(lambda: load(configure, both, "--multitask", "mt,dae", weights, "cc:2"))
    assert message in line
    for path in second.glob("train.aa-bb.*"):
        path.unlink()
    assert f"{second} has no train.aa-bb.*" in refusal(lambda: load(configure, both))
    symbols = (reversal / "dict.bb.txt").read_text().splitlines(keepends=True)
    (second / "dict.bb.txt").write_text("".join(reversed(symbols)))
    line = refusal(lambda: load(configure, both))
    assert f"{reversal / 'dict.aa.txt'} and {second / 'dict.bb.txt'} differ" in line


def test_a_language_with_a_dash_is_not_left_out(
    configure: Configure, reversal: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(reversal, data)
    for side in ("aa", "zh-Hans"):
        for end in ("bin", "idx"):
            source = reversal / f"train.aa-bb.{'aa' if side == 'aa' else 'bb'}.{end}"
            shutil.copy(source, data / f"train.aa-zh-Hans.{side}.{end}")
    line = refusal(lambda: load(configure, data))
    assert f"{data}/train.aa-zh-Hans.aa.idx: which dash of aa-zh-Hans parts its languages?" in line
    load(configure, data, "--lang-pairs", "aa-bb")


def test_both_directions_and_all_objectives_share_open_files(
    configure: Configure, reversal: Path
) -> None:
    task = load(configure, reversal, "--multitask", "mt,dae,mlm")
    mt, dae, mlm = task.dataset("train").streams
    forth, back = mt.corpora
    assert forth.source is back.target
    assert forth.target is back.source
    assert [one.tokens for one in dae.corpora] == [one.tokens for one in mlm.corpora]


def test_a_direction_needs_no_more_languages_than_its_own(
    configure: Configure, reversal: Path, tmp_path: Path
) -> None:
    """Of a folder that holds more pairs than the model was trained on."""
    data = tmp_path / "data"
    shutil.copytree(reversal, data)
    for end in ("bin", "idx"):
        for side, lang in (("aa", "aa"), ("bb", "cc")):
            shutil.copy(reversal / f"test.aa-bb.{side}.{end}", data / f"train.aa-cc.{lang}.{end}")
    cfg = configure(data, "--langs", "aa,bb", "-s", "aa", "-t", "bb")
    task = tasks.setup_task(cfg.task)
    task.load_dataset("test")
    assert task.langs == ["aa", "bb"]


def test_limits_that_no_sentence_keeps(
    configure: Configure, reversal: Path, refusal: Callable[..., str]
) -> None:
    limits = ("--multitask-max-tokens", "dae:2")
    dataset = load(configure, reversal, "--multitask", "mt,dae", *limits).dataset("train")
    line = refusal(lambda: dataset.batch_by_size(dataset.ordered_indices(), max_tokens=200))
    assert "no sentence of dae fits a batch: raise --max-tokens, or its" in line


def test_validation_has_all_data_once(configure: Configure, reversal: Path) -> None:
    task = load(configure, reversal, "--multitask", "mt,dae", split="valid")
    dataset = task.dataset("valid")
    sampler = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=500)
    counts = {"mt": 0, "dae": 0}
    for batch in sampler:
        [(name, part)] = dataset.collater([dataset[index] for index in batch]).items()
        counts[name] += part["nsentences"]
    assert counts == {"mt": 200, "dae": 200}


def test_sampling_weights_of_directions_and_languages(configure: Configure, reversal: Path) -> None:
    task = load(
        configure, reversal, "--multitask", "mt,dae", "--sampling-weights", "aa-bb:3,bb:0.25"
    )
    mt, dae = task.dataset("train").streams
    assert [int((mt.corpus_of == number).sum()) for number in (0, 1)] == [6000, 2000]
    assert [int((dae.corpus_of == number).sum()) for number in (0, 1)] == [6400, 1600]


def test_amp_is_refused_where_there_are_experts(
    configure: Configure, reversal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(configure, reversal, "--amp", "--moe-freq", "0")
    with pytest.raises(SystemExit, match="2"):
        load(configure, reversal, "--amp")
    assert "--amp cannot train experts" in capsys.readouterr().err


def test_a_criterion_of_stock_is_refused(
    configure: Configure, reversal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configure(reversal, "--criterion", "cross_entropy")
    task = tasks.setup_task(cfg.task)
    with pytest.raises(SystemExit, match="2"):
        task.build_criterion(cfg.criterion)
    assert capsys.readouterr().err == (
        "zcode_plugin: error: --criterion cross_entropy cannot read this task's batches, which "
        "hold one of each objective: give --criterion multitask_summed_loss\n"
    )


def test_the_clock_of_a_run_that_is_resumed_goes_on(configure: Configure, reversal: Path) -> None:
    """Meters that come from a checkpoint within an epoch stand still."""
    metrics.reset()
    metrics.log_start_time("wall")
    metrics.load_state_dict(metrics.state_dict())
    assert metrics.get_meter("default", "wall").start_time is None
    tasks.setup_task(configure(reversal).task).begin_epoch(1, None)
    assert metrics.get_meter("default", "wall").start_time is not None
