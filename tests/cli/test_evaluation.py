"""Reading fairseq-generate's output, scoring it, and showing the scores."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.evaluation import generation, scores
from zcode_plugin.evaluation.generation import Translations
from zcode_plugin.evaluation.scores import Score

DE_EN, EN_DE, FR_EN, DE_FR = (
    Pair(*name.split("-")) for name in ("de-en", "en-de", "fr-en", "de-fr")
)

HYPOTHESES = ["The cat sat on the mat.", "It's raining in the small old town", "A dog!"]
REFERENCES = ["The cat sat on a mat.", "It is raining in the old town.", "The dog!"]
SOURCES = ["Die Katze saß auf der Matte.", "Es regnet in der Altstadt.", "Der dog!"]

OUTPUT = (
    "2026-01-01 | INFO | fairseq_cli.generate | D-9\tnot a translation\n"
    "S-10\t__en__ Die Katze\n"
    "T-10\tThe cat\u2028sat\n"
    "H-10\t-0.5\tThe cats\n"
    "D-10\t-0.5\tThe cat\n"
    "P-10\t-0.5 -0.5\n"
    "H-10\t-0.9\tA cat\n"
    "D-10\t-0.9\tA cat\n"
    "S-2\t__de__ __en__Ein Hund\n"
    "T-2\tA <<unk>>\n"
    "H-2\t-1.25\t\n"
    "D-2\t-1.25\t\n"
    "Generate test with beam=5: BLEU = 0.00\n"
)


def test_output_is_read_in_the_order_of_the_data_best_hypothesis_first() -> None:
    texts = generation.read_translations(OUTPUT, DE_EN)
    assert texts == Translations(
        sources=["Ein Hund", "Die Katze"],
        hypotheses=["", "The cat"],
        references=["A <<unk>>", "The cat\u2028sat"],
    )
    assert texts.unknown_references == 1


def test_without_detokenised_lines_hypotheses_are_used() -> None:
    output = "".join(line for line in OUTPUT.splitlines(keepends=True) if line[:2] != "D-")
    assert generation.read_translations(output, DE_EN).hypotheses == ["", "The cats"]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("T-2", "printed 1 references of 2 sentences of de-en"),
        ("T-", "printed 0 references of 2 sentences of de-en"),
        ("D-10", "printed 1 translations of 2 sentences of de-en"),
    ],
)
def test_incomplete_output_is_refused(lost: str, message: str) -> None:
    lines = OUTPUT.splitlines(keepends=True)
    output = "".join(line for line in lines if not line.startswith(lost))
    with pytest.raises(UserError, match=message):
        generation.read_translations(output, DE_EN)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("de-en", "X->en"),
        ("en-de", "en->X"),
        ("de-fr", "other"),
        ("de_DE-en_XX", "X->en"),
        ("eng_Latn-deu_Latn", "en->X"),
        ("enm-de", "other"),
    ],
)
def test_groups_of_directions(name: str, group: str) -> None:
    assert Pair(*name.split("-")).group == group


def test_directions_are_both_of_each_stored_pair(tmp_path: Path) -> None:
    for name in (
        *("test.en-de.en.idx", "test.en-de.de.idx", "test.fr-en.en.idx", "test.fr-en.fr.idx"),
        *("valid.it-en.it.idx", "test.de-None.de.idx", "test1.es-en.es.idx", "test.log"),
    ):
        (tmp_path / name).touch()
    stored = generation.choose_directions(None, tmp_path, "test")
    assert list(map(str, stored)) == ["de-en", "en-de", "en-fr", "fr-en"]
    assert generation.choose_directions("fr-en,de-en", tmp_path, "test") == [FR_EN, DE_EN]
    with pytest.raises(UserError, match=r"--pairs it-en: .* only test of de-en, en-de, en-fr"):
        generation.choose_directions("it-en", tmp_path, "test")
    with pytest.raises(UserError, match="holds no split valid1 of any pair: see --gen-subset"):
        generation.choose_directions(None, tmp_path, "valid1")


MULTITASK = {
    "_name": "multitask_multilingual",
    "data": "somewhere",
    "lang_pairs": "de-en,en-de",
    "langs": None,
    "lang_dict": "langs.txt",
    "encoder_langtok": "tgt",
    "decoder_langtok": True,
    "max_source_positions": 256,
    "multitask": "mt:1,dae:0.5",
}


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (
            MULTITASK,
            "--task multitask_multilingual --lang-pairs de-en,en-de --lang-dict langs.txt "
            "--encoder-langtok tgt --decoder-langtok --max-source-positions 256",
        ),
        (
            MULTITASK | {"langs": "de,en", "decoder_langtok": False, "encoder_langtok": None},
            "--task multitask_multilingual --lang-pairs de-en,en-de --langs de,en "
            "--max-source-positions 256",
        ),
        (
            Namespace(task="translation_multi_simple_epoch", langs=["de", "en"], lang_pairs=""),
            "--task translation_multi_simple_epoch --langs de,en",
        ),
        ({"_name": "translation", "langs": "de"}, "--task translation"),
    ],
)
def test_options_of_the_task_are_those_of_the_checkpoint(task: Any, arguments: str) -> None:
    assert " ".join(generation.task_arguments(task)) == arguments


def test_the_checkpoint_itself_names_its_languages() -> None:
    arguments = " ".join(generation.task_arguments(MULTITASK, ["de", "en"]))
    assert "--langs de,en " in arguments
    assert "--lang-dict" not in arguments


@pytest.mark.parametrize("source", ["[de] Ein Hund", "Ein Hund __de__", "__en__ Ein Hund"])
def test_language_tokens_are_no_part_of_sources(source: str) -> None:
    output = f"S-0\t{source}\nT-0\tA dog\nD-0\t-1\tA dog\n"
    assert generation.read_translations(output, DE_EN).sources == ["Ein Hund"]


def test_a_task_of_one_direction() -> None:
    task = {"_name": "translation", "source_lang": "de", "target_lang": "en"}
    every = [DE_EN, EN_DE, FR_EN]
    assert generation.trained_directions(every, task) == [DE_EN]
    assert generation.trained_directions(every, MULTITASK) == every
    assert generation.trained_directions(every, MULTITASK, ["en", "de"]) == [DE_EN, EN_DE]
    with pytest.raises(UserError, match="no data of the checkpoint's languages, en,it"):
        generation.trained_directions(every, MULTITASK, ["en", "it"])
    with pytest.raises(UserError, match="no data of de-en, in which the checkpoint was trained"):
        generation.trained_directions([FR_EN], task)


@pytest.mark.parametrize(
    ("task", "name"), [({"_name": "language_modeling"}, "language_modeling"), ({}, "not named")]
)
def test_other_tasks_are_refused(task: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"the checkpoint's task is {name}: zcode evaluate knows"):
        generation.task_arguments(task)


@pytest.mark.parametrize(
    ("symbols", "joining"),
    [
        ("the tree", ""),
        ("the hou@@", "--remove-bpe subword_nmt "),
        ("\u2581the use@@", "--remove-bpe sentencepiece "),
        (None, ""),  # fairseq-generate says that there is no dictionary
    ],
)
def test_arguments_of_fairseq_generate(tmp_path: Path, symbols: str | None, joining: str) -> None:
    if symbols is not None:
        text = "".join(f"{symbol} 1\n" for symbol in symbols.split())
        (tmp_path / "dict.en.txt").write_text(text, encoding="utf-8")
    arguments = generation.generate_arguments(
        tmp_path, Path("x.pt"), Path("plugin"), DE_EN, ["--task", "t"], ["--beam", "2"]
    )
    assert " ".join(arguments) == (
        f"{tmp_path} --path x.pt --user-dir plugin --task t -s de -t en {joining}"
        "--scoring sacrebleu --no-progress-bar --beam 2"
    )


def test_scores_are_those_of_sacrebleu() -> None:
    result = scores.score(Translations(SOURCES, HYPOTHESES, REFERENCES), "13a", copy_baseline=True)
    assert result.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert result.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert result.copy_bleu == sacrebleu.corpus_bleu(SOURCES, [REFERENCES]).score
    assert 0 < result.copy_bleu < result.bleu < 100
    assert result.sentences == 3
    version = sacrebleu.__version__
    assert (
        result.bleu_signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    )
    assert result.chrf_signature == (
        f"nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:{version}"
    )


def test_the_tokenizer_counts() -> None:
    texts = Translations(["x"], ["我喜欢小猫和狗"], ["我喜欢大猫和狗"])
    assert scores.score(texts, "13a", copy_baseline=False).bleu == 0
    chinese = scores.score(texts, "zh", copy_baseline=False)
    assert (
        chinese.bleu
        == sacrebleu.corpus_bleu(texts.hypotheses, [texts.references], tokenize="zh").score
    )
    assert chinese.bleu > 30
    assert "|tok:zh|" in chinese.bleu_signature
    assert chinese.copy_bleu is None


@pytest.mark.parametrize(
    ("lang", "chosen", "tokenizer"),
    [
        ("de", {}, "13a"),
        ("zh", {}, "zh"),
        ("zh_Hans", {}, "zh"),
        ("zho_Hans", {}, "zh"),
        ("jpn_Jpan", {}, "char"),
        ("tha", {}, "char"),
        ("ja", {}, "char"),
        ("ja", {"": "intl"}, "intl"),
        ("ja", {"": "intl", "ja": "ja-mecab"}, "ja-mecab"),
        ("ja_XX", {"ja": "ja-mecab"}, "ja-mecab"),
        ("de", {"ja": "ja-mecab"}, "13a"),
    ],
)
def test_tokenizers_of_languages(lang: str, chosen: dict[str, str], tokenizer: str) -> None:
    assert scores.tokenizer_for(lang, chosen) == tokenizer


@pytest.mark.parametrize(
    ("field", "name"),
    [("13a", "13a"), ("ja-mecab-0.996-IPA", "ja-mecab"), ("flores200", "flores200"), ("x", "x")],
)
def test_the_tokenizer_of_a_signature(field: str, name: str) -> None:
    """MeCab's has its version and dictionary behind the name."""
    assert scores.tokenizer_of(f"nrefs:1|eff:no|tok:{field}|version:2.6.0") == name


def test_tokenizers_are_parsed() -> None:
    assert scores.parse_tokenizers(None) == {}
    assert scores.parse_tokenizers("intl,zh=char") == {"": "intl", "zh": "char"}
    with pytest.raises(UserError, match="de=13b: sacreBLEU has no '13b'; did you mean 13a"):
        scores.parse_tokenizers("de=13b")


def entry(bleu: float, chrf: float, copy: float | None = None, signature: str = "s") -> Score:
    return Score(bleu, chrf, copy, 1500, 0, signature, "c")


def test_means_are_of_directions() -> None:
    made = {DE_EN: entry(30, 50), FR_EN: entry(20, 40), EN_DE: entry(10, 30)}
    assert scores.means(made) == {
        "X->en": {"directions": 2, "bleu": 25, "chrf": 45},
        "en->X": {"directions": 1, "bleu": 10, "chrf": 30},
        "all": {"directions": 3, "bleu": 20, "chrf": 40},
    }


def test_table_goes_by_groups_and_ends_in_means() -> None:
    made = {
        DE_FR: entry(5, 9, 1),
        EN_DE: entry(12.344, 30, 2),
        FR_EN: entry(20, 40.006, 3),
        DE_EN: entry(30, 50, 4),
    }
    assert scores.score_table(made).split("\n") == [
        "direction   sentences   BLEU  chrF++  copy BLEU",
        "-----------------------------------------------",
        "de-en           1,500  30.00   50.00       4.00",
        "fr-en           1,500  20.00   40.01       3.00",
        "en-de           1,500  12.34   30.00       2.00",
        "de-fr           1,500   5.00    9.00       1.00",
        "mean X->en     2 dir.  25.00   45.00       3.50",
        "mean en->X     1 dir.  12.34   30.00       2.00",
        "mean other     1 dir.   5.00    9.00       1.00",
        "mean all       4 dir.  16.84   32.25       2.50",
    ]


def test_signatures_are_told_once_or_with_their_directions() -> None:
    made = {DE_EN: entry(1, 1), EN_DE: entry(1, 1, signature="z"), FR_EN: entry(1, 1)}
    assert scores.signature_lines({key: asdict(one) for key, one in made.items()}) == [
        "BLEU (de-en, fr-en): s",
        "BLEU (en-de): z",
        "chrF++: c",
    ]


def test_references_that_cannot_be_matched_are_told() -> None:
    texts = Translations(["x", "y"], ["a", "b"], ["a", "<<unk>>"])
    made = {DE_EN: entry(1, 1), EN_DE: scores.score(texts, "13a", copy_baseline=False)}
    assert list(scores.unknown_lines(made)) == [
        "en-de: 1 of 2 references hold <<unk>>, a token that the dictionary lacks"
    ]
