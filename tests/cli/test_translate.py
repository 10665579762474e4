"""`zcode translate` and `Translator` against stock fairseq-generate of the same checkpoint."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy import MODEL, TASK, lines, run

from zcode_plugin.checkpoint import config, io
from zcode_plugin.cli.main import main
from zcode_plugin.cli.stock import StockCommand, StockJob
from zcode_plugin.translation import Batching, Hypothesis, Search, Translator

Run = Callable[..., subprocess.CompletedProcess[str]]

DIRECTIONS = ("de-en", "en-de", "en-fr", "fr-en")
LANGTOK = ("--encoder-langtok", "src", "--decoder-langtok", "--objective-token")
LENGTH = 12
ZCODE = (sys.executable, "-m", "zcode_plugin.cli.main", "translate")


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Run:
    """`zcode translate` in this process, which has imported fairseq."""

    def translate(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        command = ["translate", *(str(argument) for argument in arguments)]
        return subprocess.CompletedProcess(command, main(command), *capfd.readouterr())

    return translate


@pytest.fixture(scope="module")
def learnt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of all directions, beside nothing, that has learnt something of them."""
    folder = tmp_path_factory.mktemp("learnt")
    run(
        "fairseq-train", data, *TASK, *MODEL, *LANGTOK, "--moe-top-k", "2", "--moe-freq", "1",
        "--criterion", "multitask_summed_loss", "--optimizer", "adam", "--lr", "0.005",
        "--max-tokens", "2000", "--max-update", "40", "--disable-validation", "--cpu",
        "--num-workers", "0", "--data-buffer-size", "0", "--no-epoch-checkpoints",
        "--save-dir", folder,
    )  # fmt: skip
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def alone(learnt: Path) -> Path:
    """The same checkpoint on another machine: its folder of training is not there."""
    state = io.load(learnt)
    config.put(config.section(state, "task"), "data", "gone")
    path = learnt.with_name("alone.pt")
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def quantised(learnt: Path) -> Path:
    path = learnt.with_name("quantised.pt")
    assert main(["quantise", str(learnt), "--bits", "8", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def pruned(learnt: Path, data: Path) -> Path:
    path, stats = learnt.with_name("pruned.pt"), learnt.with_name("stats.json")
    assert main(["stats", str(learnt), str(data), "--out", str(stats)]) == 0
    arguments = ["--keep", "2", "--by", "utilisation", "--stats", str(stats), "--out", str(path)]
    assert main(["prune", str(learnt), *arguments]) == 0
    return path


@pytest.fixture(scope="module")
def translator(learnt: Path, data: Path) -> Translator:
    return Translator.load(learnt, data=data)


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


def text(raw: Path, direction: str, split: str = "test") -> list[str]:
    """The source side of a split, as users have it."""
    source = direction.split("-")[0]
    pair = "en-de" if "de" in direction else "fr-en"
    return (raw / f"{split}.{pair}.{source}").read_text(encoding="utf-8").splitlines()


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
    learnt: Path, quantised: Path, pruned: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    calls = [(learnt, "fr-en", 1), (learnt, "de-en", 5)]
    calls += [(quantised, "de-en", 5), (pruned, "en-de", 5)]
    check_equal(data, raw, tmp_path, calls)


@pytest.mark.slow
def test_they_are_in_all_directions(learnt: Path, data: Path, raw: Path, tmp_path: Path) -> None:
    calls = [(learnt, direction, beam) for direction in DIRECTIONS for beam in (1, 5)]
    seen = check_equal(data, raw, tmp_path, calls)
    assert len(seen) > 10  # it does not say the same whatever it is asked


@pytest.mark.slow
def test_hypotheses_are_those_of_fairseq_interactive(
    translator: Translator, learnt: Path, data: Path, raw: Path
) -> None:
    output = run(
        "fairseq-interactive", data, *TASK, *LANGTOK, "-s", "fr", "-t", "en", "--path", learnt,
        "--input", raw / "test.fr-en.fr", "--bpe", "sentencepiece", "--remove-bpe", "sentencepiece",
        "--sentencepiece-model", data / "sentencepiece.model", "--cpu", "--buffer-size", "6",
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


def test_a_file_keeps_its_order_and_its_empty_lines(
    here: Run, translator: Translator, learnt: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    several = text(raw, "en-fr")
    source, out = tmp_path / "en.txt", tmp_path / "fr.txt"
    source.write_bytes("\r\n".join(["\ufeff" + several[0], "", *several[1:]]).encode())
    command = ("--checkpoint", learnt, "--data", data, "-s", "en", "-t", "fr", source)
    ended = here(*command, "--buffer-size", "3")
    assert (ended.returncode, ended.stderr) == (0, "")
    wanted = translator([several[0], "", *several[1:]], source="en", target="fr")
    assert ended.stdout == "".join(f"{line}\n" for line in wanted)
    assert wanted[1] == ""
    assert here(*command, "--out", out).stdout == ""
    assert out.read_text(encoding="utf-8") == ended.stdout
    assert sorted(tmp_path.iterdir()) == [source, out]

    nbest = here(*command, "--nbest", "2", "--beam", "4", "--lenpen", "2").stdout.splitlines()
    numbers = [line.split("\t")[0] for line in nbest]
    assert numbers == ["1", "1", "2", "3", "3", "4", "4", "5", "5", "6", "6", "7", "7"]
    assert nbest[2] == "2\t0.0000\t"
    search = Search(beam=4, nbest=2, lenpen=2.0)
    best = translator.translate(several[:1], source="en", target="fr", search=search)[0]
    assert nbest[:2] == [f"1\t{one.score:.4f}\t{one.text}" for one in best.hypotheses]


def test_length_limits_are_those_asked_for(
    here: Run, learnt: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    source = tmp_path / "en.txt"
    source.write_text("the\n")
    command = ("--checkpoint", learnt, "--data", data, "-s", "en", "-t", "de", source, "--cpu")
    one = here(*command, "--max-len-b", "1").stdout
    more = here(*command, "--max-len-b", "9").stdout
    assert here(*command, "--max-len-a", "3", "--max-len-b", "3").stdout == more
    assert len(one) < len(more)


@pytest.mark.parametrize("flag", ["--bf16", "--fp16"])
def test_precisions_differ_little(
    learnt: Path, data: Path, translator: Translator, raw: Path, flag: str
) -> None:
    rounded = Translator.load(
        learnt, data=data, precision={"--bf16": "bfloat16", "--fp16": "float16"}[flag]
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


def test_long_lines_are_cut_with_one_warning(
    here: Run, translator: Translator, learnt: Path, data: Path, tmp_path: Path
) -> None:
    source = tmp_path / "de.txt"
    source.write_text("das Haus\n" + "das " * 60 + "\n" + "Haus " * 70 + "\n", encoding="utf-8")
    command = ("--checkpoint", learnt, "--data", data, "-s", "de", "-t", "en", source)
    ended = here(*command, "--max-tokens", "43", "--max-len-b", str(LENGTH))
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 3
    most = translator.translate(["Haus " * 70], source="de", target="en", search=Search(1))[0]
    # Of 43 tokens three are the objective's, the language's and the end.
    assert ended.stderr == (
        f"zcode translate: warning: {source}: lines 2, 3: up to {most.tokens} tokens, of which 40 "
        "can be read at a time; the rest is not translated: split such lines\n"
    )


def test_a_program_gets_its_answer_line_by_line_and_nothing_is_said_at_the_end(
    learnt: Path, data: Path, translator: Translator, raw: Path
) -> None:
    several = text(raw, "de-en")[:3]
    arguments = ("--checkpoint", learnt, "--data", data, "-s", "de", "-t", "en")
    with subprocess.Popen(
        [*ZCODE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for line in several:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            assert process.stdout.readline() == translator(line, source="de", target="en") + "\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "\n"
        process.stdout.close()  # as `head` does when it has seen enough
        process.stdin.write(f"{several[0]}\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_progress_is_shown_on_a_terminal_and_an_interruption_leaves_nothing(
    learnt: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "en.txt"
    out.parent.mkdir()
    arguments = ("--checkpoint", learnt, "--data", data, "-s", "de", "-t", "en", "--out", out)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*ZCODE, *arguments],
        stdin=subprocess.PIPE,
        stderr=theirs,
        # Where these tests run in the background of a shell, it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        assert process.stdin
        process.stdin.write("\n".join(text(raw, "de-en")).encode() + b"\n")
        process.stdin.flush()
        told = b""
        while b"6 lines" not in told:
            told += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        told += os.read(ours, 1000)
    os.close(ours)
    assert told.decode().splitlines()[-1].endswith("zcode translate: interrupted")
    assert b"Traceback" not in told
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-s de -t xx", "--target-lang xx: the checkpoint's languages are de, en, fr"),
        ("-s deu -t en", "--source-lang deu: the checkpoint's languages are de, en, fr; did you "
         "mean de?"),
        ("-s de -t en --checkpoint {0}/a-rank-0.pt", "{0}/a-rank-0.pt is of one rank of several: "
         "run `zcode merge {0}/a-rank-0.pt`"),
        ("-s de -t en --checkpoint {0}/a.pt", "{0}/a.pt is of one rank of several: run "
         "`zcode merge {0}/a.pt`"),
        ("-s de -t en --checkpoint {0}/no.pt", "there is no checkpoint {0}/no.pt"),
        ("-s de -t en --data {0}", "{1} knows text as pieces of SentencePiece, but no "
         "sentencepiece.model is beside it or in its folder of training: name it with "
         "--sentencepiece-model, or the folder with --data"),
        ("-s de -t en --data {0}/no", "--data {0}/no is no directory"),
        ("-s de -t en {0}/no.txt", "there is no file {0}/no.txt"),
        ("-s de -t en {0}/latin.txt", "{0}/latin.txt:2: not UTF-8 (byte 0xdf at position 2); "
         "convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW"),
        ("-s de -t en {0}/latin.txt --out {0}/latin.txt", "--out {0}/latin.txt is the file to "
         "translate: name another"),
        ("-s de -t en --out {0}/no/x.txt", "--out {0}/no/x.txt: there is no folder {0}/no; make it "
         "first"),
        ("-s de -t en --beam 0", "--beam 0 must be at least 1"),
        ("-s de -t en --nbest 6", "--nbest 6 is more than --beam 5: raise that"),
        ("-s de -t en --lenpen nan", "--lenpen nan must be a finite number"),
        ("-s de -t en --max-len-b 0", "--max-len-a 0 --max-len-b 0 leave no room for a "
         "translation: raise one of them"),
        ("-s de -t en {0}/a.txt --max-tokens 3", "--max-tokens 3 is too small for a sentence: "
         "raise it"),
        ("-s de -t en --buffer-size 0", "--buffer-size 0 must be at least 1"),
        ("-s de -t en --fp16 --bf16", "argument --bf16: not allowed with argument --fp16"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(
    here: Run, alone: Path, data: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    (tmp_path / "a-rank-0.pt").touch()
    (tmp_path / "a.txt").write_text("das\n")
    (tmp_path / "latin.txt").write_bytes("das\naß\n".encode("latin-1"))
    before = sorted(tmp_path.iterdir())
    words = arguments.format(tmp_path, alone).split()
    given = [] if "--checkpoint" in words else ["--checkpoint", alone]
    given += [] if "--data" in words else ["--data", data]
    ended = here(*given, *words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"zcode translate: error: {message.format(tmp_path, alone)}\n"
    assert sorted(tmp_path.iterdir()) == before
