"""Tables, counts, suggestions and the lines of steps."""

import logging
import re

import pytest

from zcode_plugin.console import count, format_table, quiet_libraries, step
from zcode_plugin.errors import suggestion


def test_table_is_as_wide_as_its_cells() -> None:
    rows = [["pair", "split", "n"], ["en-de", "test", "1,234"], ["x", "y", "7"]]
    assert format_table(rows, left=2).split("\n") == [
        "pair   split      n",
        "-------------------",
        "en-de  test   1,234",
        "x      y          7",
    ]


def test_table_lines_have_no_trailing_space() -> None:
    assert format_table([["a", "b"], ["aa", ""]]) == "a   b\n-----\naa"


@pytest.mark.parametrize(("number", "text"), [(0, "0 pairs"), (1, "1 pair"), (2500, "2,500 pairs")])
def test_count(number: int, text: str) -> None:
    assert count(number, "pair") == text


@pytest.mark.parametrize(("word", "text"), [("mrege", "; did you mean merge?"), ("zzz", "")])
def test_suggestion(word: str, text: str) -> None:
    assert suggestion(word, ["merge", "prepare"]) == text


def test_step_says_what_it_does_before_and_how_it_went_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with step("count") as current:
        assert capsys.readouterr().out == "count ... "
        current.detail = "3 files"
    assert re.fullmatch(r"3 files \(0\.0 s\)\n", capsys.readouterr().out)


def test_step_that_fails_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), step("count"):
        raise KeyError
    assert capsys.readouterr().out == "count ... failed\n"


def test_libraries_are_quiet_for_a_while() -> None:
    loggers = [logging.getLogger(name) for name in ("fairseq.data", "sacrebleu")]
    before = [logger.isEnabledFor(logging.INFO) for logger in loggers]
    with quiet_libraries():
        assert not any(logger.isEnabledFor(logging.INFO) for logger in loggers)
        assert all(logger.isEnabledFor(logging.WARNING) for logger in loggers)
    assert [logger.isEnabledFor(logging.INFO) for logger in loggers] == before
