"""The timeline of a campaign as JSON lines: plugs, starts, ends. And its promises, each on disk before it counts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from chaos.evidence import Wish


@dataclass
class Timeline:
    """`note` writes a line. Times are seconds since the campaign's start, on the monotonic clock."""

    file: TextIO
    say: Callable[[str], None] = lambda text: None
    began: float = 0.0

    @classmethod
    def open(cls, path: Path, say: Callable[[str], None]) -> Timeline:
        return cls(path.open("a", buffering=1), say, time.monotonic())

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def note(self, what: str, *, aloud: bool = False, **details: Any) -> None:
        line = {"at": round(self.now, 3), "what": what, **details}
        self.file.write(json.dumps(line, default=str) + "\n")
        if aloud:
            self.say(f"{self.now:7.1f} s  {what} {' '.join(str(value) for value in details.values())}".rstrip())

    def close(self) -> None:
        self.file.close()


class Promises:
    """The campaign's own record of accepted jobs: each was promised, whatever the bot says later."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self.known: dict[str, tuple[Wish, str]] = {}

    def keep(self, job: str, wish: Wish, by: str) -> None:
        """Records a promise; it is on disk when this returns."""
        self._file.write(json.dumps({"job": job, "by": by, **asdict(wish)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.known[job] = (wish, by)

    def close(self) -> None:
        self._file.close()
