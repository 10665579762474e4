"""`zcode VERB ...`: finds the verb's module, parses its arguments and reports users' errors."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import re
import signal
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, Protocol, cast

from zcode_plugin.console import turn_away, unheard_output
from zcode_plugin.errors import UserError, suggestion

HELP_COLUMNS = 80
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class VerbModule(Protocol):
    """What a module of this package offers to be a verb."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare description, arguments and an example (`parser.epilog`).

        A verb that hands on what follows `--` sets the default `extra=[]`.
        """

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; the exit code. Raises UserError for what the user can mend."""


@dataclass(frozen=True)
class Verb:
    """An entry of the registry; its module is imported only when the verb is called."""

    name: str
    summary: str

    def load(self) -> VerbModule:
        """Import `zcode_plugin.cli.NAME`."""
        return cast(VerbModule, importlib.import_module(f"zcode_plugin.cli.{self.name}"))


VERBS = (
    Verb("prepare", "raw text to SentencePiece model, dictionary and binarised data"),
    Verb("merge", "the files of all ranks to one checkpoint for fairseq-generate"),
    Verb("reshard", "a checkpoint divided over another number of ranks, to train on"),
    Verb("average", "the mean of several checkpoints of a run"),
    Verb("stats", "what each expert does, by layer, objective and language pair"),
    Verb("prune", "keep the experts that matter, by use or by what they contribute"),
    Verb("aggregate", "several models to one with all their experts (AoE)"),
    Verb("export", "a checkpoint as safetensors, or for Hugging Face's transformers"),
    Verb("quantise", "expert weights of 8 or 4 bits, for a smaller checkpoint"),
    Verb("upcycle", "a dense checkpoint to one with experts, copies of its network"),
    Verb("inspect", "what is in a checkpoint: options, experts, parameters, optimizer"),
    Verb("plan", "which form of parallelism a model needs on given machines"),
    Verb("translate", "text in, text out, with a checkpoint"),
    Verb("evaluate", "translate every direction and print a table of BLEU and chrF++"),
    Verb("compare", "results of several systems side by side, with significance"),
    Verb("report", "what runs did, on one page: curves, scores, experts; a model card"),
    Verb("doctor", "what is installed, what is wrong and the command that mends it"),
)

_FLAG = re.compile(r"--?[A-Za-z]")  # no negative number, nor `-` for standard input
USAGE = """usage: zcode VERB [ARGUMENTS]   (zcode VERB --help says more)
Commands around stock fairseq for Mixture-of-Experts translation models.

{verbs}

example: zcode prepare --raw text/ --out data/
"""


class HelpFormatter(argparse.HelpFormatter):
    """Help of at most 80 columns: prose is filled, lists and examples stay as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=HELP_COLUMNS)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # Lists and examples are paragraphs with lines that begin with a space.
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(paragraph, width)
            for paragraph in paragraphs
        )


class OneLineParser(argparse.ArgumentParser):
    """Reports a mistake as one UserError instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 good, 1 problems found, 2 a user's error)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminate)
    name = "zcode"
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_usage(), end="", file=sys.stdout if arguments else sys.stderr)
            return 0 if arguments else EXIT_USER_ERROR
        if arguments[0] == "--version":
            print(f"zcode_plugin {importlib.metadata.version('zcode_plugin')}")
            return 0
        verb = _find_verb(arguments[0])
        name = f"zcode {verb.name}"
        module = verb.load()
        with unheard_output():
            return module.run(_parse(module, name, arguments[1:]))
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `zcode translate ... | head`: nobody reads on, which is no error
        turn_away(sys.stdout)
        return 0
    except ModuleNotFoundError as error:
        if str(error.name).startswith("zcode_"):
            raise
        print(
            f"{name}: error: the package {error.name} is missing; `zcode doctor` says what to do",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except OSError as error:  # no permission, a full disk, a file where a folder is named
        what = f"{error.filename}: " if error.filename else ""
        print(f"{name}: error: {what}{error.strerror or error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that what is half-written is removed on the way out.
    raise SystemExit(EXIT_TERMINATED)


def _usage() -> str:
    width = max(len(verb.name) for verb in VERBS)
    return USAGE.format(verbs="\n".join(f"  {v.name:<{width}}  {v.summary}" for v in VERBS))


def _find_verb(name: str) -> Verb:
    for verb in VERBS:
        if verb.name == name:
            return verb
    known = [verb.name for verb in VERBS]
    near = suggestion(name, known) or f"; the verbs are {', '.join(known)}"
    raise UserError(f"unknown verb {name!r}{near}")


def _parse(module: VerbModule, name: str, argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog=name,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    module.add_arguments(parser)
    extra: list[str] = []
    takes_extra = parser.get_default("extra") is not None
    if "--" in argv and takes_extra:
        cut = argv.index("--")
        argv, extra = argv[:cut], argv[cut + 1 :]
    _check_flags(parser, argv)
    args = parser.parse_args(argv)
    if takes_extra:
        args.extra = extra
    return args


def _check_flags(parser: argparse.ArgumentParser, argv: Iterable[str]) -> None:
    """Refuse unknown flags first: argparse would complain about what is missing instead."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    for word in argv:
        flag = word.partition("=")[0]
        # A short flag may have its value behind it, unless the word is a long one less a dash.
        is_short = flag[:2] in known and f"-{flag}" not in known
        if flag in known or is_short or not _FLAG.match(flag):
            continue
        wanted = f"--{flag.lstrip('-')}"
        near = suggestion(wanted, known) or f"; `{parser.prog} --help` lists the flags"
        raise UserError(f"unknown flag {flag}{near}")


if __name__ == "__main__":
    sys.exit(main())
