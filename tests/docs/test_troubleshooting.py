"""The messages that docs/troubleshooting.md quotes are those that the code has."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from blocks import ROOT, blocks_of

# Printed by others: pip, stock, PyTorch, C++.
FOREIGN = (
    "ERROR: ResolutionImpossible",
    "fairseq-train: error: argument --task",
    "terminate called",
    "zcode_plugin: error: Minimum loss scale reached",
    "FloatingPointError: gradients",
    "RuntimeError: Error(s) in loading state_dict",
)
# Letters of a text of the code, and their share of a message, from which on that text is meant: the
# rest are values of the example, and parts that the code says elsewhere.
LEAST, SHARE = 15, 0.2
MESSAGES = [
    block.text.strip() for block in blocks_of("docs/troubleshooting.md") if not block.is_shell
]


@cache
def patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Each text of the code, with its placeholders open."""
    found = []
    for package in ("zcode_plugin", "zcode_mends"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                words = [
                    str(part.value) if isinstance(part, ast.Constant) else None for part in parts
                ]
                if sum(len(word or "") for word in words) >= LEAST:
                    text = "".join(".+" if word is None else re.escape(word) for word in words)
                    found.append(("".join(word or "" for word in words), re.compile(text)))
    return found


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: text[:60])
def test_a_quoted_message_is_in_the_code(message: str) -> None:
    if message.startswith(FOREIGN):
        return
    said = message.partition(": error: ")[2]
    if not said:  # a finding of `zcode doctor`
        finding, _, said = message.partition(": ")
        assert f'"{finding}"' in (ROOT / "zcode_plugin" / "cli" / "doctor.py").read_text()
    literal = max((len(text) for text, pattern in patterns() if pattern.search(said)), default=0)
    assert literal >= max(LEAST, SHARE * len(said)), said
