"""`zcode prepare` on a small corpus: what it writes, and what it makes of bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils

from zcode_plugin.data import languages, symbols

Run = Callable[..., subprocess.CompletedProcess[str]]
Prepared = tuple[Path, subprocess.CompletedProcess[str]]

BINARISED = {
    *(f"{s}.en-de.{lang}" for s in ("train", "valid", "test") for lang in ("en", "de")),
    *(f"{s}.fr-en.{lang}" for s in ("train", "valid", "test") for lang in ("en", "fr")),
    *("train.en-None.en", "valid.en-None.en", "train.de-None.de"),
}


def decode(data: Path, name: str) -> list[str]:
    """The text of a binarised file, as fairseq-generate would print it."""
    dictionary = Dictionary.load(str(data / f"dict.{name.rpartition('.')[2]}.txt"))
    dataset = data_utils.load_indexed_dataset(str(data / name), dictionary)
    return [dictionary.string(tokens, "sentencepiece") for tokens in dataset]


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_writes_these_files_and_no_other(data: Path) -> None:
    assert {path.name for path in data.iterdir()} == {
        *(f"{name}.{ending}" for name in BINARISED for ending in ("bin", "idx")),
        *("dict.de.txt", "dict.en.txt", "dict.fr.txt", "langs.txt", "prepare.json"),
        *("sentencepiece.model", "sentencepiece.vocab"),
    }
    assert read_lines(data / "langs.txt") == ["de", "en", "fr"]
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_dictionary_is_the_pieces_then_languages_then_mask(data: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    pieces = [model.id_to_piece(index) for index in range(len(model))]
    assert len(pieces) == 120
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    dictionary = Dictionary.load(str(data / "dict.de.txt"))
    assert dictionary.symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert dictionary.symbols[4:121] == pieces[3:]
    assert dictionary.symbols[121:] == ["__de__", "__en__", "__fr__", "<mask>"]
    assert {(data / f"dict.{lang}.txt").read_bytes() for lang in ("de", "en", "fr")} == {
        (data / "dict.de.txt").read_bytes()
    }


def test_the_task_adds_nothing_to_the_dictionary(data: Path) -> None:
    dictionary = Dictionary.load(str(data / "dict.en.txt"))
    symbols = list(dictionary.symbols)
    languages.add_special_symbols(dictionary, ["de", "en", "fr"])
    assert dictionary.symbols == symbols


def test_vocabulary_lists_the_model_as_sentencepiece_does(data: Path) -> None:
    lines = read_lines(data / "sentencepiece.vocab")
    assert lines[:3] == ["<unk>\t0", "<s>\t0", "</s>\t0"]
    assert len(lines) == 120


def test_text_decodes_exactly(raw: Path, data: Path) -> None:
    for name in BINARISED:
        split, pair, lang = name.split(".")
        if pair.endswith("-None"):
            source = raw / f"mono.{split}.{lang}.txt"
            source = source if source.exists() else raw / f"mono.{lang}.txt"
        else:
            source = raw / name
        assert decode(data, name) == read_lines(source), name


def test_binarised_files_are_those_of_the_console_script(
    raw: Path, data: Path, tmp_path: Path
) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    for lang in ("fr", "en"):
        encoded = [
            " ".join(model.encode(line, out_type=str))
            for line in read_lines(raw / f"valid.fr-en.{lang}")
        ]
        (tmp_path / f"text.{lang}").write_text("\n".join(encoded) + "\n", encoding="utf-8")
    command = [Path(sys.executable).with_name("fairseq-preprocess"), "-s", "fr", "-t", "en"]
    command += ["--srcdict", data / "dict.en.txt", "--joined-dictionary"]
    command += ["--validpref", tmp_path / "text", "--destdir", tmp_path / "stock"]
    subprocess.run(command, check=True, capture_output=True)
    for ending in ("fr.bin", "fr.idx", "en.bin", "en.idx"):
        name = f"valid.fr-en.{ending}"
        assert (data / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()


def test_prints_one_line_a_step_and_a_table(prepared: Prepared) -> None:
    lines = prepared[1].stdout.splitlines()
    assert [line.partition(" ...")[0] for line in lines[:4]] == [
        "read",
        "train SentencePiece (unigram)",
        "encode",
        "binarise with fairseq-preprocess",
    ]
    assert "268 aligned sentences of 2 pairs, 175 monolingual (" in lines[0]
    assert lines[4].split() == [
        *("data", "split", "sentences", "src", "tokens", "unk", "%", "tgt", "tokens", "unk", "%")
    ]
    rows = [line.split() for line in lines[6:-1]]
    assert [row[:3] for row in rows] == [
        ["en-de", "train", "120"],
        ["en-de", "valid", "8"],
        ["en-de", "test", "6"],
        ["fr-en", "train", "120"],
        ["fr-en", "valid", "8"],
        ["fr-en", "test", "6"],
        ["de", "train", "80"],
        ["en", "train", "90"],
        ["en", "valid", "5"],
    ]
    assert {cell for row in rows for cell in row[4::2]} == {"0.000"}
    assert lines[-1].endswith("3 languages, dictionary of 121 symbols (fairseq adds its own 4)")


def test_tokens_in_the_manifest_are_those_of_the_data(data: Path) -> None:
    dictionary = Dictionary.load(str(data / "dict.de.txt"))
    manifest = json.loads((data / "prepare.json").read_text(encoding="utf-8"))
    side = next(
        side
        for side in manifest["statistics"]
        if (side["split"], side["name"], side["lang"]) == ("test", "en-de", "de")
    )
    dataset = data_utils.load_indexed_dataset(str(data / "test.en-de.de"), dictionary)
    assert side["sentences"] == len(dataset) == 6
    assert side["tokens"] == sum(len(tokens) for tokens in dataset)


class TestSecondCall:
    """What happens where DATA exists."""

    @pytest.fixture
    def copy(self, data: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(data, tmp_path / "data"))

    def test_with_equal_input_does_nothing(self, zcode: Run, raw: Path, data: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
        ended = zcode("prepare", "--raw", raw, "--out", data, "--vocab-size", "120")
        assert ended.returncode == 0
        assert ended.stdout == f"{data} is up to date\n"
        assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before

    def test_with_another_option_is_refused(self, zcode: Run, raw: Path, data: Path) -> None:
        ended = zcode("prepare", "--raw", raw, "--out", data, "--vocab-size", "140")
        assert ended.returncode == 2
        assert ended.stderr == (
            f"zcode prepare: error: --out {data} exists and was made with other --vocab-size: "
            "--force replaces it\n"
        )

    def test_with_another_text_is_refused(
        self, zcode: Run, raw: Path, data: Path, tmp_path: Path
    ) -> None:
        changed = Path(shutil.copytree(raw, tmp_path / "raw"))
        path = changed / "test.fr-en.en"
        path.write_text(path.read_text(encoding="utf-8").replace("house", "home"), encoding="utf-8")
        ended = zcode("prepare", "--raw", changed, "--out", data, "--vocab-size", "120")
        assert ended.returncode == 2
        assert "was made with other test.fr-en.en: --force replaces it" in ended.stderr

    def test_with_a_lost_file_is_refused(self, zcode: Run, raw: Path, copy: Path) -> None:
        (copy / "dict.de.txt").unlink()
        ended = zcode("prepare", "--raw", raw, "--out", copy, "--vocab-size", "120")
        assert ended.returncode == 2
        assert "exists and lacks dict.de.txt: --force replaces it" in ended.stderr

    def test_with_force_replaces_it(self, zcode: Run, raw: Path, copy: Path) -> None:
        (copy / "dict.de.txt").unlink()
        (copy.parent / ".data.partial-999999999").mkdir()  # left by a process that was killed
        ended = zcode(
            *("prepare", "--raw", raw, "--out", copy, "--vocab-size", "120", "--force"),
            *("--pairs", "de-en", "--langs", "en,de"),
        )
        assert ended.returncode == 0, ended.stderr
        assert [path.name for path in copy.parent.iterdir()] == ["data"]
        assert {path.name for path in copy.glob("*.idx")} == {
            f"{name}.idx" for name in BINARISED if "fr" not in name
        }
        assert read_lines(copy / "langs.txt") == ["en", "de"]
        assert read_lines(copy / "dict.de.txt")[-3:] == ["__en__ 1", "__de__ 1", "<mask> 1"]

    def test_what_somebody_added_is_not_replaced(self, zcode: Run, raw: Path, copy: Path) -> None:
        shutil.copytree(raw, copy / "raw")
        before = {path.relative_to(copy) for path in copy.rglob("*")}
        ended = zcode("prepare", "--raw", copy / "raw", "--out", copy, "--force")
        assert ended.returncode == 2
        assert ended.stderr == (
            f"zcode prepare: error: --out {copy} holds raw, which is no part of the data: move it "
            "away, or name another folder\n"
        )
        assert {path.relative_to(copy) for path in copy.rglob("*")} == before

    def test_a_folder_of_others_is_never_replaced(
        self, zcode: Run, raw: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "letter").write_text("dear", encoding="utf-8")
        ended = zcode("prepare", "--raw", raw, "--out", tmp_path / "home", "--force")
        assert ended.returncode == 2
        assert ended.stderr == (
            f"zcode prepare: error: --out {tmp_path / 'home'} exists and is not made by zcode "
            "prepare: name another\n"
        )
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]


class TestTsv:
    """A TSV file and a given SentencePiece model."""

    TRAIN = (
        "en\tde\tfr\n"
        'the "old" house\tdas alte Haus\tla maison\n'
        "a tree\t\tun arbre\n"
        "\tein Baum\tune arbre\n"
        " the  <pad> river \u2028 __de__\tgrün\t\n"
    )

    @pytest.fixture(scope="class")
    def made(self, zcode: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("tsv")
        (folder / "train.tsv").write_text(self.TRAIN, encoding="utf-8-sig", newline="")
        ended = zcode(
            *("prepare", "--tsv", f"train={folder / 'train.tsv'}", "--out", folder / "data"),
            *("--sentencepiece-model", data / "sentencepiece.model"),
        )
        assert ended.returncode == 0, ended.stderr
        return folder / "data"

    def test_first_column_goes_with_each_other_one(self, made: Path) -> None:
        assert {path.stem for path in made.glob("*.idx")} == {
            *("train.en-de.en", "train.en-de.de", "train.en-fr.en", "train.en-fr.fr")
        }
        assert decode(made, "train.en-fr.fr") == ["la maison", "un arbre"]
        assert decode(made, "train.en-de.de") == ["das alte Haus", "grün"]

    def test_text_forges_no_special_symbol(self, made: Path) -> None:
        dictionary = Dictionary.load(str(made / "dict.en.txt"))
        dataset = data_utils.load_indexed_dataset(str(made / "train.en-de.en"), dictionary)
        assert dictionary.pad() not in dataset[1].tolist()
        assert dictionary.index("__de__") not in dataset[1].tolist()

    def test_the_given_model_is_used(self, made: Path, data: Path) -> None:
        for name in ("sentencepiece.model", "sentencepiece.vocab"):
            assert (made / name).read_bytes() == (data / name).read_bytes()


def test_a_pair_may_lie_in_both_kinds_of_input(
    zcode: Run, raw: Path, data: Path, tmp_path: Path
) -> None:
    tsv = tmp_path / "more.tsv"
    tsv.write_text("de\tfr\nein Haus\tla maison\n", encoding="utf-8")
    ended = zcode(
        *("prepare", "--raw", raw, "--tsv", f"test={tsv}", "--out", tmp_path / "data"),
        *("--sentencepiece-model", data / "sentencepiece.model", "--langs", "fr,de"),
    )
    assert ended.returncode == 0, ended.stderr
    assert {path.stem for path in (tmp_path / "data").glob("*.idx")} == {
        *("test.de-fr.de", "test.de-fr.fr", "train.de-None.de")
    }


def test_language_tokens_are_those_of_the_task() -> None:
    from fairseq.data.multilingual.multilingual_utils import get_lang_tok

    assert symbols.language_token("pt_BR") == get_lang_tok("pt_BR", "multilingual")
    assert Dictionary().symbols == [*symbols.SPECIAL]
