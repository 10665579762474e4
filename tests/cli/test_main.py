"""The registry of verbs, help, and how mistakes are told."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import torch
from checkpoint.exported import build, checkpoint

import zcode_plugin
from zcode_plugin.cli import main as cli

Run = Callable[..., subprocess.CompletedProcess[str]]
VERBS = [verb.name for verb in cli.VERBS]


def test_help_names_every_verb_and_fits_a_screen(zcode: Run) -> None:
    ended = zcode("--help")
    assert ended.returncode == 0
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[3 : 3 + len(VERBS)]] == VERBS
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_version(zcode: Run) -> None:
    ended = zcode("--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"zcode_plugin {version('zcode_plugin')}\n"


def here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `zcode ARGUMENTS` in this process."""
    try:
        code = cli.main(arguments)
    except SystemExit as ended:  # argparse, after --help
        code = int(str(ended.code))
    return code, *capsys.readouterr()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_gives_an_example_and_fits_a_screen(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    code, help_text, errors = here(capsys, verb, "--help")
    assert (code, errors) == (0, "")
    lines = help_text.splitlines()
    assert lines[0].startswith(f"usage: zcode {verb} ")
    examples = lines[lines.index("example:") + 1 :]
    assert any(line.startswith(f"  zcode {verb}") for line in examples)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def flags(verb: str) -> list[str]:
    """The long flags of a verb, as its help names them."""
    parser = argparse.ArgumentParser()
    next(known for known in cli.VERBS if known.name == verb).load().add_arguments(parser)
    known = [flag for action in parser._actions for flag in action.option_strings]
    return [flag for flag in known if flag.startswith("--")]


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistyped_verb_or_flag_is_answered_with_the_near_one(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    wrong = verb[:-2] + verb[-1] + verb[-2]
    code, output, errors = here(capsys, wrong)
    assert (code, output) == (2, "")
    assert errors == f"zcode: error: unknown verb '{wrong}'; did you mean {verb}?\n"
    for flag in flags(verb):
        for mistyped in (f"{flag}x", flag.removeprefix("-")):
            code, output, errors = here(capsys, verb, f"{mistyped}=1")
            assert (code, output) == (2, "")
            assert errors == (
                f"zcode {verb}: error: unknown flag {mistyped}; did you mean {flag}?\n"
            )


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


def without_packages(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The `zcode` command of an environment with nothing but this package and Python's own."""
    code = "import sys; from zcode_plugin.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(zcode_plugin.__path__[0]).parent)},
    )


def test_without_torch_help_is_there_and_work_is_refused_in_one_line(tmp_path: Path) -> None:
    script = next(iter(entry_points(group="console_scripts", name="zcode")))
    assert script.value == "zcode_plugin.cli.main:main"  # what is run here
    assert without_packages("--help").stdout.splitlines()[0].startswith("usage: zcode VERB")
    for verb in VERBS:
        ended = without_packages(verb, "--help")
        assert (ended.returncode, ended.stderr) == (0, ""), verb
    ended = without_packages("inspect", str(tmp_path / "x.pt"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "zcode inspect: error: the package torch is missing; `zcode doctor` says what to do\n"
    )


def test_without_a_verb_the_usage_is_shown(zcode: Run) -> None:
    ended = zcode()
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: zcode VERB")


def test_a_reader_that_leaves_is_no_error(zcode: Run) -> None:
    command = f"{sys.executable} -m zcode_plugin.cli.main merge --help | true"
    ended = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8")
    assert ended.stderr == ""


def test_work_is_done_though_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    torch.save(checkpoint(*build()), tmp_path / "model.pt")
    verb = "average model.pt model.pt --out mean.pt"
    ended = subprocess.run(
        f"{sys.executable} -m zcode_plugin.cli.main {verb} | true",
        shell=True, cwd=tmp_path, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert ended.stderr == ""
    assert (tmp_path / "mean.pt").is_file()
