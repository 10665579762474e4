"""The fenced blocks of README and docs, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/*.md")]
    )
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"|", "&&", "||", ";", "&"}
ELLIPSIS = "..."  # in a command: further flags, as in the others of the page


@dataclass(frozen=True)
class Block:
    """A fenced block; of shell commands where no language is named."""

    page: str
    language: str
    text: str

    @property
    def first(self) -> str:
        """The first line that is no comment: what a table names the block by."""
        lines = (line.strip() for line in self.text.splitlines())
        return next(line for line in lines if line and not line.startswith("#"))

    @property
    def is_shell(self) -> bool:
        return self.language in ("", "sh", "bash")

    def commands(self) -> list[list[str]]:
        """Words of each command, without comments, assignments and redirections."""
        found = []
        text = re.sub(r"\$\((?:which|command -v) ([\w-]+)\)", r"\1", self.text)
        for line in text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word not in _SEPARATORS:
                    words.append(word)
                elif words:
                    found.append(_bare(words))
                    words = []
        return found


def _bare(words: list[str]) -> list[str]:
    """`A=1 program flag >file` -> `program flag`."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    cut = next((i for i, word in enumerate(words) if word in ("<", ">", ">>")), len(words))
    return words[:cut]


def blocks_of(page: str) -> Iterator[Block]:
    for found in _FENCE.finditer((ROOT / page).read_text()):
        yield Block(page, found[1], found[2])


def shell_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.is_shell]
