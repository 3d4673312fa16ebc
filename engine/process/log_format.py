"""The log format of engine and bot: text lines, or one JSON object a line.

Each line names its job, so that a search for a job's id finds its lines from every process. Text from outside is
escaped: a line break in a prompt starts no new line. Tokens of Discord interactions, which let anyone answer in the
bot's name, are left out. Uses only the standard library.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

LogFormat = Literal["text", "json"]
TRACEBACK_INDENT = "    "  # of every line after the first: no traceback can look like a record
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JOB_PREFIX = "job %s"  # how our messages start if they name their job first

# the token in the address of a webhook or of a callback; and any that Discord gave an interaction
_DISCORD_TOKEN = re.compile(r"(/(?:webhooks|interactions)/\d+/)[^\s/?\"']+|\baW50ZXJhY3Rpb246[\w+/=-]*")

_job_context: ContextVar[str] = ContextVar("job", default="")
_worker_context: ContextVar[str] = ContextVar("worker", default="")


@contextmanager
def log_context(job: str, worker: str = "") -> Generator[None]:
    """Attach a job, and a worker if one is named, to everything logged inside. Tasks created inside inherit both."""
    job_token = _job_context.set(job)
    worker_token = _worker_context.set(worker or _worker_context.get())
    try:
        yield
    finally:
        _worker_context.reset(worker_token)
        _job_context.reset(job_token)


def job_of(record: logging.LogRecord) -> str:
    """Return the record's job, from its attribute `job`, the start of its message, or the enclosing `log_context`."""
    job = getattr(record, "job", None)
    if isinstance(job, str):
        return job
    if (
        isinstance(record.msg, str)
        and record.msg.startswith(JOB_PREFIX)
        and isinstance(record.args, tuple)
        and record.args
    ):
        return str(record.args[0])
    return _job_context.get()


def escape(text: str) -> str:
    """Return `text` on one line: unprintable characters become `\\n`, `\\x1b` or `\\u2028`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def redact_tokens(text: str) -> str:
    """Return `text` without the tokens of Discord interactions and webhooks."""
    return _DISCORD_TOKEN.sub(lambda match: f"{match[1] or ''}(token)", text)


class TextFormatter(logging.Formatter):
    """Lines for people. `text_format` is a `logging.Formatter` format; a traceback follows, indented."""

    def __init__(self, text_format: str) -> None:
        super().__init__(text_format)

    def format(self, record: logging.LogRecord) -> str:
        message = escape(redact_tokens(record.getMessage()))
        job = escape(job_of(record))
        single_line = copy(record)
        single_line.msg = f"{message} (job {job})" if job and job not in message else message
        single_line.args = None
        single_line.exc_info = single_line.exc_text = single_line.stack_info = None
        traceback_lines = [f"{TRACEBACK_INDENT}{escape(line)}" for line in _format_traceback(self, record).splitlines()]
        return "\n".join([super().format(single_line), *traceback_lines])


class JsonFormatter(logging.Formatter):
    """Lines for machines: one object each. `worker` is the name of this process, if it is a worker."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker_name = worker

    def format(self, record: logging.LogRecord) -> str:
        created = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": created.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact_tokens(record.getMessage()),
            "job": job_of(record),
            "worker": getattr(record, "worker", "") or _worker_context.get() or self._worker_name,
            "exception": _format_traceback(self, record),
        }
        required_fields = ("time", "level", "logger", "message")
        return json.dumps(
            {name: value for name, value in fields.items() if value or name in required_fields}, default=str
        )


def build_formatter(log_format: LogFormat, text_format: str, worker: str = "") -> logging.Formatter:
    """Return the formatter for `log_format`; `text_format` is the format of text lines."""
    return JsonFormatter(worker) if log_format == "json" else TextFormatter(text_format)


def _format_traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info) if record.exc_info else "", record.stack_info or ""]
    return redact_tokens("\n".join(part for part in parts if part))


def configure_stderr(log_format: LogFormat, worker: str) -> None:
    """Configure logging of a worker process: everything, Python's warnings included, goes to stderr."""
    stream = logging.StreamHandler()
    stream.setFormatter(build_formatter(log_format, TEXT_FORMAT, worker))
    logging.basicConfig(level=logging.INFO, handlers=[stream])
    logging.captureWarnings(log_format == "json")
    if log_format == "json":
        sys.excepthook = _log_unhandled


def _log_unhandled(error_type: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("An unhandled error ends the process.", exc_info=(error_type, error, trace))
