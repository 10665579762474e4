"""The localisation corpus: catalogs, cleaning, splitting and the command as users run it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "localisation"
sys.path.insert(0, str(EXAMPLE))

from catalogs import read_catalog  # noqa: E402
from pairs import clean_pairs, is_good_pair, one_line, placeholders  # noqa: E402
from splits import (  # noqa: E402
    ENGLISH_SIMILARITY,
    TRANSLATION_SIMILARITY,
    cluster_messages,
    eligible_messages,
    similarity,
    split_messages,
    variant_key,
)
from wheels import PACKAGES  # noqa: E402

GERMAN = "nplurals=2; plural=(n != 1);"
POLISH = "nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);"
JAPANESE = "nplurals=1; plural=0;"


def compile_mo(entries: Mapping[str, str], plural_forms: str, order: str = "<") -> bytes:
    """Return the bytes of a .mo file; keys and values as gettext stores them (EOT, NUL)."""
    header = f"Content-Type: text/plain; charset=UTF-8\nPlural-Forms: {plural_forms}\n"
    table = sorted((key.encode(), value.encode()) for key, value in entries.items())
    table.insert(0, (b"", header.encode()))
    count, head = len(table), 28
    offset = head + 16 * count
    index, body = [b"", b""], b""
    for column in (0, 1):
        for row in table:
            index[column] += struct.pack(f"{order}2I", len(row[column]), offset + len(body))
            body += row[column] + b"\0"
    magic = struct.pack(f"{order}7I", 0x950412DE, 0, count, head, head + 8 * count, 0, offset)
    return magic + index[0] + index[1] + body


# --- catalogs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_plural_forms_follow_the_catalogs_own_rule(order: str) -> None:
    files = {"%d file\0%d files": "%d plik\0%d pliki\0%d plików"}
    assert read_catalog(compile_mo(files, POLISH, order)) == [
        ("%d file", "%d plik"),
        ("%d files", "%d plików"),
    ]


def test_a_language_with_one_form_gives_the_plural_alone() -> None:
    catalog = compile_mo({"%d page\0%d pages": "%d ページ"}, JAPANESE)
    assert read_catalog(catalog) == [("%d pages", "%d ページ")]


def test_contexts_are_told_apart_and_the_header_is_dropped() -> None:
    entries = {
        "month\x04May": "Mai",
        "May": "Darf",
        "age\x04%d day\0%d days": "%d Tag\0%d Tage",
    }
    assert sorted(read_catalog(compile_mo(entries, GERMAN))) == [
        ("%d day", "%d Tag"),
        ("%d days", "%d Tage"),
        ("May", "Darf"),
        ("May", "Mai"),
    ]


# --- cleaning ---------------------------------------------------------------------------------


def test_untranslated_strings_are_dropped() -> None:
    strings = [("Save", "Sichern"), ("Text", ""), ("Status", "Status"), ("URL", "url"), ("…", "—")]
    assert clean_pairs(strings) == {"Save": "Sichern"}


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("%(count)s of %(total)s", "%(count)s von %(all)s"),
        ("Deleted %s", "Gelöscht"),
        ("Hello {name}", "Hallo {Name}"),
        ("see :ref:`index` here", "siehe :doc:`index` hier"),
        ("<b>Note</b> this", "<i>Beachte</i> dies"),
        ("%s and %s", "%s und"),
    ],
)
def test_a_pair_with_different_fields_is_dropped(english: str, german: str) -> None:
    assert clean_pairs([(english, german)]) == {}


def test_fields_may_change_their_order() -> None:
    assert is_good_pair("{name} of %(site)s: %.2f%%", "%(site)s hat {name}: %.2f%%")


def test_a_percent_sign_before_a_word_is_no_field() -> None:
    assert placeholders("100% done, 5 % sure") == {}


def test_text_becomes_one_nfc_line() -> None:
    assert one_line("  a\n\tcafe\u0301\u00a0 b ") == "a café b"


def test_lopsided_pairs_are_dropped() -> None:
    assert not is_good_pair("Live", "Auf der Website veröffentlicht")
    assert is_good_pair("OK", "Accettare")


def test_the_most_frequent_translation_wins() -> None:
    strings = [("Home", "Heim"), ("Home", "Startseite"), ("Home\n", "Startseite")]
    assert clean_pairs(strings) == {"Home": "Startseite"}
    assert clean_pairs([("Up", "Hoch"), ("Up", "Auf")]) == {"Up": "Hoch"}


# --- splitting --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        "DELETE 3 PAGES?",
        "delete %(count)s page",
        "Delete  {n} <b>pages</b>…",
        "\u2018Delete\u2019 page 12.",
    ],
)
def test_trivial_variants_have_one_key(variant: str) -> None:
    assert variant_key(variant) == variant_key("Delete page") == "delete page"


def test_clusters_join_through_english_and_through_any_translation() -> None:
    messages = ["Add a user", "Add user", "Append member", "Clear all filters", "Log out"]
    translations = {
        "de": {"Add user": "Nutzer hinzufügen", "Append member": "„Nutzer“ hinzufügen."},
        "fr": {"Clear all filters": "Effacer les filtres", "Log out": "Se déconnecter"},
    }
    assert cluster_messages(messages, translations).groups() == [
        ["Add a user", "Add user", "Append member"],
        ["Clear all filters"],
        ["Log out"],
    ]


def test_held_out_messages_are_translated_phrases_without_fields() -> None:
    translations = {
        "de": {
            "Clear all filters": "Alle Filter leeren",
            "Log out": "Abmelden",
            "Delete %s for good": "%s endgültig löschen",
            "Page not found": "Seite nicht gefunden",
            "Sorry, page not found!": "Verzeihung, Seite nicht gefunden!",
            "Only in German now": "Nur auf Deutsch",
        },
    }
    translations["fr"] = {key: f"fr {key}" for key in list(translations["de"])[:5]}
    messages = [*translations["de"], "Not translated at all"]
    assert eligible_messages(messages, translations) == {
        "Clear all filters",
        "Sorry, page not found!",
    }


def test_a_pair_of_variants_gives_one_held_out_message_and_its_twin_is_left_out() -> None:
    twins = ["Delete old page", "Delete old pages."]
    others = ["Clear all filters", "Log out of here", "Your password has expired", "yes"]
    clusters = cluster_messages([*twins, *others], {})
    split = split_messages(clusters, {*twins, *others[:3]}, held_out=2, seed=1)
    assert [len(split[name]) for name in ("train", "valid", "test")] == [1, 2, 2]
    assert split["train"] == {"yes"}
    assert len((split["valid"] | split["test"]) & set(twins)) == 1


WORDS = ["delete", "page", "user", "view", "the", "new", "image", "at once", "published"]
DECORATIONS = ["{}", "{}.", "“{}”", "{}s", "%(n)s {}", "{} 7", "<b>{}</b>", "Upper {}"]
ENGLISH = st.builds(
    lambda words, pattern: one_line(pattern.replace("{}", " ".join(words)).capitalize()),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    st.sampled_from(DECORATIONS),
)
GERMAN_LINE = st.lists(st.sampled_from(["Seite", "löschen", "Bild", "neu", "Sie"]), min_size=1)


@settings(max_examples=150, deadline=None)
@given(
    german=st.dictionaries(ENGLISH, GERMAN_LINE.map(" ".join), min_size=4, max_size=25),
    untranslated=st.sets(ENGLISH, max_size=10),
    held_out=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_no_message_or_translation_has_a_variant_in_another_split(
    german: dict[str, str], untranslated: set[str], held_out: int, seed: int
) -> None:
    messages = sorted(german.keys() | untranslated)
    clusters = cluster_messages(messages, {"de": german})
    # every message may be held out here, so that the clusters alone keep the splits apart
    split = split_messages(clusters, messages, held_out, seed)
    assert max(len(split["valid"]), len(split["test"])) <= held_out
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for left, right in product(split[one], split[other]):
            assert similarity(left, right) < ENGLISH_SIMILARITY
            if left in german and right in german:
                assert similarity(german[left], german[right]) < TRANSLATION_SIMILARITY


# --- the command ------------------------------------------------------------------------------

SMALL = {
    "Clear all filters": ("Alle Filter leeren", "Effacer tous les filtres"),
    "Log out of this site": ("Von dieser Website abmelden", "Quitter ce site"),
    "Your password has expired": ("Ihr Passwort ist abgelaufen", "Le mot de passe a expiré"),
    "No results were found": ("Keine Ergebnisse", "Aucun résultat trouvé"),
    "Choose another language": ("Andere Sprache wählen", "Choisir une autre langue"),
    "Save": ("Sichern", "Enregistrer"),
    "%d file\0%d files": ("%d Datei\0%d Dateien", "%d fichier\0%d fichiers"),
}


def make_out(out: Path) -> Path:
    """Make an output folder whose cache already holds three small wheels."""
    (out / "cache").mkdir(parents=True)
    for number, package in enumerate(PACKAGES):
        with zipfile.ZipFile(out / "cache" / package.wheel_name, "w") as wheel:
            for column, locale in enumerate(("de", "fr")):
                entries = {key: value[column] for key, value in list(SMALL.items())[number::3]}
                path = f"{package.name.lower()}/locale/{locale}/LC_MESSAGES/django.mo"
                wheel.writestr(path, compile_mo(entries, GERMAN))
    return out


def run_script(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE / "build_corpus.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def build_small(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--languages", "fr,de", "--min-strings", "5", "--held-out", "2"]
    return run_script("--out", out, *options, *more)


def contents(out: Path) -> dict[str, bytes]:
    files = [out / "corpus.json", *(out / "raw").iterdir()]
    return {path.name: path.read_bytes() for path in files}


def test_the_command_writes_aligned_files_and_prints_the_counts(tmp_path: Path) -> None:
    out = make_out(tmp_path / "corpus")
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


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    one, two, three = (make_out(tmp_path / name) for name in ("one", "two", "three"))
    for out, seed in ((one, "1"), (two, "1"), (three, "5")):
        assert build_small(out, "--seed", seed).returncode == 0
    assert contents(one) == contents(two)
    test_file = "test.en-de.en"
    assert contents(one)[test_file] != contents(three)[test_file]


def test_a_finished_corpus_is_left_alone_and_a_damaged_one_is_mended(tmp_path: Path) -> None:
    out = make_out(tmp_path / "corpus")
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
    tmp_path: Path, options: list[str], message: str
) -> None:
    out = make_out(tmp_path / "corpus")
    done = build_small(out, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("build_corpus.py: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(out) == ["cache"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    out = make_out(tmp_path / "corpus")
    (out / "raw").mkdir()
    (out / "raw" / "mine.txt").write_text("precious")
    done = build_small(out)
    assert done.returncode == 2
    assert "was not written by this script; remove it or choose another --out" in done.stderr
    assert os.listdir(out / "raw") == ["mine.txt"]


def test_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    out = make_out(tmp_path / "corpus")
    wheel = out / "cache" / PACKAGES[1].wheel_name
    wheel.write_bytes(wheel.read_bytes()[:200])
    done = build_small(out)
    assert done.returncode == 2
    assert f"{wheel}: not a wheel" in done.stderr


def test_a_damaged_catalog_is_named(tmp_path: Path) -> None:
    out = make_out(tmp_path / "corpus")
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
