"""The corpus of LibreOffice's help: pages are read and divided as its scripts promise."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase

import pytest

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
sys.path.append(str(PAPER))

from help_corpus import Pages, build, corpus_files, main, title_files  # noqa: E402
from help_pages import Page, parse, read_pages  # noqa: E402
from wheels import CorpusError  # noqa: E402

HTML = """<html lang="de"><head><title>Dokumente öffnen</title></head><body>
<p>Menü</p>
<h1 id="hd_id1"><a name="x"></a>Dokumente
öffnen</h1>
<ul><li>
<p id="par_id2">Wählen Sie <span class="menuitem">Datei</span>.<br>Dann weiter.</p></li></ul>
<p id="par_id3">Drücken Sie <span id="s1"><span hidden="true" id="MACx">Befehl</span>
<span hidden="true" id="defaultx">Strg</span></span>+O.</p>
<p id="par_id4">Im <span hidden="true" id="WRITERx">Text</span>
<span hidden="true" id="CALCx">Blatt</span>.</p>
</body></html>"""


def test_paragraphs_are_read_by_id() -> None:
    page = parse(HTML)
    assert page.title == "Dokumente öffnen"
    assert {key: " ".join(text.split()) for key, text in page.paragraphs.items()} == {
        "hd_id1": "Dokumente öffnen",
        "par_id2": "Wählen Sie Datei. Dann weiter.",
        # Of the variants for systems the common one; a paragraph of each program's is left out.
        "par_id3": "Drücken Sie Strg+O.",
    }


def sentence(number: int, language: str) -> str:
    """Of words that no other sentence has."""
    draw = random.Random(f"{number} {language}")
    return " ".join("".join(draw.choices(ascii_lowercase, k=6)) for _ in range(6))


@pytest.fixture(scope="module")
def pages() -> Pages:
    """300 pages in two languages, and one sentence that is on all of them."""
    made: dict[str, dict[str, Page]] = {"en": {}, "de": {}}
    for language, of_language in made.items():
        for number in range(300):
            texts = {f"par_id{k}": sentence(3 * number + k, language) for k in range(3)}
            texts["par_id9"] = f"Everywhere the same boilerplate {language} words"
            of_language[f"guide/page{number}"] = Page(f"Title {language} {number}", texts)
    return made


def test_no_page_is_in_two_parts(pages: Pages) -> None:
    corpus = build(pages, ["de"], 10, seed=1)
    files = corpus_files(corpus)
    assert {name: len(corpus.split[name]) for name in ("valid", "test")} == {
        "valid": 10,
        "test": 10,
    }
    part = {
        text: corpus.pages[path]
        for path, page in pages["en"].items()
        for key, text in page.paragraphs.items()
        if key != "par_id9"
    }
    for name in ("train", "valid", "test"):
        english = files[f"{name}.en-de.en"]
        assert len(english) == len(files[f"{name}.en-de.de"]) == len(corpus.split[name])
        assert {part.get(line, "train") for line in english} == {name}
    assert any("boilerplate" in line for line in files["train.en-de.en"])
    titles = title_files(corpus, pages)
    for name in ("train", "valid", "test"):
        numbers = [title.split()[-1] for title in titles[f"{name}.de.title"]]
        assert numbers
        assert {corpus.pages[f"guide/page{number}"] for number in numbers} == {name}


def test_too_few_to_hold_out_is_one_line(pages: Pages) -> None:
    with pytest.raises(CorpusError, match=r"--held-out 5000: \d+ paragraphs qualify for valid"):
        build(pages, ["de"], 5000, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--languages", "de,de"], "--languages de,de: a language is repeated, or English"),
        (["--held-out", "0"], "--held-out 0: must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err == f"help_corpus.py: error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_without_apt_the_packages_are_asked_for(tmp_path: Path) -> None:
    script = [sys.executable, str(PAPER / "help_corpus.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert done.returncode == 2
    assert "has no apt-get and dpkg-deb" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "libreoffice-help-de_1_all.deb"
    broken.write_text("no archive")
    with pytest.raises(CorpusError, match=r"de_1_all\.deb"):
        read_pages(broken)
