"""The localisation corpus: the command as users run it, on small wheels and on the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from splits import variant_key
from wheels import PACKAGES

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "localisation" / "build_corpus.py"
MakeOut = Callable[[str], Path]

SMALL = {
    "Clear all filters": ("Alle Filter leeren", "Effacer tous les filtres"),
    "Log out of this site": ("Von dieser Website abmelden", "Quitter ce site"),
    "Your password has expired": ("Ihr Passwort ist abgelaufen", "Le mot de passe a expiré"),
    "No results were found": ("Keine Ergebnisse", "Aucun résultat trouvé"),
    "Choose another language": ("Andere Sprache wählen", "Choisir une autre langue"),
    "Save": ("Sichern", "Enregistrer"),
    "%d file\0%d files": ("%d Datei\0%d Dateien", "%d fichier\0%d fichiers"),
}


@pytest.fixture
def make_out(tmp_path: Path, compile_mo: Callable[..., bytes]) -> Callable[[str], Path]:
    """Return a maker of output folders whose cache already holds three small wheels."""
    return lambda name: _fill_cache(tmp_path / name, compile_mo)


def _fill_cache(out: Path, compile_mo: Callable[..., bytes]) -> Path:
    (out / "cache").mkdir(parents=True)
    for number, package in enumerate(PACKAGES):
        with zipfile.ZipFile(out / "cache" / package.wheel_name, "w") as wheel:
            for column, locale in enumerate(("de", "fr")):
                entries = {key: value[column] for key, value in list(SMALL.items())[number::3]}
                path = f"{package.name.lower()}/locale/{locale}/LC_MESSAGES/django.mo"
                wheel.writestr(path, compile_mo(entries, "nplurals=2; plural=(n != 1);"))
    return out


def run_script(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def build_small(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--languages", "fr,de", "--min-strings", "5", "--held-out", "2"]
    return run_script("--out", out, *options, *more)


def contents(out: Path) -> dict[str, bytes]:
    files = [out / "corpus.json", *(out / "raw").iterdir()]
    return {path.name: path.read_bytes() for path in files}


def test_the_command_writes_aligned_files_and_prints_the_counts(make_out: MakeOut) -> None:
    out = make_out("corpus")
    done = build_small(out)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["language", "aligned", "train", "valid", "test"],
        ["en", "8", "4", "2", "2"],
        ["de", "8", "4", "2", "2"],
        ["fr", "8", "4", "2", "2"],
    ]
    pairs = [
        f"{n}.en-{x}.{s}"
        for n in ("train", "valid", "test")
        for x in ("de", "fr")
        for s in ("en", x)
    ]
    mono = [f"mono.{name}.{x}.txt" for name in ("train", "valid") for x in ("en", "de", "fr")]
    assert sorted(os.listdir(out / "raw")) == sorted(pairs + mono)
    assert sorted(os.listdir(out)) == ["cache", "corpus.json", "raw"]
    german = {"%d file": "%d Datei", "%d files": "%d Dateien"}
    german |= {key: value[0] for key, value in SMALL.items() if "\0" not in key}
    found: dict[str, str] = {}
    for name in ("train", "valid", "test"):
        english = (out / "raw" / f"{name}.en-de.en").read_text("utf-8").splitlines()
        other = (out / "raw" / f"{name}.en-de.de").read_text("utf-8").splitlines()
        found |= dict(zip(english, other, strict=True))
    assert found == german
    assert json.loads((out / "corpus.json").read_text())["arguments"]["seed"] == 1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_split(
    make_out: MakeOut,
) -> None:
    one, two, three = (make_out(name) for name in ("one", "two", "three"))
    for out, seed in ((one, "1"), (two, "1"), (three, "5")):
        assert build_small(out, "--seed", seed).returncode == 0
    assert contents(one) == contents(two)
    test_file = "test.en-de.en"
    assert contents(one)[test_file] != contents(three)[test_file]


def test_a_finished_corpus_is_left_alone_and_a_damaged_one_is_mended(make_out: MakeOut) -> None:
    out = make_out("corpus")
    build_small(out)
    before = contents(out)
    stamp = (out / "raw").stat().st_mtime_ns
    again = build_small(out)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"{out}: the corpus is there already, nothing to do\n"
    assert (out / "raw").stat().st_mtime_ns == stamp
    (out / "raw" / "train.en-de.de").write_text("cut sho")
    assert build_small(out).stdout.startswith("language")
    assert contents(out) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--languages", "de,en"], "'en' is empty, repeated, English or not of letters"),
        (["--languages", "de,pt-BR"], "'pt-BR' is empty, repeated, English or not of letters"),
        (["--languages", "de,xx"], "--languages: the packages hold no catalogs for 'xx'"),
        (["--min-strings", "9"], "de has 8 aligned strings, fewer than --min-strings 9"),
        (["--held-out", "3"], "--held-out 3: valid and test need 6 strings that qualify"),
        (["--held-out", "0"], "--held-out 0: must be 1 or more"),
    ],
)
def test_a_mistake_gives_one_line_and_writes_nothing(
    make_out: MakeOut, options: list[str], message: str
) -> None:
    out = make_out("corpus")
    done = build_small(out, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("build_corpus.py: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(out) == ["cache"]


def test_a_folder_of_somebody_else_is_not_replaced(make_out: MakeOut) -> None:
    out = make_out("corpus")
    (out / "raw").mkdir()
    (out / "raw" / "mine.txt").write_text("precious")
    done = build_small(out)
    assert done.returncode == 2
    assert "was not written by this script; move it away or choose another --out" in done.stderr
    assert os.listdir(out / "raw") == ["mine.txt"]


def test_a_file_that_somebody_added_is_not_removed(make_out: MakeOut) -> None:
    out = make_out("corpus")
    assert build_small(out).returncode == 0
    mine = out / "raw" / "train.en-xx.xx"
    mine.write_text("precious")
    done = build_small(out, "--seed", "2")
    assert done.returncode == 2
    assert f"{mine} was not written by this script; move it away" in done.stderr
    assert mine.read_text() == "precious"
    mine.unlink()
    assert build_small(out, "--seed", "2").returncode == 0


def test_a_damaged_wheel_is_named(make_out: MakeOut) -> None:
    out = make_out("corpus")
    wheel = out / "cache" / PACKAGES[1].wheel_name
    wheel.write_bytes(wheel.read_bytes()[:200])
    done = build_small(out)
    assert done.returncode == 2
    assert f"{wheel}: not a wheel" in done.stderr


def test_a_damaged_catalog_is_named(make_out: MakeOut) -> None:
    out = make_out("corpus")
    wheel = out / "cache" / PACKAGES[2].wheel_name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sphinx/locale/de/LC_MESSAGES/sphinx.mo", b"no catalog")
    done = build_small(out)
    assert done.returncode == 2
    assert "damaged catalog sphinx/locale/de/LC_MESSAGES/sphinx.mo" in done.stderr


def test_without_a_network_one_line_says_what_is_missing(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    # a port nobody listens on, and no configuration that could name another index
    env |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
    }
    out = tmp_path / "corpus"
    done = run_script("--out", out, env=env)
    assert done.returncode == 2
    progress, error = done.stderr.splitlines()
    assert progress == f"downloading {PACKAGES[0].requirement} ..."
    assert error.startswith(f"build_corpus.py: error: cannot download {PACKAGES[0].requirement} (")
    assert error.endswith(f"or put {PACKAGES[0].wheel_name} into {out / 'cache'}")
    assert os.listdir(out / "cache") == []


@pytest.mark.slow
def test_the_real_corpus_is_large_and_holds_no_leak(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    done = run_script("--out", out)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "corpus.json").read_text("utf-8"))
    assert len(manifest["languages"]) == 12
    for language, counts in manifest["languages"].items():
        assert counts["aligned"] >= 2500, language
        assert counts["train"] >= 2200, language
        assert counts["valid"] == counts["test"] == 160
    raw = {path.name: path.read_text("utf-8").splitlines() for path in (out / "raw").iterdir()}
    for language in ("en", *manifest["languages"]):
        train = raw[f"mono.train.{language}.txt"]
        pair = "de" if language == "en" else language
        assert set(raw[f"train.en-{pair}.{language}"]) <= set(train)
        keys = " | ".join(f" {variant_key(line)} " for line in train)
        for name in ("valid", "test"):
            for line in raw[f"{name}.en-{pair}.{language}"]:
                assert f" {variant_key(line)} " not in keys, (language, line)
    assert len({tuple(raw[f"test.en-{code}.en"]) for code in manifest["languages"]}) == 1
