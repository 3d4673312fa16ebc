"""Where log lines go: warnings to the terminal, everything of ours to a file in the data folder. Knows no logger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
FILE_BYTES = 4 * 1024 * 1024


@contextmanager
def keep_log(path: Path) -> Iterator[None]:
    """Until it is left, the root logger writes there. The file is its owner's alone, and is put aside at 4 MiB."""
    path.touch(mode=0o600)
    file = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=2)
    file.setFormatter(logging.Formatter(LINE))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(file)
    root.addHandler(terminal)
    try:
        yield
    finally:
        for handler in (file, terminal):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)
