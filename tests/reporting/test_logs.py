"""Logs as they come: whole, cut off, mixed, and of runs that were resumed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reporting.run_files import train_line, valid_line, write_log

from zcode_plugin.errors import UserError
from zcode_plugin.reporting.logs import EPOCH, TRAIN, TrainingLog, read_logs


def read(tmp_path: Path, *lines: str) -> TrainingLog:
    log = read_logs([write_log(tmp_path / "train.log", lines)])
    assert log is not None
    return log


def losses(log: TrainingLog) -> dict[int, float]:
    return dict(zip(*log.curve(TRAIN, "loss"), strict=True))


def test_lines_of_standard_output_and_of_files_are_told_apart_from_the_rest(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        "{'_name': None, 'common': {'no_progress_bar': False}}",
        "2026-01-01 10:00:00 | INFO | train_inner | " + train_line(10, 5, 9.5),
        valid_line(10, **{"mt_nll_loss": 9, "mt_nll_loss_de-en": 8.5}),
        '{"epoch": 1, "train_loss": "9.5", "train_num_updates": "10", "train_wall": "6"}',
        '{"results": "of another program"}',
    )
    assert losses(log) == {10: 9.5}
    assert log.curve("valid", "mt_nll_loss") == ([10], [9.0])
    assert log.curve(EPOCH, "loss") == ([10], [9.5])
    assert (log.validations, log.corpora("mt"), log.damaged) == (["valid"], ["de-en"], 0)


def test_a_log_of_epochs_alone_has_training_curves(tmp_path: Path) -> None:
    log = read(tmp_path, '{"epoch": 1, "train_loss": "9.5", "train_num_updates": "10"}')
    assert log.training == EPOCH


def test_cut_off_and_mixed_lines(tmp_path: Path) -> None:
    whole = train_line(20, 10, 8)
    log = read(
        tmp_path,
        train_line(10, 5, 9),
        train_line(15, 7)[:60] + whole,  # a record begins within another one
        whole + train_line(30, 15, 7),  # two in a line
        "0: " + train_line(40, 20, 6),  # as srun puts a rank before its lines
        train_line(50, 25)[:80],  # the disk was full
    )
    assert losses(log) == {10: 9, 20: 8, 30: 7, 40: 6}
    assert log.damaged == 2


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    log = read(tmp_path, train_line(10, 5, "nan", gnorm="inf", note="text"), train_line(20, 9, 3))
    assert math.isnan(losses(log)[10])
    assert log.curve(TRAIN, "gnorm") == ([10], [math.inf])
    assert "note" not in log.names(TRAIN)


def test_large_numbers_of_updates_are_rounded_by_stock(tmp_path: Path) -> None:
    line = train_line(0, 5, 2.0).replace('"num_updates": "0"', '"num_updates": "1.23457e+06"')
    assert losses(read(tmp_path, line)) == {1234570: 2.0}


def test_a_resumed_run_wins_from_its_checkpoint_on_and_its_time_goes_on(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        *(train_line(updates, updates, 10) for updates in (100, 200, 300, 400)),
        valid_line(400, mt_nll_loss=5),
        # From a checkpoint at 250, with a clock of its own.
        train_line(300, 60, 7),
        train_line(350, 110, 6),
    )
    assert losses(log) == {100: 10, 200: 10, 300: 7, 350: 6}
    assert log.restarts == 1
    assert log.curve("valid", "mt_nll_loss") == ([], [])  # of weights that were given up
    assert log.seconds == {100: 100, 200: 200, 300: 260, 350: 310}
    assert log.seconds_at([250, 350]) == [230, 310]


def test_where_the_clock_stands_time_is_that_of_updates(tmp_path: Path) -> None:
    """As in logs of stock: the clock of a run that was resumed within an epoch stands at 0."""
    log = read(
        tmp_path,
        *(train_line(updates, updates, 10, train_wall=90) for updates in (100, 200, 300, 400)),
        *(train_line(updates, 0, 7, train_wall=50) for updates in (300, 400, 500, 600)),
        # Resumed again, before 500; and at the end of an epoch, where stock starts the clock.
        *(train_line(updates, 0, 6, train_wall=40) for updates in (500, 550)),
        *(train_line(updates, updates - 500, 5) for updates in (560, 570)),
    )
    assert losses(log) == {100: 10, 200: 10, 300: 7, 400: 7, 500: 6, 550: 6, 560: 5, 570: 5}
    assert log.restarts == 3
    assert log.seconds == {
        100: 100, 200: 200, 300: 250, 400: 300, 500: 340, 550: 380, 560: 440, 570: 450
    }  # fmt: skip


def test_a_run_that_began_anew_is_no_other_rank(tmp_path: Path) -> None:
    old = [train_line(updates, updates, 10) for updates in (100, 200, 300)]
    new = [train_line(updates, updates + 0.5, 9) for updates in (100, 200)]
    log = read(tmp_path, *old, *new)
    assert (log.restarts, losses(log)) == (1, {100: 9, 200: 9})
    first, second = (write_log(tmp_path / f"{n}.log", lines) for n, lines in enumerate((old, new)))
    assert losses(read_logs([first, second]) or log) == {100: 9, 200: 9}


def test_a_run_that_resumed_where_it_ended_keeps_all(tmp_path: Path) -> None:
    log = read(tmp_path, train_line(100, 100, 9), train_line(200, 30, 8))
    assert (log.restarts, losses(log), log.seconds[200]) == (1, {100: 9, 200: 8}, 130)


def test_ranks_that_log_the_same_updates_are_no_resumed_run(tmp_path: Path) -> None:
    lines = [train_line(100, 50), train_line(200, 99), train_line(100, 51), train_line(200, 100)]
    log = read(tmp_path, *lines)
    assert (log.restarts, list(losses(log))) == (0, [100, 200])


def test_several_files_are_one_run(tmp_path: Path) -> None:
    first = write_log(tmp_path / "a.log", [train_line(100, 100, 9), train_line(200, 200, 8)])
    second = write_log(tmp_path / "b.log", [train_line(150, 20, 7)])
    log = read_logs([first, second])
    assert log is not None
    assert losses(log) == {100: 9, 150: 7}


def test_two_files_of_the_same_output_are_one(tmp_path: Path) -> None:
    """As `--log-file` and what a shell kept of standard output; of a run that was resumed."""
    lines = [train_line(100, 100, 9), train_line(200, 200, 8), train_line(150, 20, 7)]
    files = [write_log(tmp_path / name, lines) for name in ("run.log", "run.out")]
    one, both = read_logs(files[:1]), read_logs(files)
    assert one is not None
    assert one == both
    assert one.restarts == 1


def test_files_without_a_record_say_nothing(tmp_path: Path) -> None:
    assert read_logs([write_log(tmp_path / "a.log", ["no record", ""])]) is None
    (tmp_path / "binary.log").write_bytes(bytes(range(256)))
    assert read_logs([tmp_path / "binary.log"]) is None
    with pytest.raises(UserError, match=r"missing\.log: No such file"):
        read_logs([tmp_path / "missing.log"])
