"""Log handlers: our log lines go to a file in the data folder, and warnings to the terminal.

As JSON the error output has every line too, as collectors of container logs expect.
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
    """Write the root logger's lines to `path` while the context lasts.

    Only the file's owner can read it. It is rotated at 4 MiB.
    """
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
