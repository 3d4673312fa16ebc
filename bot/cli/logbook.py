"""Where log lines go: everything of ours to a file in the data folder, warnings to the terminal. Knows no logger.

As JSON both are for machines, so the error output has every line, as whatever collects a container's logs wants it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from engine.logline import Form, formatter

LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
SHORT = "%(levelname)s: %(message)s"
FILE_BYTES = 4 * 1024 * 1024


@contextmanager
def keep_log(path: Path, form: Form = "text") -> Iterator[None]:
    """Until it is left, the root logger writes there. The file is its owner's alone, and is put aside at 4 MiB."""
    path.touch(mode=0o600)
    file = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=2, encoding="utf-8")
    file.setFormatter(formatter(form, LINE))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.INFO if form == "json" else logging.WARNING)
    terminal.setFormatter(formatter(form, SHORT))
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
