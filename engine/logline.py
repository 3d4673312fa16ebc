"""The log format of engine and bot: text lines, or one JSON object a line.

Each line names its job, so that a search for a job's id finds its lines from every process. Text from outside is
escaped: a line break in a prompt starts no new line. Uses only the standard library.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

Form = Literal["text", "json"]
FORMS: tuple[Form, ...] = ("text", "json")
INDENT = "    "  # of every line after the first: no traceback can look like a record
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NAMED = "job %s"  # how our messages start if they name their job first

_job: ContextVar[str] = ContextVar("job", default="")
_worker: ContextVar[str] = ContextVar("worker", default="")


@contextmanager
def about(job: str, worker: str = "") -> Iterator[None]:
    """Attach a job, and a worker if one is named, to everything logged inside. Tasks created inside inherit both."""
    jobs, workers = _job.set(job), _worker.set(worker or _worker.get())
    try:
        yield
    finally:
        _worker.reset(workers)
        _job.reset(jobs)


def job_of(record: logging.LogRecord) -> str:
    """Return the record's job: from `extra`, from the start of its message, or from the enclosing `about`."""
    given = getattr(record, "job", None)
    if isinstance(given, str):
        return given
    if isinstance(record.msg, str) and record.msg.startswith(NAMED) and isinstance(record.args, tuple) and record.args:
        return str(record.args[0])
    return _job.get()


def escaped(text: str) -> str:
    """Return `text` on one line: unprintable characters become `\\n`, `\\x1b` or `\\u2028`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class TextLine(logging.Formatter):
    """Lines for people. `line` is a `logging.Formatter` format; a traceback follows, indented."""

    def __init__(self, line: str) -> None:
        super().__init__(line)

    def format(self, record: logging.LogRecord) -> str:
        said, job = escaped(record.getMessage()), escaped(job_of(record))
        shown = copy(record)
        shown.msg, shown.args = (f"{said} (job {job})" if job and job not in said else said), None
        shown.exc_info = shown.exc_text = shown.stack_info = None
        fault = [f"{INDENT}{escaped(line)}" for line in _fault(self, record).splitlines()]
        return "\n".join([super().format(shown), *fault])


class JsonLine(logging.Formatter):
    """Lines for machines: one object each. `worker` is the name of this process, if it is a worker."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._own = worker

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        found = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "job": job_of(record),
            "worker": getattr(record, "worker", "") or _worker.get() or self._own,
            "exception": _fault(self, record),
        }
        always = ("time", "level", "logger", "message")
        return json.dumps({name: value for name, value in found.items() if value or name in always}, default=str)


def formatter(form: Form, line: str, worker: str = "") -> logging.Formatter:
    """Return the formatter for `form`; `line` is the format of text lines."""
    return JsonLine(worker) if form == "json" else TextLine(line)


def _fault(by: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the record's traceback and stack as text."""
    parts = [by.formatException(record.exc_info) if record.exc_info else "", record.stack_info or ""]
    return "\n".join(part for part in parts if part)


def to_stderr(form: Form, worker: str) -> None:
    """Configure logging of a worker process: everything, Python's warnings included, goes to stderr."""
    stream = logging.StreamHandler()
    stream.setFormatter(formatter(form, LINE, worker))
    logging.basicConfig(level=logging.INFO, handlers=[stream])
    logging.captureWarnings(form == "json")
    if form == "json":
        sys.excepthook = _ended


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("An unhandled error ends the process.", exc_info=(kind, error, trace))
