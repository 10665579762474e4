"""The registry of verbs, help, and how mistakes are told."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from zcode_plugin.cli import main as cli

Run = Callable[..., subprocess.CompletedProcess[str]]
VERBS = [verb.name for verb in cli.VERBS]


def test_help_names_every_verb_and_fits_a_screen(zcode: Run) -> None:
    ended = zcode("--help")
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert [line.split()[0] for line in ended.stdout.splitlines()[4 : 4 + len(VERBS)]] == VERBS
    assert len(ended.stdout.splitlines()) <= 24


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_gives_an_example_and_fits_a_screen(zcode: Run, verb: str) -> None:
    ended = zcode(verb, "--help")
    assert ended.returncode == 0
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"usage: zcode {verb} ")
    assert lines[lines.index("example:") + 1].startswith(f"  zcode {verb}")
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 100


def test_help_imports_no_slow_package() -> None:
    code = (
        "import sys; from zcode_plugin.cli.main import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'fairseq', 'sacrebleu', 'sentencepiece', 'numpy')"
        " if name in sys.modules])"
    )
    for verb in [[], *([name] for name in VERBS)]:
        ended = subprocess.run(
            [sys.executable, "-c", code, *verb], capture_output=True, encoding="utf-8"
        )
        assert ended.stdout.splitlines()[-1] == "[]", verb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mrege"], "zcode: error: unknown verb 'mrege'; did you mean merge?"),
        (
            ["fly"],
            "zcode: error: unknown verb 'fly'; the verbs are " + ", ".join(VERBS),
        ),
        (
            ["prepare", "--vocabsize", "3"],
            "zcode prepare: error: unknown flag --vocabsize; did you mean --vocab-size?",
        ),
        (
            ["merge", "--xyz=1"],
            "zcode merge: error: unknown flag --xyz; `zcode merge --help` lists the flags",
        ),
        (["merge"], "zcode merge: error: the following arguments are required: CKPT"),
        (
            ["evaluate", "data", "--path", "x.pt", "--beam", "five"],
            "zcode evaluate: error: argument --beam: invalid int value: 'five'",
        ),
        (["doctor", "now"], "zcode doctor: error: unrecognized arguments: now"),
    ],
)
def test_a_mistake_is_told_in_one_line(zcode: Run, arguments: list[str], message: str) -> None:
    ended = zcode(*arguments)
    assert ended.returncode == 2
    assert ended.stderr == message + "\n"
    assert ended.stdout == ""


def test_without_a_verb_the_usage_is_shown(zcode: Run) -> None:
    ended = zcode()
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: zcode VERB")


def test_a_reader_that_leaves_is_no_error(zcode: Run) -> None:
    command = f"{sys.executable} -m zcode_plugin.cli.main merge --help | true"
    ended = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8")
    assert ended.stderr == ""
