"""Bad input to `zcode prepare`: one line that names the culprit, and nothing written."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def edit(name: str, change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    """A change to the lines of a file, without their ends."""

    def apply(raw: Path) -> None:
        lines = (raw / name).read_bytes().splitlines()
        (raw / name).write_bytes(b"".join(line + b"\n" for line in change(lines)))

    return apply


def add(name: str, text: str = "one\ntwo\n") -> Callable[[Path], None]:
    return lambda raw: (raw / name).write_text(text, encoding="utf-8") and None


def replace(lines: list[bytes], number: int, line: bytes) -> list[bytes]:
    return [*lines[: number - 1], line, *lines[number:]]


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda raw: (raw / old).rename(raw / new) and None


BAD_TEXT = [
    pytest.param(
        edit("valid.en-de.de", lambda lines: lines[:-3]),
        "{raw}/valid.en-de.de has 5 lines but {raw}/valid.en-de.en has 8: both need one sentence a "
        "line, aligned",
        id="fewer lines",
    ),
    pytest.param(
        edit("valid.en-de.de", lambda lines: [*lines, b"x", b"y"]),
        "{raw}/valid.en-de.en has 8 lines but {raw}/valid.en-de.de has 10: both need one "
        "sentence a line, aligned",
        id="more lines",
    ),
    pytest.param(
        edit("test.fr-en.fr", lambda lines: replace(lines, 4, "rivière".encode("latin-1"))),
        "{raw}/test.fr-en.fr:4: not UTF-8 (byte 0xe8 at position 5); convert it: "
        "iconv -f LATIN1 -t UTF-8 FILE > NEW",
        id="Latin-1",
    ),
    pytest.param(
        lambda raw: (raw / "mono.de.txt").write_bytes("Haus".encode("utf-16")),
        "{raw}/mono.de.txt:1: not UTF-8 (byte 0xff at position 1); convert it: "
        "iconv -f LATIN1 -t UTF-8 FILE > NEW",
        id="UTF-16",
    ),
    pytest.param(
        edit("train.en-de.en", lambda lines: replace(lines, 7, b"  \t")),
        "{raw}/train.en-de.en:7: the line is blank; mend it, or drop such lines with --skip-blank",
        id="blank side",
    ),
    pytest.param(
        lambda raw: [(raw / f"test.en-de.{lang}").write_bytes(b"") for lang in ("en", "de")],
        "{raw}/test.en-de.en: no sentence in it; give it text or leave the file out",
        id="empty split",
    ),
    pytest.param(
        add("mono.valid.de.txt", "\n \n"),
        "{raw}/mono.valid.de.txt: no sentence in it; give it text or leave the file out",
        id="blank monolingual text",
    ),
    pytest.param(
        lambda raw: (raw / "test.en-de.de").unlink(),
        "{raw}/test.en-de.de is missing, but its other side, {raw}/test.en-de.en, is there",
        id="missing side",
    ),
    pytest.param(
        rename("test.en-de.de", "test.en-de.text"),
        "{raw}/test.en-de.text: the name must end in one of the two languages of en-de",
        id="neither language",
    ),
    pytest.param(
        add("train.en-pt-BR.en"),
        "{raw}/train.en-pt-BR.en: 'en-pt-BR' is not SRC-TGT: write _ for - within a language code",
        id="hyphen in a pair",
    ),
    pytest.param(
        add("mono.train.pt-BR.txt"),
        "{raw}/mono.train.pt-BR.txt: 'pt-BR' is no language code: write pt_BR",
        id="hyphen in a language",
    ),
    pytest.param(
        add("dev.en-de.en"),
        "{raw}/dev.en-de.en: unknown split 'dev'; rename it to train, valid or test",
        id="unknown split",
    ),
    pytest.param(
        add("trian.en-de.en"),
        "{raw}/trian.en-de.en: unknown split 'trian'; did you mean train?",
        id="mistyped split",
    ),
    pytest.param(
        add("train.de"),
        "{raw}/train.de: the name is not SPLIT.SRC-TGT.LANG, such as train.en-de.de",
        id="no pair",
    ),
    pytest.param(
        add("mono.test.en.txt"),
        "{raw}/mono.test.en.txt: the name is not mono.{{train,valid}}.LANG.txt or mono.LANG.txt",
        id="monolingual test",
    ),
    pytest.param(
        add("mono.train.de.txt"),
        "{raw}/mono.train.de.txt: {raw}/mono.de.txt is the same; keep one",
        id="monolingual twice",
    ),
    pytest.param(
        lambda raw: [
            shutil.copy(raw / f"test.en-de.{x}", raw / f"test.de-en.{x}") for x in ("en", "de")
        ],
        "{raw}/test.en-de.en: test.de-en.de names the same pair as de-en; use one order in all "
        "splits",
        id="both orders",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_TEXT)
def test_bad_text(
    here: Run, raw: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    spoil(folder)
    ended = here("prepare", "--raw", folder, "--out", tmp_path / "data", "--vocab-size", "120")
    assert ended.stderr == f"zcode prepare: error: {message.format(raw=folder)}\n"
    assert ended.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


BAD_TSV = [
    ("en\n a\n", "{tsv}:1: the first line must name two or more different languages, one a "
     "column, parted by tabs; it reads 'en'"),
    ("en\ten\na\tb\n", "{tsv}:1: the first line must name two or more different languages, one a "
     "column, parted by tabs; it reads 'en\\ten'"),
    ("", "{tsv}:1: the first line must name two or more different languages, one a column, parted "
     "by tabs; it reads ''"),
    ("en\tpt-BR\na\tb\n", "{tsv}:1: 'pt-BR' is no language code: write pt_BR"),
    ("en\tde\na\tb\nc\n", "{tsv}:3: 1 columns, but the first line names 2; leave the cell of a "
     "missing translation empty"),
    ("en\tde\na\tb\tc\n", "{tsv}:2: 3 columns, but the first line names 2; leave the cell of a "
     "missing translation empty"),
    ("en\tde\na\tb\n\t \n", "{tsv}:3: every cell is blank; mend it, or drop such lines with "
     "--skip-blank"),
    ("en\tde\n", "{tsv}: no sentence in it; give it text or leave the file out"),
    ("en\tde\na\t\n", "{tsv}: no sentence in it; give it text or leave the file out"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_TSV)
def test_bad_tsv(here: Run, data: Path, tmp_path: Path, text: str, message: str) -> None:
    tsv = tmp_path / "text.tsv"
    tsv.write_text(text, encoding="utf-8")
    model = data / "sentencepiece.model"
    ended = here(
        *("prepare", "--tsv", f"test={tsv}", "--out", tmp_path / "data"),
        *("--sentencepiece-model", model),
    )
    assert ended.stderr == f"zcode prepare: error: {message.format(tsv=tsv)}\n"
    assert ended.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["text.tsv"]


BAD_FLAGS = [
    ([], "no text is given: name a folder with --raw or files with --tsv"),
    (["--raw", "nowhere"], "--raw nowhere: there is no such folder"),
    (["--raw", "empty"], "--raw empty: no file is named as train.en-de.en or mono.train.en.txt"),
    (["--tsv", "x.tsv"], "--tsv 'x.tsv' is not SPLIT=FILE: write, say, train=x.tsv"),
    (["--tsv", "dev=x.tsv"], "--tsv dev=x.tsv: unknown split 'dev'; use train, valid or test"),
    (["--tsv", "train=x.tsv"], "--tsv train=x.tsv: there is no file x.tsv"),
    (["--raw", "{raw}", "--langs", "en,en"],
     "--langs en,en names a language twice: name each once"),
    (["--raw", "{raw}", "--langs", "en,pt-BR"],
     "--langs: 'pt-BR' is no language code: write pt_BR"),
    (["--raw", "{raw}", "--langs", "en,it"],
     "--langs it: there is no text in it; leave it out"),
    (["--raw", "{raw}", "--pairs", "en"],
     "--pairs 'en' is not SRC-TGT: write two languages, such as en-de"),
    (["--raw", "{raw}", "--pairs", "de-fr"], "--pairs de-fr: there is no text of this pair"),
    (["--raw", "{raw}", "--langs", "fr,de", "--pairs", "fr-de"],
     "--pairs fr-de: there is no text of this pair"),
    (["--raw", "{raw}", "--vocab-size", "0"], "--vocab-size 0 must be more than 0"),
    (["--raw", "{raw}", "--character-coverage", "99.95"],
     "--character-coverage 99.95 is not in (0, 1]"),
    (["--raw", "{raw}", "--workers", "0"], "--workers 0 must be at least 1"),
    (["--raw", "{raw}", "--sentencepiece-model", "README"],
     "--sentencepiece-model README does not exist"),
    (["--raw", "{raw}", "--sentencepiece-model", "{raw}/README"],
     "--sentencepiece-model {raw}/README is not a SentencePiece model"),
    (["--raw", "{raw}", "--sentencepiece-model", "x", "--vocab-size", "9"],
     "--vocab-size has no effect with --sentencepiece-model"),
    (["--raw", "{raw}", "--vocab-size", "12"],
     "--vocab-size 12 is less than the 38 pieces that single characters need: use more, or lower "
     "--character-coverage 0.9999"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_bad_flags(here: Run, raw: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    given = [flag.format(raw=raw) for flag in flags]
    ended = here("prepare", *given, "--out", "data", cwd=tmp_path)
    assert ended.stderr == f"zcode prepare: error: {message.format(raw=raw)}\n"
    assert ended.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_comma_further_up_is_seen_before_the_work(here: Run, raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    ended = here("prepare", "--raw", raw, "--out", "data", cwd=folder)
    assert ended.returncode == 2
    assert f"--out {folder}/data: fairseq-preprocess parts names at commas" in ended.stderr
    assert not list(folder.iterdir())


def test_the_working_folder_is_not_replaced(here: Run, raw: Path, tmp_path: Path) -> None:
    ended = here("prepare", "--raw", raw, "--out", ".", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        "zcode prepare: error: --out . is the working folder: name one that is to be made\n"
    )


def test_a_file_where_a_folder_is_named(here: Run, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = here("prepare", "--raw", raw, "--out", tmp_path / "file" / "data")
    assert ended.returncode == 2
    assert ended.stderr == f"zcode prepare: error: {tmp_path / 'file'}: File exists\n"


def test_a_vocabulary_that_is_too_large_names_the_largest(
    here: Run, raw: Path, tmp_path: Path
) -> None:
    ended = here("prepare", "--raw", raw, "--out", tmp_path / "data")
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "zcode prepare: error: --vocab-size 8000 is more than this text gives: use "
    )
    largest = ended.stderr.split()[-3]
    assert 120 < int(largest) < 1000


def test_only_test_text_cannot_train_a_model(here: Run, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for lang in ("en", "de"):
        shutil.copy(raw / f"test.en-de.{lang}", tmp_path / "raw")
    ended = here("prepare", "--raw", tmp_path / "raw", "--out", tmp_path / "data")
    assert ended.returncode == 2
    assert ended.stderr == (
        "zcode prepare: error: no training text: give some, or a model with --sentencepiece-model\n"
    )
    assert not (tmp_path / "data").exists()


def test_a_terminated_call_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "zcode_plugin.cli.main", "prepare", "--raw", raw]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "data", "--vocab-size", "120"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("encode"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []
