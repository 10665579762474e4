"""Records of runs: all that tables need of a model, without its checkpoint.

A record is small enough to be committed. With it a study goes on on another machine than it was
begun on, its tables are made again without training, and a system of one's own can be held against
these, for it has what the model made of every test sentence. The corpus is no part of it: sources
and references are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile, zip_longest
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from fairseq.data import Dictionary
from fairseq.data.data_utils import post_process
from forward import losses_of_pieces
from results import as_json, describe, provenance
from sentencepiece import SentencePieceProcessor
from trainings import CPU, Point, Run, Study

from zcode_plugin.files import write_files

# Of what `zcode evaluate` writes of a direction.
KEPT = ("bleu", "chrf", "sentences", "bleu_signature", "chrf_signature", "hypotheses")

Key = TypeVar("Key")


@dataclass(frozen=True)
class Measured:
    """What was measured of a run.

    Attributes:
        parameters: of the model.
        curve: its validations.
        pieces: test loss in bits per piece of a word, by group of directions and kind of piece.
        results: as of `zcode evaluate`.
        path: the file with them.
        made: the day and the machine.
    """

    parameters: int
    curve: list[Point]
    pieces: dict[str, float]
    results: dict[str, Any]
    path: Path
    made: str


class Records:
    """Makes the records of a study's runs, and reads them.

    Args:
        study: trains and translates.
        folder: for the records.
        makes: whether runs without a record are trained.
    """

    def __init__(self, study: Study, folder: Path, makes: bool = True):
        self.study, self.folder, self.makes = study, folder, makes
        self._one_at_a_time = Lock()

    def beside(self, name: str, data: Path) -> Records:
        """Those of a study of other data, whose runs have names that no other study's have.

        Args:
            name: of the folder of its runs.
            data: binarised data, in one folder with `corpus/raw`, the text.
        """
        return Records(self.study.beside(name, data), self.folder, self.makes)

    def measure(
        self, systems: Mapping[Key, Sequence[Run]], needed: Sequence[Key] = ()
    ) -> dict[Key, list[Measured]]:
        """What there is of the runs of each system; those of equal place are made side by side.

        Where none is made, a system's runs end before the first without a record, and systems
        without any are left out.

        Args:
            systems: their runs, of the first seeds or all of them.
            needed: systems without which there is nothing to say.

        Raises:
            SystemExit: one of these has no record.
        """
        self.make(systems)
        found = {
            name: [self.read(run) for run in takewhile(self._has, runs)]
            for name, runs in systems.items()
        }
        for name in needed:
            if not found[name]:
                raise SystemExit(f"{self.path(systems[name][0])} is missing: leave out --recorded")
        return {name: several for name, several in found.items() if several}

    def make(self, systems: Mapping[Key, Sequence[Run]]) -> None:
        """Make the records that are missing, if this makes any; see `measure`."""
        if not self.makes:
            return
        in_turn = chain(*zip_longest(*systems.values()))
        missing = [run for run in in_turn if run is not None and not self._has(run)]
        with ThreadPoolExecutor(self.study.jobs) as pool:
            list(pool.map(self._make, missing))

    def path(self, run: Run) -> Path:
        """Of a run's record."""
        return self.folder / f"{run.name}.json"

    def read(self, run: Run) -> Measured:
        """A record that is there.

        Raises:
            SystemExit: it is of a run with other options.
        """
        path = self.path(run)
        record = json.loads(path.read_text())
        if record["options"] != portable(self.study.options(run)):
            raise SystemExit(f"{path} is of a run with other options: delete it")
        results = {"directions": {
            direction: {**entry, **self._texts[direction]}
            for direction, entry in record["directions"].items()
        }}  # fmt: skip
        file = self.study.folder / "results" / path.name
        file.parent.mkdir(exist_ok=True)
        write_files({file: as_json(results)})
        curve = [Point(**point) for point in record["curve"]]
        made = f"{record['date']}, {describe(record['machine'])}"
        return Measured(record["parameters"], curve, record["pieces"], results, file, made)

    @cached_property
    def _texts(self) -> dict[str, dict[str, list[str]]]:
        return scored_texts(self.study.data)

    def _has(self, run: Run) -> bool:
        return self.path(run).exists()

    def _make(self, run: Run) -> None:
        study = self.study
        study.train([run])
        [results] = study.evaluate([run])
        with self._one_at_a_time:
            pieces = losses_of_pieces(study.checkpoint(run), study.data, "test")
        record = {
            "run": run.name,
            **provenance(study.gpu),
            "options": portable(study.options(run)),
            "parameters": study.parameters(run),
            "curve": [vars(point) for point in study.curve(run)],
            "pieces": {", ".join(key): pieces[key] for key in sorted(pieces, reverse=True)},
            "directions": {
                direction: {key: entry[key] for key in KEPT}
                for direction, entry in results["directions"].items()
            },
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_files({self.path(run): as_json(record)})


def origins(measured: Mapping[Key, Sequence[Measured]]) -> dict[str, list[str]]:
    """Which runs, and the days and machines that they were made on, for a report's details."""
    several = [*chain(*measured.values())]
    return {
        "runs": sorted(one.path.stem for one in several),
        "made": sorted({one.made for one in several}),
    }


def portable(options: Sequence[str]) -> list[str]:
    """Options without what is of one machine."""
    place = options.index("--user-dir")
    rest = [*options[:place], *options[place + 2 :]]
    return [one for one in rest if one != CPU]


def scored_texts(data: Path) -> dict[str, dict[str, list[str]]]:
    """Sources and references of the test part, by direction, as `zcode evaluate` has them.

    That is what subwords leave of the corpus: some characters become others or unknown.
    """
    pieces = SentencePieceProcessor(model_file=str(data / "sentencepiece.model"))
    dictionary = Dictionary.load(str(data / "dict.en.txt"))
    found = {}
    for source_file in (data.parent / "corpus" / "raw").glob("test.en-*.*"):
        _, pair, source = source_file.name.split(".")
        [target] = {*pair.split("-")} - {source}
        found[f"{source}-{target}"] = {
            field: [
                as_scored(line, pieces, dictionary, unknown)
                for line in source_file.with_suffix(f".{language}").read_text().splitlines()
            ]
            for field, language, unknown in (
                ("sources", source, "<unk>"), ("references", target, "<<unk>>")
            )
        }  # fmt: skip
    return found


def as_scored(
    line: str, pieces: SentencePieceProcessor, dictionary: Dictionary, unknown: str
) -> str:
    """A line that was cut into pieces and joined again; stock marks what is unknown."""
    parts = pieces.encode(line, out_type=str)
    known = (part if part in dictionary else unknown for part in parts)
    return str(post_process(" ".join(known), "sentencepiece"))
