"""Whether a command of the docs is one that exists: program, verb, flags and files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import cache

from blocks import ELLIPSIS, ROOT
from toy import PLUGIN

import zcode_plugin

# Flags that a command may leave to "..."; its own come later, and win.
COMMON = ("--user-dir", str(PLUGIN), "--task", "multitask_multilingual")
TRAINING = (
    *COMMON, "--arch", "moe_transformer", "--criterion", "multitask_summed_loss",
    "--optimizer", "adam", "--lr-scheduler", "inverse_sqrt",
)  # fmt: skip
# Programs of others, whose arguments are theirs.
FOREIGN = {"git", "cd", "echo", "pip", "sbatch", "chromium"}


def _stock(program: str, arguments: Sequence[str]) -> None:
    from fairseq import options

    zcode_plugin.register()
    training = program == "fairseq-train"
    make = {
        "fairseq-train": options.get_training_parser,
        "fairseq-validate": options.get_validation_parser,
        "fairseq-interactive": options.get_interactive_generation_parser,
        "fairseq-generate": options.get_generation_parser,
    }[program]
    given = ["data", *arguments] if not arguments or arguments[0].startswith("-") else arguments
    line = [given[0], *(TRAINING if training else COMMON), *given[1:]]
    if not training and "--path" not in line:
        line += ["--path", "model.pt"]
    # As seen from wherever the tests are started.
    words = [str(PLUGIN) if word == "zcode_plugin" else word for word in line if word != ELLIPSIS]
    _, unknown = options.parse_args_and_arch(make(), words, parse_known=True)
    assert not unknown, f"{program} does not know {unknown}"


@cache
def flags_of_stock() -> set[str]:
    """Of training and generation, with the plugin's."""
    from fairseq import options

    zcode_plugin.register()
    known: set[str] = set()
    for make, more in (
        (options.get_training_parser, TRAINING),
        (options.get_interactive_generation_parser, (*COMMON, "--path", "model.pt")),
    ):
        parser = make()
        options.parse_args_and_arch(parser, ["data", *more])
        known.update(parser._option_string_actions)
    return known


def _zcode(_: str, arguments: Sequence[str]) -> None:
    from zcode_plugin.cli.main import _check_flags, _find_verb, _parse

    verb = _find_verb(arguments[0])
    given = [word for word in arguments[1:] if word != ELLIPSIS]
    module = verb.load()
    if len(given) == len(arguments) - 1:
        extra = getattr(_parse(module, f"zcode {verb.name}", given), "extra", [])
        if extra:
            _stock("fairseq-train" if verb.name == "plan" else "fairseq-generate", extra)
        return
    parser = argparse.ArgumentParser(prog=f"zcode {verb.name}")
    module.add_arguments(parser)
    _check_flags(parser, given)


def _torchrun(_: str, arguments: Sequence[str]) -> None:
    launched = next(i for i, word in enumerate(arguments) if not word.startswith("-"))
    check(arguments[launched:])


def _python(_: str, arguments: Sequence[str]) -> None:
    """A script of the repository; its flags stand in it, or in what it imports beside it."""
    script = ROOT / arguments[0]
    assert script.is_file(), f"there is no {arguments[0]}"
    sources = "".join(path.read_text() for path in script.parent.glob("*.py"))
    for word in arguments[1:]:
        flag = word.partition("=")[0]
        assert not flag.startswith("--") or f'"{flag}"' in sources, f"{script.name}: no {flag}"


def _make(_: str, arguments: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in (word for word in arguments if "=" not in word):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no make {target}"


def _hydra(_: str, arguments: Sequence[str]) -> None:
    """The YAML exists; `tests/examples/test_configs.py` composes it."""
    folder = arguments[arguments.index("--config-dir") + 1]
    name = arguments[arguments.index("--config-name") + 1]
    assert (ROOT / folder / f"{name}.yaml").is_file()


PROGRAMS: dict[str, Callable[[str, Sequence[str]], None]] = {
    "fairseq-generate": _stock,
    "fairseq-hydra-train": _hydra,
    "fairseq-interactive": _stock,
    "fairseq-train": _stock,
    "fairseq-validate": _stock,
    "make": _make,
    "python": _python,
    "torchrun": _torchrun,
    "zcode": _zcode,
}


def check(words: Sequence[str]) -> None:
    """Raise what is wrong with a command."""
    program, *arguments = words
    if program in PROGRAMS:
        PROGRAMS[program](program, arguments)
    elif program not in FOREIGN:
        assert (ROOT / program).is_file(), (
            f"{program} is no program that tests/docs/parsing.py knows; label a block that is no "
            "command as text"
        )
