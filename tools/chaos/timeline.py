"""The timeline of a campaign as JSON lines: faults, starts, ends. And its accepted jobs, on disk before they count."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from tools.chaos.evidence import JobSpec


@dataclass
class Timeline:
    """`note` writes a line. Times are seconds since the campaign's start, on the monotonic clock."""

    file: TextIO
    print_line: Callable[[str], None] = lambda text: None
    started_at: float = 0.0

    @classmethod
    def open(cls, path: Path, print_line: Callable[[str], None]) -> Timeline:
        return cls(path.open("a", buffering=1), print_line, time.monotonic())

    @property
    def now(self) -> float:
        return time.monotonic() - self.started_at

    def note(self, event: str, *, is_printed: bool = False, **details: Any) -> None:
        line = {"at": round(self.now, 3), "what": event, **details}
        self.file.write(json.dumps(line, default=str) + "\n")
        if is_printed:
            self.print_line(f"{self.now:7.1f} s  {event} {' '.join(str(value) for value in details.values())}".rstrip())

    def close(self) -> None:
        self.file.close()


class AcceptedLog:
    """The campaign's own record of accepted jobs. They count as accepted whatever the bot says later."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self.jobs: dict[str, tuple[JobSpec, str]] = {}

    def record(self, job: str, spec: JobSpec, front_end: str) -> None:
        """Records an accepted job; it is on disk when this returns."""
        self._file.write(json.dumps({"job": job, "by": front_end, **asdict(spec)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.jobs[job] = (spec, front_end)

    def close(self) -> None:
        self._file.close()
