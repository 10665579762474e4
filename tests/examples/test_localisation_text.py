"""The localisation corpus: reading catalogs, cleaning lines, splitting messages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from catalogs import read_catalog
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import clean_pairs, is_good_pair, one_line, placeholders
from splits import (
    ENGLISH_SIMILARITY,
    TRANSLATION_SIMILARITY,
    cluster_messages,
    eligible_messages,
    similarity,
    split_messages,
    variant_key,
)

Compile = Callable[..., bytes]

GERMAN = "nplurals=2; plural=(n != 1);"
POLISH = "nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);"
JAPANESE = "nplurals=1; plural=0;"


@pytest.mark.parametrize("order", ["<", ">"])
def test_plural_forms_follow_the_catalogs_own_rule(compile_mo: Compile, order: str) -> None:
    files = {"%d file\0%d files": "%d plik\0%d pliki\0%d plików"}
    assert read_catalog(compile_mo(files, POLISH, order)) == [
        ("%d file", "%d plik"),
        ("%d files", "%d plików"),
    ]


def test_a_language_with_one_form_gives_the_plural_alone(compile_mo: Compile) -> None:
    catalog = compile_mo({"%d page\0%d pages": "%d ページ"}, JAPANESE)
    assert read_catalog(catalog) == [("%d pages", "%d ページ")]


def test_contexts_are_told_apart_and_the_header_is_dropped(compile_mo: Compile) -> None:
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
    assert one_line("  a\n\tcafe\u0301\u00a0 b\u200b ") == "a café b"


def test_lopsided_pairs_are_dropped() -> None:
    assert not is_good_pair("Live", "Auf der Website veröffentlicht")
    assert is_good_pair("OK", "Accettare")


def test_the_most_frequent_translation_wins() -> None:
    strings = [("Home", "Heim"), ("Home", "Startseite"), ("Home\n", "Startseite")]
    assert clean_pairs(strings) == {"Home": "Startseite"}
    assert clean_pairs([("Up", "Hoch"), ("Up", "Auf")]) == {"Up": "Hoch"}


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
