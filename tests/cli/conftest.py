"""The `zcode` command as users call it, a small corpus, and data that it prepared of it."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import translating

from zcode_plugin.cli.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]

WORDS = {
    "en": "the a house tree river small green old sees finds is and not under 42 % (name) café",
    "de": "das ein Haus Baum Fluss klein grün alt sieht findet ist und nicht unter 42 % (name) ß",
    "fr": "la une maison arbre rivière petit vert vieux voit trouve est et pas sous 42 % (nom) ç",
}
SIZES = {"train": 120, "valid": 8, "test": 6}


def sentences(lang: str, number: int, seed: str) -> list[str]:
    """Sentences of three to nine words, simple and compound; the same for the same seed."""
    draw = random.Random(f"{lang} {seed}")
    words = WORDS[lang].split()
    words += [first + second for first in words for second in words]
    return [" ".join(draw.choices(words, k=draw.randint(3, 9))) for _ in range(number)]


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_corpus(folder: Path) -> None:
    """Two pairs with all splits, monolingual text in two languages, and a file of another name."""
    folder.mkdir()
    for pair in ("en-de", "fr-en"):
        for split, size in SIZES.items():
            for lang in pair.split("-"):
                write_lines(folder / f"{split}.{pair}.{lang}", sentences(lang, size, split + pair))
    write_lines(folder / "mono.train.en.txt", sentences("en", 90, "mono"))
    write_lines(folder / "mono.valid.en.txt", sentences("en", 5, "mono valid"))
    write_lines(folder / "mono.de.txt", sentences("de", 80, "mono"))
    write_lines(folder / "README", ["not text to train on"])


@pytest.fixture(scope="session")
def zcode() -> Run:
    """Runs `python -m zcode_plugin.cli.main ARGUMENTS`."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zcode_plugin.cli.main", *map(str, arguments)],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **options,
        )

    return run


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `zcode`, but in this process, which has imported fairseq: tenths of seconds a call."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        command = [str(argument) for argument in arguments]
        with monkeypatch.context() as patch:
            if cwd is not None:
                patch.chdir(cwd)
            code = main(command)
        return subprocess.CompletedProcess(command, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus; not to be written to."""
    folder = tmp_path_factory.mktemp("corpus") / "raw"
    write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(
    zcode: Run, raw: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The data made of the corpus, and how the command ended; not to be written to."""
    data = tmp_path_factory.mktemp("prepared") / "data"
    ended = zcode("prepare", "--raw", raw, "--out", data, "--vocab-size", "120")
    assert ended.returncode == 0, ended.stderr
    return data, ended


@pytest.fixture(scope="session")
def data(prepared: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The data made of the corpus; not to be written to."""
    return prepared[0]


@pytest.fixture(scope="session")
def multilingual(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of all directions of the corpus, without a SentencePiece model beside it."""
    return translating.train(data, tmp_path_factory.mktemp("multilingual"))
