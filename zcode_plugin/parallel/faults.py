"""When a rank fails, the others end soon, and the log names the rank.

A rank that raises or dies closes its connections, which ends every collective of the others; one
that hangs is given up after the timeout of the process groups. Ranks leave word of their end in
the store through which they once found each other, so that those who merely lost a connection can
say whose it was.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist
from torch.distributed import distributed_c10d

from zcode_plugin.errors import UserError, print_error

# Within this time ranks that lost a connection wait for word of the others, in seconds.
ROLL_CALL = 5.0
_LOST = "lost its connection"
# gloo raises plain RuntimeErrors.
_CONNECTION = re.compile(r"gloo/|nccl|connection (closed|reset)|broken pipe|timed out", re.I)


class RankError(RuntimeError):
    """One rank cannot go on, and so none can.

    A RuntimeError, since after any other exception stock's trainer saves a `crash.pt`, and on one
    rank alone that would hold the experts of that rank alone.
    """


def set_timeout(seconds: float, groups: Iterable[dist.ProcessGroup | None]) -> None:
    """Bound how long the ranks of process groups wait for each other in collectives.

    fairseq makes its groups without naming a timeout, before any plugin has a say.

    Args:
        seconds: the bound, above 0.
        groups: None is the default group.
    """
    for group in groups:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def check_timeout(seconds: float) -> None:
    """Refuse a `--distributed-timeout` that is none.

    Raises:
        UserError: not a positive number.
    """
    if seconds <= 0:
        raise UserError(f"--distributed-timeout {seconds} must be positive: give seconds")


def report_failures() -> None:
    """From now on a rank that ends in an exception says on standard error whose fault it was."""
    if not dist.is_initialized() or dist.get_world_size() == 1 or sys.excepthook is _report:
        return
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if dist.is_initialized():
        print_error(verdict(error))


@contextmanager
def failing_together(what: str, is_shared: bool) -> Iterator[None]:
    """Turn whatever goes wrong on this rank into a `RankError`, which stock's trainer lets pass.

    Stock goes on after a lack of memory: it skips a training batch and repeats one of validation.
    With experts on other ranks it must not, since they wait for its tokens.

    Args:
        what: where it went wrong, for the message.
        is_shared: False leaves errors as they are.
    """
    try:
        yield
    except (RankError, UserError):
        raise
    except Exception as error:
        if not is_shared:
            raise
        # The trainer looks for these words.
        reason = _first_line(error).replace("out of memory", "memory exhausted")
        raise RankError(f"{what}: {reason}") from error


def verdict(error: BaseException) -> str:
    """One line that says which rank failed first, as far as this rank can tell.

    Takes at most `ROLL_CALL` seconds, and none where this rank itself is to blame.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    me = f"rank {rank} of {world}"
    if not _lost_connection(error):
        words = f"{me} failed: {_first_line(error)}"
        _leave_word(rank, words)
        return words
    _leave_word(rank, _LOST)
    heard = _roll_call(world)
    causes = [words for words in heard.values() if words != _LOST]
    if causes:
        return f"{me} {_LOST}, because {causes[0]}"
    silent = [str(other) for other in range(world) if other not in heard and other != rank]
    if silent:
        whom = f"rank{'s' * (len(silent) > 1)} {', '.join(silent)}"
        return f"{me} {_LOST}: {whom} gave no sign: killed, hanging or cut off"
    return f"{me} {_LOST}, as did all others: {_first_line(error)}"


def _key(rank: int) -> str:
    return f"zcode_plugin/ended/{rank}"


def _leave_word(rank: int, words: str) -> None:
    with suppress(RuntimeError):  # the store went with the rank that held it
        distributed_c10d._get_default_store().set(_key(rank), words)


def _roll_call(world: int) -> dict[int, str]:
    """The last words of each rank, once all have left some or the time is over."""
    heard: dict[int, str] = {}
    deadline = time.monotonic() + ROLL_CALL
    with suppress(RuntimeError):  # the store went with the rank that held it
        store = distributed_c10d._get_default_store()
        while len(heard) < world and time.monotonic() < deadline:
            for rank in set(range(world)) - set(heard):
                if store.check([_key(rank)]):
                    heard[rank] = store.get(_key(rank)).decode()
            if any(words != _LOST for words in heard.values()):
                break
            time.sleep(0.1)
    return heard


def _lost_connection(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, came of a collective that broke."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and _CONNECTION.search(str(error))
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, RankError) else f"{type(error).__name__}: {text}"
