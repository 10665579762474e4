"""The parts of `zcode prepare` that need no command."""

from pathlib import Path

import pytest

from zcode_plugin.preparation import manifest
from zcode_plugin.preparation.binarise import (
    SideStatistics,
    preprocess_arguments,
    read_report,
)
from zcode_plugin.preparation.inventory import ParallelText, Selection
from zcode_plugin.preparation.reading import (
    CleanText,
    clean_parallel,
    is_blank,
    normalise_space,
)
from zcode_plugin.preparation.subwords import (
    SubwordOptions,
    dictionary_symbols,
    distinct_lines,
    sample_sizes,
    sampled_lines,
)

COLUMNS = ["en", "de", "fr"]


@pytest.mark.parametrize(
    ("selection", "pairs"),
    [
        (Selection(), [("en", "de"), ("en", "fr")]),
        (Selection(every_pair=True), [("en", "de"), ("en", "fr"), ("de", "fr")]),
        (Selection(langs=("fr", "de"), every_pair=True), [("de", "fr")]),
        (Selection(langs=("fr", "en")), [("en", "fr")]),
        (Selection(pairs=(("fr", "de"), ("en", "it"))), [("fr", "de")]),
    ],
)
def test_columns_of_a_tsv_file(selection: Selection, pairs: list[tuple[str, str]]) -> None:
    assert selection.columns(COLUMNS) == pairs


@pytest.mark.parametrize(
    ("selection", "langs", "wanted"),
    [
        (Selection(), ["en", "de"], True),
        (Selection(langs=("en",)), ["en", "de"], False),
        (Selection(langs=("en",)), ["en"], True),
        (Selection(pairs=(("en", "de"),)), ["de", "en"], True),
        (Selection(pairs=(("en", "de"),)), ["en", "fr"], False),
        (Selection(pairs=(("en", "de"),)), ["fr"], True),
    ],
)
def test_texts_that_are_wanted(selection: Selection, langs: list[str], wanted: bool) -> None:
    assert selection.wants(langs) is wanted


@pytest.mark.parametrize(
    ("temperature", "limit", "sizes"),
    [
        (1.0, 10_000, {"en": 900, "de": 100, "is": 4}),
        (1.0, 251, {"en": 225, "de": 25, "is": 1}),
        (2.0, 10_000, {"en": 717, "de": 239, "is": 48}),  # 1004 as 30 : 10 : 2
        (1e9, 10_000, {"en": 335, "de": 335, "is": 335}),
    ],
)
def test_sample_sizes(temperature: float, limit: int, sizes: dict[str, int]) -> None:
    assert sample_sizes({"en": 900, "de": 100, "is": 4}, temperature, limit) == sizes


def test_training_text_has_each_sentence_once_and_repeats_small_languages(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "train.en-de.en").write_text("a\nb\na\n", encoding="utf-8")
    (text / "train.en-de.de").write_text("x\nx\nx\n", encoding="utf-8")
    (text / "mono.train.en").write_text("b\nc\nd\n", encoding="utf-8")
    (text / "test.en-de.en").write_text("t\n", encoding="utf-8")
    texts = [
        CleanText("train", "en-de", ("en", "de"), 3, 0),
        CleanText("test", "en-de", ("en", "de"), 1, 0),
        CleanText("train", "en", ("en",), 3, 0),
    ]
    paths = distinct_lines(texts, text, tmp_path / "distinct")
    assert {lang: path.read_text(encoding="utf-8") for lang, path in paths.items()} == {
        "de": "x\n",
        "en": "a\nb\nc\nd\n",
    }
    even = sorted(sampled_lines(paths, SubwordOptions(temperature=1e9, sentences=4)))
    assert len(even) == 4
    assert even[2:] == ["x", "x"]
    assert set(even[:2]) < {"a", "b", "c", "d"}
    assert sorted(sampled_lines(paths, SubwordOptions(temperature=1e9, sentences=4))) == even


def test_blank_pairs_are_dropped_when_asked(tmp_path: Path) -> None:
    paths = tmp_path / "train.en-de.en", tmp_path / "train.en-de.de"
    paths[0].write_bytes("\ufeffa  house\r\nb\r\nc\u2028d\r\n".encode())
    paths[1].write_bytes("x\n \u200b\t\nz".encode())
    text = ParallelText("train", ("en", "de"), paths)
    (tmp_path / "clean").mkdir()
    assert clean_parallel(text, tmp_path / "clean", skip_blank=True) == CleanText(
        "train", "en-de", ("en", "de"), sentences=2, skipped=1
    )
    assert (tmp_path / "clean" / "train.en-de.en").read_bytes() == b"a house\nc d\n"
    assert (tmp_path / "clean" / "train.en-de.de").read_bytes() == b"x\nz\n"


def test_dictionary_leaves_out_what_it_appends() -> None:
    pieces = ["<unk>", "<s>", "</s>", "▁the", "<mask>", "__de__", "<pad>", "s"]
    assert dictionary_symbols(pieces, ["de", "en"]) == [
        *("▁the", "s", "__de__", "__en__", "<mask>")
    ]


@pytest.mark.parametrize(
    ("text", "blank"),
    [("", True), (" \t\u3000", True), ("\u200b\ufeff", True), (" .", False), ("\u0301", False)],
)
def test_blank_is_what_cannot_be_seen(text: str, blank: bool) -> None:
    assert is_blank(text) is blank


def test_white_space_of_all_kinds_becomes_one_space() -> None:
    assert normalise_space("\ta\u00a0 b\u2028c\x1cd ") == "a b c d"


def test_arguments_of_fairseq_preprocess() -> None:
    pair = [CleanText(split, "en-de", ("en", "de"), 1, 0) for split in ("train", "test")]
    assert preprocess_arguments(pair, Path("enc"), Path("d.txt"), Path("out")) == (
        *("--source-lang", "en", "--srcdict", "d.txt", "--target-lang", "de"),
        *("--joined-dictionary", "--trainpref", "enc/train.en-de", "--testpref", "enc/test.en-de"),
        *("--destdir", "out", "--workers", "1"),
    )
    mono = [CleanText("valid", "de", ("de",), 1, 0)]
    assert preprocess_arguments(mono, Path("enc"), Path("d.txt"), Path("out")) == (
        *("--source-lang", "de", "--srcdict", "d.txt", "--only-source"),
        *("--validpref", "enc/mono.valid", "--destdir", "out", "--workers", "1"),
    )


def test_report_of_fairseq_preprocess() -> None:
    log = (
        "2026-01-01 00:00:00 | INFO | fairseq_cli.preprocess | [en] Dictionary: 99 types\n"
        "2026-01-01 00:00:00 | INFO | fairseq_cli.preprocess | [en] /w/enc/train.en-de.en: "
        "2500 sents, 61234 tokens, 0.00163% replaced (by <unk>)\n"
        "2026-01-01 00:00:00 | INFO | fairseq_cli.preprocess | [de] /w/enc/train.en-de.de: "
        "2500 sents, 70000 tokens, 0.0% replaced (by <unk>)\n"
    )
    assert read_report(log, [CleanText("train", "en-de", ("en", "de"), 2500, 0)]) == [
        SideStatistics("train", "en-de", "en", 2500, 61234, 0.00163),
        SideStatistics("train", "en-de", "de", 2500, 70000, 0.0),
    ]


def test_differences_of_descriptions() -> None:
    old = {"format": 1, "options": {"--langs": None, "--x": 1}, "inputs": {"a": "00", "b": "11"}}
    new = {"format": 1, "options": {"--langs": "en", "--x": 1}, "inputs": {"a": "01", "c": "22"}}
    assert manifest.differences(old, old) == []
    assert manifest.differences(old, new) == ["--langs", "a", "b", "c"]
    assert manifest.differences({}, new) == ["format"]
