"""Split messages into train, valid and test so that no split repeats another.

Messages are joined into clusters: two belong together when their English lines, or their
translations in any one language, are the same but for trivia (`variant_key`) or share most of
their character 4-grams. A cluster lies in one split as a whole.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from pairs import placeholders, without_placeholders

SPLITS = ("train", "valid", "test")
# Jaccard similarity of 4-gram sets from which two lines are variants of each other. At 0.6 a
# plural sentence or one swapped word in a sentence of eight counts, another sentence on the same
# subject does not. Translations share endings and set phrases, so there the bar is higher.
ENGLISH_SIMILARITY = 0.6
TRANSLATION_SIMILARITY = 0.75
_SHINGLE = 4
_MIN_HELD_OUT_WORDS = 3
# A held-out cluster is lost to training, so families of near-copies stay there; a pair is mostly
# the singular and the plural of one message.
_MAX_HELD_OUT_CLUSTER = 2
_ARTICLES = frozenset({"a", "an", "the"})

# language -> {English line: its translation}
Translations = Mapping[str, Mapping[str, str]]


def variant_key(text: str) -> str:
    """Return what is left of a line without case, punctuation, digits, fields and plural s.

    Two lines with one key are trivial variants of each other. The key of a line without
    letters is empty.
    """
    folded = unicodedata.normalize("NFKC", without_placeholders(text)).casefold()
    # "doesn't" is one word, with either apostrophe
    joined = folded.replace("'", "").replace("\u2019", "")
    kept = (c if unicodedata.category(c)[0] in "LM" else " " for c in joined)
    return " ".join(_without_plural(word) for word in "".join(kept).split())


def _without_plural(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class Clusters:
    """Disjoint sets of messages (union-find with path halving)."""

    def __init__(self, messages: Collection[str]) -> None:
        self._parent = {message: message for message in messages}

    def find(self, message: str) -> str:
        """Return the representative of the cluster that holds `message`."""
        while self._parent[message] != message:
            self._parent[message] = self._parent[self._parent[message]]
            message = self._parent[message]
        return message

    def join(self, one: str, other: str) -> None:
        """Merge two clusters; the smaller representative stays, whatever the order of calls."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def groups(self) -> list[list[str]]:
        """Return all clusters, each sorted, in the order of their representatives."""
        found: dict[str, list[str]] = defaultdict(list)
        for message in sorted(self._parent):
            found[self.find(message)].append(message)
        return [found[representative] for representative in sorted(found)]


def cluster_messages(messages: Collection[str], translations: Translations) -> Clusters:
    """Join the variants among `messages`, all English lines, translated or not."""
    clusters = Clusters(messages)
    english = {message: variant_key(message) for message in sorted(messages)}
    first: dict[str, str] = {}
    for message, key in english.items():
        bare = " ".join(word for word in key.split() if word not in _ARTICLES)
        clusters.join(message, first.setdefault(bare, message))
    _join_similar(clusters, english, ENGLISH_SIMILARITY)
    for pairs in translations.values():
        keys = {message: variant_key(pairs[message]) for message in sorted(pairs)}
        _join_similar(clusters, keys, TRANSLATION_SIMILARITY)
    return clusters


def _join_similar(clusters: Clusters, keys: Mapping[str, str], threshold: float) -> None:
    """Join messages whose 4-gram sets have a Jaccard similarity of `threshold` or more."""
    found = _Shingled(keys, threshold)
    for message in found.shingles:
        for other in found.similar(message):
            clusters.join(message, other)
        found.add(message)


def similar_messages(
    queries: Collection[str], messages: Collection[str], translations: Translations
) -> dict[str, set[str]]:
    """The variants of each query among `messages`, all English lines, itself left out.

    They are what `cluster_messages` would join directly, without comparing all with all.
    """
    similar: dict[str, set[str]] = {query: set() for query in queries}
    sides: list[tuple[Mapping[str, str], float]] = [
        ({message: message for message in messages}, ENGLISH_SIMILARITY)
    ]
    sides += [(pairs, TRANSLATION_SIMILARITY) for pairs in translations.values()]
    for lines, threshold in sides:
        found = _Shingled({message: variant_key(lines[message]) for message in lines}, threshold)
        for message in found.shingles:
            found.add(message)
        for query in similar.keys() & found.shingles.keys():
            similar[query] |= found.similar(query) - {query}
    return similar


class _Shingled:
    """Messages by their 4-gram sets, to find those of a Jaccard similarity of `threshold` or more.

    Prefix filter: with shingles in order of rarity, two such sets must share one among their
    first ``size - ceil(threshold * size) + 1``, so only these are indexed and looked up.
    """

    def __init__(self, keys: Mapping[str, str], threshold: float) -> None:
        self.shingles = {message: _shingles(key) for message, key in keys.items()}
        self._threshold = threshold
        self._frequency = Counter(one for found in self.shingles.values() for one in found)
        self._index: dict[str, list[str]] = defaultdict(list)

    def add(self, message: str) -> None:
        """From now on the message is found."""
        for shingle in self._prefix(message):
            self._index[shingle].append(message)

    def similar(self, message: str) -> set[str]:
        """Those added so far that are similar to a message."""
        own = self.shingles[message]
        near = {other for shingle in self._prefix(message) for other in self._index[shingle]}
        return {other for other in near if _jaccard(own, self.shingles[other]) >= self._threshold}

    def _prefix(self, message: str) -> list[str]:
        own = self.shingles[message]
        rarest = sorted(own, key=lambda shingle: (self._frequency[shingle], shingle))
        return rarest[: len(rarest) - math.ceil(self._threshold * len(rarest)) + 1]


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of two lines' 4-gram sets, from 0 (disjoint) to 1 (same key)."""
    return _jaccard(_shingles(variant_key(one)), _shingles(variant_key(other)))


def _shingles(key: str) -> frozenset[str]:
    padded = f" {key} "
    starts = range(max(1, len(padded) - _SHINGLE + 1))
    return frozenset(padded[start : start + _SHINGLE] for start in starts)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def eligible_messages(messages: Collection[str], translations: Translations) -> frozenset[str]:
    """Messages fit for valid and test.

    They have 3 words or more, every language translates them, and neither they nor a translation
    lies word for word inside a longer line, which may be in train. They hold no fields or markup:
    those are the same on both sides, and would give the untranslated source a BLEU above 20.
    """
    shared = set(messages).intersection(*translations.values())
    english = {message: variant_key(message) for message in messages}
    inner = _contained(english)
    for pairs in translations.values():
        inner |= _contained({message: variant_key(other) for message, other in pairs.items()})
    return frozenset(
        message
        for message in shared - inner
        if len(english[message].split()) >= _MIN_HELD_OUT_WORDS and not placeholders(message)
    )


def _contained(keys: Mapping[str, str]) -> set[str]:
    """Messages whose key is a proper part, at word boundaries, of another message's key."""
    known = set(keys.values())
    inner: set[str] = set()
    for key in known:
        words = key.split()
        spans = (
            " ".join(words[start:stop])
            for start in range(len(words))
            for stop in range(start + 1, len(words) + 1)
        )
        inner.update(span for span in spans if span != key and span in known)
    return {message for message, key in keys.items() if key in inner}


def split_messages(
    clusters: Clusters, eligible: Collection[str], held_out: int, seed: int
) -> dict[str, frozenset[str]]:
    """Give `held_out` clusters to test, as many to valid and all others to train.

    A held-out cluster is small and gives one eligible message; its twin, where it has one, is left
    out altogether. The order is that of a hash of (seed, representative), so that a cluster's
    place in it does not depend on which other messages there are.

    Returns:
        "train", "valid", "test" -> messages; valid and test are short where too few are eligible.
    """
    members: dict[str, list[str]] = {name: [] for name in SPLITS}
    for group in sorted(clusters.groups(), key=lambda group: _rank(seed, group[0])):
        chosen = [message for message in group if message in eligible]
        room = [name for name in ("test", "valid") if len(members[name]) < held_out]
        if room and chosen and len(group) <= _MAX_HELD_OUT_CLUSTER:
            members[room[0]].append(min(chosen, key=lambda message: _rank(seed, message)))
        else:
            members["train"].extend(group)
    return {name: frozenset(found) for name, found in members.items()}


def _rank(seed: int, message: str) -> bytes:
    return hashlib.sha256(f"{seed}:{message}".encode()).digest()
