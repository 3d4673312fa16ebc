"""How a line of the log is written, by engine and bot alike: as text, or as one JSON object for a machine to read.

Each line says which job it is about, so that a search for a job's id finds all that was said of it in every process.
What came from outside stands escaped: a line break in a prompt begins no line of its own. Knows records of the standard
library alone.
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
INDENT = "    "  # of every line behind the first one: no traceback can look like a record
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NAMED = "job %s"  # how a message of ours begins that names its job first

_job: ContextVar[str] = ContextVar("job", default="")
_worker: ContextVar[str] = ContextVar("worker", default="")


@contextmanager
def about(job: str, worker: str = "") -> Iterator[None]:
    """What is logged inside concerns this job, and this worker where one is named. Tasks made inside inherit it."""
    jobs, workers = _job.set(job), _worker.set(worker or _worker.get())
    try:
        yield
    finally:
        _worker.reset(workers)
        _job.reset(jobs)


def job_of(record: logging.LogRecord) -> str:
    """The job that a record concerns: given as `extra`, named first in its message, or what it was logged inside."""
    given = getattr(record, "job", None)
    if isinstance(given, str):
        return given
    if isinstance(record.msg, str) and record.msg.startswith(NAMED) and isinstance(record.args, tuple) and record.args:
        return str(record.args[0])
    return _job.get()


def escaped(text: str) -> str:
    """`text` on one line: whatever is not printable as `\\n`, `\\x1b` or `\\u2028`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class TextLine(logging.Formatter):
    """For people. `line` as `logging.Formatter` takes it; a traceback follows, indented."""

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
    """For machines: one object a line. `worker` is the name of the process, where it is one."""

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
    """The one for `form`; `line` is how the text is laid out."""
    return JsonLine(worker) if form == "json" else TextLine(line)


def _fault(by: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback and the stack that go with a record, as text."""
    parts = [by.formatException(record.exc_info) if record.exc_info else "", record.stack_info or ""]
    return "\n".join(part for part in parts if part)


def to_stderr(form: Form, worker: str) -> None:
    """The set-up of a process that is a worker: everything goes to the error output, Python's own warnings too."""
    stream = logging.StreamHandler()
    stream.setFormatter(formatter(form, LINE, worker))
    logging.basicConfig(level=logging.INFO, handlers=[stream])
    logging.captureWarnings(form == "json")
    if form == "json":
        sys.excepthook = _ended


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("The process ends by an error.", exc_info=(kind, error, trace))
