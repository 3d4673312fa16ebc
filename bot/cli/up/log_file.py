"""Log handlers: all log lines go to a file in the data folder, and warnings to the terminal.

With JSON, standard error has every line too, as collectors of container logs expect. Of repeated records the first ones
are written, the others are counted: otherwise somebody who causes the same error again and again fills the log files,
and nothing else is left in them.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from engine.process.log_format import LogFormat, build_formatter, job_of

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


WINDOW_SECONDS = 60.0
MAX_ALIKE = 20  # records alike that are written in a window
MAX_KINDS = 1000  # kinds of records that are counted at once
KEY_LENGTH = 200  # characters of a message that tell its kind
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")

Kind = tuple[str, int, str, type[BaseException] | None, str]


@dataclass
class _Window:
    """The records of one kind since `start`. `suppressed`: how many were not written; `last`: the newest of them."""

    start: float
    count: int = 0
    suppressed: int = 0
    last: logging.LogRecord | None = None


class LogSummary(logging.Handler):
    """Hands records on to `targets`, at most `MAX_ALIKE` alike in a window, and at its end says how many more came.

    Alike are records of one logger, level, type of exception and job whose messages differ only in their arguments or
    in numbers.
    """

    def __init__(self, *targets: logging.Handler, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._targets = targets
        self._clock = clock
        self._windows: OrderedDict[Kind, _Window] = OrderedDict()  # in the order of their start

    def emit(self, record: logging.LogRecord) -> None:
        self.flush_ended()
        kind = _kind_of(record)
        if (window := self._windows.get(kind)) is None:
            if len(self._windows) >= MAX_KINDS:
                self._summarise(self._windows.popitem(last=False)[1])
            window = self._windows[kind] = _Window(self._clock())
        window.count += 1
        if window.count <= MAX_ALIKE:
            self._write(record)
        else:
            window.suppressed += 1
            window.last = record

    def flush_ended(self, *, all_windows: bool = False) -> None:
        """Write the summaries of windows that are over."""
        self.acquire()
        try:
            oldest_start = self._clock() - WINDOW_SECONDS
            while self._windows:
                window = next(iter(self._windows.values()))
                if window.start > oldest_start and not all_windows:
                    break
                self._windows.popitem(last=False)
                self._summarise(window)
        finally:
            self.release()

    def _summarise(self, window: _Window) -> None:
        if window.last is None:
            return
        last = window.last
        seconds = max(1.0, self._clock() - window.start)
        arguments = (f"{window.suppressed:,}", seconds, last.getMessage())
        summary = logging.LogRecord(
            last.name, last.levelno, last.pathname, last.lineno, "… %s more like this in %.0f s: %s", arguments, None
        )
        summary.job = job_of(last)
        self._write(summary)

    def _write(self, record: logging.LogRecord) -> None:
        for target in self._targets:
            if record.levelno >= target.level:
                target.handle(record)


@contextmanager
def flush_regularly(summary: LogSummary) -> Generator[None]:
    """Write summaries soon after their windows end, even if no other record comes; at the end write all."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(WINDOW_SECONDS / 10):
            summary.flush_ended()

    thread = threading.Thread(target=run, name="log-summary", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        summary.flush_ended(all_windows=True)


def _kind_of(record: logging.LogRecord) -> Kind:
    message = _NUMBERS.sub("#", str(record.msg)[:KEY_LENGTH])
    return record.name, record.levelno, message, record.exc_info[0] if record.exc_info else None, job_of(record)
