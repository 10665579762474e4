"""`Translator` against stock fairseq-generate and fairseq-interactive of the same checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy import TASK, lines, run
from translating import DIRECTIONS, LANGTOK, text

from zcode_plugin.cli.main import main
from zcode_plugin.stock.jobs import StockCommand, StockJob
from zcode_plugin.translation import Batching, Hypothesis, Search, Translator

LENGTH = 12


@pytest.fixture(scope="module")
def quantised(multilingual: Path) -> Path:
    path = multilingual.with_name("quantised.pt")
    assert main(["quantise", str(multilingual), "--bits", "8", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def pruned(multilingual: Path, data: Path) -> Path:
    path, stats = multilingual.with_name("pruned.pt"), multilingual.with_name("stats.json")
    assert main(["stats", str(multilingual), str(data), "--out", str(stats)]) == 0
    arguments = ["--keep", "2", "--by", "utilisation", "--stats", str(stats), "--out", str(path)]
    assert main(["prune", str(multilingual), *arguments]) == 0
    return path


@pytest.fixture(scope="module")
def translator(multilingual: Path, data: Path) -> Translator:
    return Translator.load(multilingual, data=data)


def of_stock(
    data: Path, folder: Path, calls: list[tuple[Path, str, int]]
) -> list[list[Hypothesis]]:
    """Hypotheses of fairseq-generate for the test split, a list for each checkpoint, direction and
    beam size."""
    jobs = []
    for number, (checkpoint, direction, beam) in enumerate(calls):
        source, target = direction.split("-")
        arguments = (
            str(data), *TASK, *LANGTOK, "-s", source, "-t", target, "--path", str(checkpoint),
            "--beam", str(beam), "--max-len-b", str(LENGTH), "--remove-bpe", "sentencepiece",
            "--cpu", "--max-tokens", "4096",
        )  # fmt: skip
        jobs.append(StockJob(f"{number}", arguments, folder / f"{number}.txt"))
    with StockCommand("fairseq_cli.generate", workers=2, threads=1) as command:
        results = command.run(jobs)
    assert [result.exit_code for result in results] == [0] * len(jobs), results[0].log[-3000:]
    found = [
        [line.split("\t") for line in lines(result.job.output.read_text(encoding="utf-8"), "H")]
        for result in results
    ]
    return [[Hypothesis(text, float(score)) for _, score, text in of_a_call] for of_a_call in found]


def check_equal(
    data: Path, raw: Path, folder: Path, calls: list[tuple[Path, str, int]]
) -> set[str]:
    """What stock and `Translator` make of binarised data and raw text is the same; all texts."""
    loaded = {path: Translator.load(path, data=data) for path in {call[0] for call in calls}}
    seen = set()
    for (path, direction, beam), wanted in zip(calls, of_stock(data, folder, calls), strict=True):
        source, target = direction.split("-")
        found = loaded[path].translate(
            text(raw, direction),
            source=source,
            target=target,
            search=Search(beam, max_len_b=LENGTH),
        )
        best = [translation.hypotheses[0] for translation in found]
        assert len(best) == 6
        assert [one.text for one in best] == [one.text for one in wanted], (path, direction, beam)
        assert [one.score for one in best] == pytest.approx([one.score for one in wanted], abs=1e-4)
        seen.update(one.text for one in best)
    return seen


def test_hypotheses_and_scores_are_those_of_fairseq_generate(
    multilingual: Path, quantised: Path, pruned: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    calls = [(multilingual, "fr-en", 1), (multilingual, "de-en", 5)]
    calls += [(quantised, "de-en", 5), (pruned, "en-de", 5)]
    check_equal(data, raw, tmp_path, calls)


@pytest.mark.slow
def test_they_are_in_all_directions(
    multilingual: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    calls = [(multilingual, direction, beam) for direction in DIRECTIONS for beam in (1, 5)]
    seen = check_equal(data, raw, tmp_path, calls)
    assert len(seen) > 10  # it does not say the same whatever it is asked


@pytest.mark.slow
def test_hypotheses_are_those_of_fairseq_interactive(
    translator: Translator, multilingual: Path, data: Path, raw: Path
) -> None:
    output = run(
        "fairseq-interactive", data, *TASK, *LANGTOK, "-s", "fr", "-t", "en",
        "--path", multilingual, "--input", raw / "test.fr-en.fr", "--bpe", "sentencepiece",
        "--remove-bpe", "sentencepiece", "--sentencepiece-model", data / "sentencepiece.model",
        "--cpu", "--buffer-size", "6",
        "--max-tokens", "200", "--beam", "4", "--nbest", "2", "--max-len-b", LENGTH,
    )  # fmt: skip
    found = translator.translate(
        text(raw, "fr-en"), source="fr", target="en", search=Search(4, 2, max_len_b=LENGTH)
    )
    wanted = [line.split("\t")[2] for line in lines(output, "H")]
    assert [h.text for one in found for h in one.hypotheses] == wanted


def test_a_translation_does_not_depend_on_what_is_beside_it(
    translator: Translator, raw: Path
) -> None:
    many = text(raw, "de-en", "train")[:64]
    search = Search(beam=3, nbest=2, max_len_b=LENGTH)
    together, alone = (
        translator.translate(
            many, source="de", target="en", search=search, batching=Batching(batch_size=size)
        )
        for size in (64, 1)
    )
    for one, other in zip(together, alone, strict=True):
        assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
        assert [h.score for h in one.hypotheses] == pytest.approx(
            [h.score for h in other.hypotheses], abs=1e-5
        )


def test_python_takes_a_line_or_several(translator: Translator, raw: Path) -> None:
    several = text(raw, "fr-en")
    together = translator([*several[:3], "", " \t", *several[3:]], source="fr", target="en")
    assert together[3:5] == ["", ""]
    del together[3:5]
    assert [translator(line, source="fr", target="en") for line in several] == together
    assert translator.languages == ["de", "en", "fr"]
    assert translator([], source="fr", target="en") == []
    with pytest.warns(UserWarning, match="longer than the model can read"):
        translator("das " * 2000, source="de", target="en")


def test_importing_it_imports_no_slow_package() -> None:
    code = (
        "import sys, zcode_plugin.translation\n"
        "print([name for name in ('torch', 'fairseq', 'sentencepiece') if name in sys.modules])"
    )
    assert run_python(code).stdout == "[]\n"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")


@pytest.mark.parametrize("flag", ["--bf16", "--fp16"])
def test_precisions_differ_little(
    multilingual: Path, data: Path, translator: Translator, raw: Path, flag: str
) -> None:
    rounded = Translator.load(
        multilingual, data=data, precision={"--bf16": "bfloat16", "--fp16": "float16"}[flag]
    )
    several = text(raw, "de-en", "train")[:10]
    search = Search(beam=1, max_len_b=LENGTH)
    found, wanted = (
        [
            translation.hypotheses[0].score
            for translation in one.translate(several, source="de", target="en", search=search)
        ]
        for one in (rounded, translator)
    )
    assert found == pytest.approx(wanted, rel=0.1)
    assert found != wanted
