"""Log handlers: all log lines go to a file in the data folder, and warnings to the terminal.

With JSON, standard error has every line too, as collectors of container logs expect. Repeated records are summarised.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from bot.cli.up.log_summary import LogSummary, flush_regularly
from engine.process.log_format import LogFormat, build_formatter

FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
TERMINAL_FORMAT = "%(levelname)s: %(message)s"
MAX_FILE_BYTES = 4 * 1024 * 1024


class PrivateLogFile(RotatingFileHandler):
    """A rotating log whose every file is its owner's alone, whatever the umask."""

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.touch(mode=0o600)
        path.chmod(0o600)  # of one that was there, too, such as a copied one
        return super()._open()


@contextmanager
def log_to_file(path: Path, log_format: LogFormat = "text") -> Generator[None]:
    """Write the root logger's lines to `path` while the context lasts.

    Only the file's owner can read it and its rotated parts. It is rotated at 4 MiB.
    """
    file_handler = PrivateLogFile(path, maxBytes=MAX_FILE_BYTES, backupCount=2, encoding="utf-8")
    file_handler.setFormatter(build_formatter(log_format, FILE_FORMAT))
    terminal_handler = logging.StreamHandler()
    terminal_handler.setLevel(logging.INFO if log_format == "json" else logging.WARNING)
    terminal_handler.setFormatter(build_formatter(log_format, TERMINAL_FORMAT))
    root = logging.getLogger()
    previous_level = root.level
    root.setLevel(logging.INFO)
    summary = LogSummary(file_handler, terminal_handler)
    root.addHandler(summary)
    try:
        with flush_regularly(summary):
            yield
    finally:
        root.removeHandler(summary)
        for handler in (summary, file_handler, terminal_handler):
            handler.close()
        root.setLevel(previous_level)
