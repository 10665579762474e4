"""One line in `--log-file` for each record."""

from __future__ import annotations

import logging


def close_repeated_handlers() -> None:
    """Leave the logger one handler for each file.

    Stock opens `--log-file` anew for each epoch and closes it never: in the tenth epoch every
    record would stand in the file ten times.
    """
    logger = logging.getLogger("fairseq.logging.progress_bar")
    files = set()
    for handler in list(logger.handlers):
        if not isinstance(handler, logging.FileHandler):
            continue
        if handler.baseFilename in files:
            logger.removeHandler(handler)
            handler.close()
        files.add(handler.baseFilename)
