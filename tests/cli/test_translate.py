"""`zcode translate` as users and programs call it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from translating import text

from zcode_plugin.checkpoint import config, io
from zcode_plugin.translation import Search, Translator

Run = Callable[..., subprocess.CompletedProcess[str]]

LENGTH = 12
ZCODE = (sys.executable, "-m", "zcode_plugin.cli.main", "translate")


@pytest.fixture
def here(here: Run) -> Run:
    """`zcode translate` in this process, which has imported fairseq."""
    return partial(here, "translate")


@pytest.fixture(scope="module")
def alone(multilingual: Path) -> Path:
    """The same checkpoint on another machine: its folder of training is not there."""
    state = io.load(multilingual)
    config.put(config.section(state, "task"), "data", "gone")
    path = multilingual.with_name("alone.pt")
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def translator(multilingual: Path, data: Path) -> Translator:
    return Translator.load(multilingual, data=data)


def test_a_file_keeps_its_order_and_its_empty_lines(
    here: Run, translator: Translator, multilingual: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    several = text(raw, "en-fr")
    source, out = tmp_path / "en.txt", tmp_path / "fr.txt"
    source.write_bytes("\r\n".join(["\ufeff" + several[0], "", *several[1:]]).encode())
    command = ("--checkpoint", multilingual, "--data", data, "-s", "en", "-t", "fr", source)
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
    here: Run, multilingual: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    source = tmp_path / "en.txt"
    source.write_text("the\n")
    command = (
        "--checkpoint",
        multilingual,
        "--data",
        data,
        "-s",
        "en",
        "-t",
        "de",
        source,
        "--cpu",
    )
    one = here(*command, "--max-len-b", "1").stdout
    more = here(*command, "--max-len-b", "9").stdout
    assert here(*command, "--max-len-a", "3", "--max-len-b", "3").stdout == more
    assert len(one) < len(more)


def test_long_lines_are_cut_with_one_warning(
    here: Run, translator: Translator, multilingual: Path, data: Path, tmp_path: Path
) -> None:
    source = tmp_path / "de.txt"
    source.write_text("das Haus\n" + "das " * 60 + "\n" + "Haus " * 70 + "\n", encoding="utf-8")
    command = ("--checkpoint", multilingual, "--data", data, "-s", "de", "-t", "en", source)
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
    multilingual: Path, data: Path, translator: Translator, raw: Path
) -> None:
    several = text(raw, "de-en")[:3]
    arguments = ("--checkpoint", multilingual, "--data", data, "-s", "de", "-t", "en")
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
    multilingual: Path, data: Path, raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "en.txt"
    out.parent.mkdir()
    arguments = ("--checkpoint", multilingual, "--data", data, "-s", "de", "-t", "en", "--out", out)
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
        # Python loses an interruption that comes while an object is finalised: press it again.
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                assert process.wait(20) == 130
                break
        assert process.poll() == 130
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
        ("-s de -t en {0}/latin.txt --out {0}/latin.txt", "--out {0}/latin.txt is one of the "
         "files to read: name another"),
        ("-s de -t en --out {1}", "--out {1} is one of the files to read: name another"),
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
