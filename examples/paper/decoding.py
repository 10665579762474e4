"""How fast checkpoints translate, as stock fairseq-generate counts it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from study import Scale
from trainings import Study

from zcode_plugin.data.pairs import Pair
from zcode_plugin.files import write_files

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import translation


class Measurements:
    """Numbers that were measured, in a file, so that an interrupted study goes on.

    Args:
        path: JSON file.
        subject: what they are of, in terms of JSON; what was measured of another is forgotten.
    """

    def __init__(self, path: Path, subject: object):
        self.path, self.subject = path, json.loads(json.dumps(subject))
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.known: dict[str, float] = {}
        if stored.get("subject") == self.subject:
            self.known = stored["known"]

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """What is known under a key, or what is measured now."""
        if key not in self.known:
            print(f"measuring {key}", flush=True)
            self.known[key] = measure()
            stored = {"subject": self.subject, "known": self.known}
            write_files({self.path: (json.dumps(stored, indent=1) + "\n").encode()})
        return self.known[key]


@dataclass(frozen=True)
class Setting:
    """How fairseq-generate translates: its beam, and most sentences of a batch."""

    beam: int
    batch: int

    def __str__(self) -> str:
        return f"beam {self.beam}, batch {self.batch}"


def settings(scale: Scale) -> list[Setting]:
    """All that are measured."""
    # What has hardly been trained writes endlessly: sentence by sentence that takes minutes.
    return [Setting(*both) for both in product((1, 5), scale.pick((1, 64), (64,)))]


def speeds(
    study: Study,
    measurements: Measurements,
    files: Mapping[str, Path],
    directions: Sequence[Pair],
    rounds: int,
    settings: Sequence[Setting],
) -> dict[tuple[str, Setting], float]:
    """Tokens per second on one thread, medians over rounds, by file and setting."""
    found: dict[tuple[str, Setting], list[float]] = {}
    for setting in settings:
        for number, name in translation.alternating(files, rounds):
            args = Namespace(
                data=study.data, gen_subset="test", beam=setting.beam, batch_size=setting.batch,
                max_tokens=12000, remove_bpe="sentencepiece", threads=1,
            )  # fmt: skip

            def measure(args: Namespace = args, path: Path = files[name]) -> float:
                return translation.translate(args, path, directions)[0]

            key = f"{name}, {setting}, round {number + 1}"
            found.setdefault((name, setting), []).append(measurements.get(key, measure))
    return {key: median(some) for key, some in found.items()}
