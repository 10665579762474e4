"""`zcode compare`: scores side by side, and sacreBLEU's own tests between them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from zcode_plugin.cli.main import main

WORDS = [
    "the",
    "old",
    "tree",
    "sees",
    "a",
    "small",
    "green",
    "house",
    "and",
    "finds",
    "not",
    "one",
    "river",
    "under",
    "it",
]
DIRECTIONS = ("de-en", "fr-en", "en-de")


def references(direction: str) -> list[str]:
    draw = random.Random(direction)
    return [" ".join(draw.choices(WORDS, k=9)) for _ in range(30)]


def worse(lines: list[str], share: float, seed: str) -> list[str]:
    """Lines with some of their words replaced."""
    draw = random.Random(seed)
    return [
        " ".join("blue" if draw.random() < share else word for word in line.split())
        for line in lines
    ]


def write(path: Path, share: float, seed: int, **changes: Any) -> Path:
    """A results file as zcode evaluate writes it, as far as it is read here."""
    record: dict[str, Any] = {"comet_model": None, "directions": {}}
    for direction in DIRECTIONS:
        record["directions"][direction] = {
            "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
            "sources": references(direction),
            "references": references(direction),
            "hypotheses": worse(references(direction), share, f"{seed} {direction}"),
            "comet": None,
        }
    record.update(changes)
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A baseline, one that is hardly better, and one that is much better."""
    return [
        write(tmp_path / "base.json", 0.40, seed=1),
        write(tmp_path / "same.json", 0.40, seed=2),
        write(tmp_path / "good.json", 0.15, seed=3),
    ]


def zcode(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    return main(["compare", *map(str, arguments)]), *capsys.readouterr()


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_equal_translations_do_not_differ(
    capsys: pytest.CaptureFixture[str], three: list[Path], tmp_path: Path, test: str
) -> None:
    out, again = tmp_path / "out.json", tmp_path / "again.json"
    again.write_text(three[0].read_text())
    code, printed, _ = zcode(
        capsys, three[0], again, "--test", test, "--samples", "100", "--out", out
    )
    assert code == 0
    assert "*" not in printed
    metrics = json.loads(out.read_text())["metrics"]
    found = [metrics[metric]["scores"]["all sentences"] for metric in ("bleu", "chrf")]
    assert [one["systems"]["again"]["p"] for one in found] == [1, 1]


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_scores_and_p_values_are_those_of_sacrebleu(
    capsys: pytest.CaptureFixture[str], three: list[Path], tmp_path: Path, test: str
) -> None:
    out = tmp_path / "out.json"
    code, printed, _ = zcode(capsys, *three, "--test", test, "--samples", "300", "--out", out)
    assert code == 0
    record = json.loads(out.read_text())
    assert record["baseline"] == "base"
    texts = [json.loads(path.read_text())["directions"] for path in three]
    for name, members in ("fr-en", ["fr-en"]), ("all sentences", ["de-en", "fr-en", "en-de"]):
        joined = [
            [line for d in members for line in of_a_system[d]["hypotheses"]]
            for of_a_system in texts
        ]
        wanted = [line for d in members for line in references(d)]
        for metric, scorer in ("bleu", BLEU()), ("chrf", CHRF(word_order=2)):
            paired = PairedTest(
                list(zip("abc", joined, strict=True)), {"x": scorer}, [wanted], test, 300
            )
            signatures, results = paired()
            [[title, signature]] = signatures.items()
            found = record["metrics"][metric]["scores"][name]
            assert found["signature"] == str(signature)
            assert "seed:12345" in found["signature"]
            assert found["sentences"] == len(wanted)
            for system, result in zip(("base", "same", "good"), results[title], strict=True):
                assert found["systems"][system] == {
                    "score": result.score, "p": result.p_value, "mean": result.mean,
                    "ci": result.ci,
                }  # fmt: skip
            assert found["systems"]["good"]["p"] < 0.05 < found["systems"]["same"]["p"]
    mean = record["metrics"]["bleu"]["means"]["X->en"]["good"]
    scores = record["metrics"]["bleu"]["scores"]
    both = [scores[d]["systems"]["good"]["score"] for d in ("de-en", "fr-en")]
    assert mean == pytest.approx(sum(both) / 2)
    lines = printed.splitlines()
    assert lines[0] == "BLEU"
    assert lines[1].split() == ["direction", "sentences", "base", "same", "p", "good", "p"]
    assert [line.split()[0] for line in lines[3:9]] == [
        *("de-en", "fr-en", "en-de", "all", "mean", "mean"),
    ]
    assert lines[3].endswith("*")
    title = {"bs": "paired bootstrap resampling", "ar": "paired approximate randomisation"}[test]
    assert f"baseline: base; p: {title}, 300 samples" in lines


def test_the_seed_is_that_of_sacrebleus_variable(
    capsys: pytest.CaptureFixture[str], three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*three[:2], "--samples", "50")
    first = zcode(capsys, *command)
    assert zcode(capsys, *command) == first
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    other = zcode(capsys, *command)[1]
    assert "seed:7" in other
    assert other != first[1].replace("seed:12345", "seed:7")


def test_only_common_directions_and_tokenizers_are_compared(
    capsys: pytest.CaptureFixture[str], three: list[Path], tmp_path: Path
) -> None:
    for path in three[:2]:
        record = json.loads(path.read_text())
        record["directions"]["en-zh"] = dict(record["directions"]["en-de"])
        record["directions"]["en-zh"]["bleu_signature"] = "tok:zh|"
        path.write_text(json.dumps(record))
    names = ["--names", "old,new", "--samples", "50"]
    _, printed, _ = zcode(capsys, *three[:2], *names)
    assert "\nall sentences: no BLEU, whose tokenizer differs between directions\n" in printed
    assert "|tok:zh|" in printed
    assert printed.count("\nall sentences ") == 1
    assert printed.splitlines()[1].split()[2:] == ["old", "new", "p"]
    _, printed, _ = zcode(capsys, *three[1:], "--samples", "50")
    assert printed.endswith("left out, as not all results have them: en-zh\n")


def test_comet_is_shown_where_all_have_it(
    capsys: pytest.CaptureFixture[str], three: list[Path]
) -> None:
    for number, path in enumerate(three):
        record = json.loads(path.read_text())
        record["comet_model"] = "a"
        for entry in record["directions"].values():
            entry["comet"] = 0.5 + number / 10
        path.write_text(json.dumps(record))
    _, printed, _ = zcode(capsys, *three, "--samples", "5")
    lines = printed[printed.index("COMET\n") :].splitlines()
    assert lines[1].split() == ["direction", "sentences", "base", "same", "good"]
    assert lines[3].split() == ["de-en", "30", "0.5000", "0.6000", "0.7000"]
    three[0].write_text(three[0].read_text().replace('"comet_model": "a"', '"comet_model": "b"'))
    assert "COMET" not in zcode(capsys, *three, "--samples", "5")[1]


def test_what_does_not_fit_into_memory_is_left_out(
    capsys: pytest.CaptureFixture[str], three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcode_plugin.evaluation.comparison.MOST_BYTES", 90 * 112 * 5)
    whole = zcode(capsys, *three[:2], "--samples", "5")[1].splitlines()
    printed = zcode(capsys, *three[:2], "--samples", "15")[1].splitlines()
    assert "all sentences: not tested for lack of memory: give --samples 5 or fewer" in printed
    [tested, untested] = (
        next(line for line in lines if line.startswith("all sentences")).split()
        for lines in (whole, printed)
    )
    assert tested[:5] == untested
    assert len(tested) == 6
    assert not any(line.startswith("de-en: not") for line in printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("base.json", "give two results or more: the first is the baseline"),
        ("base.json no.json", "no.json: No such file or directory"),
        ("base.json other.json", "other.json has other references of de-en than base.json: "
         "evaluate both on the same data and split"),
        ("base.json text.txt", "text.txt is no results file of zcode evaluate --out"),
        ("base.json list.json", "list.json is no results file of zcode evaluate --out"),
        ("base.json older.json", "older.json is of an older zcode evaluate, without translations: "
         "evaluate again"),
        ("base.json intl.json", "intl.json was scored with the tokenizer intl in de-en, base.json "
         "with 13a: give both the same --sacrebleu-tokenizer"),
        ("base.json odd.json", "odd.json: sacreBLEU has no '14a'; did you mean 13a?"),
        ("base.json none.json", "base.json and none.json have no direction in common"),
        ("base.json same.json --names a", "--names a: give 2 different names"),
        ("base.json same.json --samples 0", "--samples 0 must be at least 1"),
        ("base.json same.json --out base.json", "--out base.json is one of the files to read: "
         "name another"),
        ("base.json same.json --out no/x.json", "--out no/x.json: there is no folder no; make it "
         "first"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
    three: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = three[0].read_text()
    other = json.loads(base)
    other["directions"]["de-en"]["references"][0] = "else"
    Path("other.json").write_text(json.dumps(other))
    Path("text.txt").write_text("BLEU = 3\n")
    Path("list.json").write_text('{"directions": ["de-en"]}')
    Path("older.json").write_text(base.replace("hypotheses", "nothing"))
    Path("intl.json").write_text(base.replace("tok:13a", "tok:intl"))
    Path("odd.json").write_text(base.replace("tok:13a", "tok:14a"))
    Path("none.json").write_text('{"directions": {}}')
    before = sorted(tmp_path.iterdir())
    assert zcode(capsys, *arguments.split()) == (2, "", f"zcode compare: error: {message}\n")
    assert sorted(tmp_path.iterdir()) == before
    assert three[0].read_text() == base


def test_as_a_command(three: list[Path]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "zcode_plugin.cli.main", "compare", *map(str, three[:2])],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "|bs:1000|seed:12345|" in ended.stdout


@pytest.mark.parametrize("seed", ["abc", "-1", "0", ""])
def test_a_seed_that_sacrebleu_cannot_take(
    capsys: pytest.CaptureFixture[str],
    three: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    seed: str,
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", seed)
    message = f"SACREBLEU_SEED={seed}: give a whole number above 0, or none"
    assert zcode(capsys, *three) == (2, "", f"zcode compare: error: {message}\n")
