"""The table of every route: who may ask for it, and which action of the permission table it checks.

The rows are text files beside the tests of the page and of each feature. A row says who may ask: everybody, a visitor,
the operator, or the terminal of this machine. Then the action that the answer depends on; "-": of no job, or only
whether the visitor sees the job.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

BOT_TESTS = Path(__file__).parents[2] / "tests" / "bot"
UNKNOWN_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Route(NamedTuple):
    method: str
    path: str
    who: str
    action: str

    def path_of(self, job: str) -> str:
        values = {"id": job, "n": 1, "kind": "webp", "file": "1.webp", "format": "png", "model": "embedded"}
        return re.sub(r"{(\w+)}", lambda match: str(values.get(match[1], "01")), self.path)


def read_routes() -> list[Route]:
    files = [BOT_TESTS / "web" / "routes.txt", *sorted(BOT_TESTS.glob("*/*/routes.txt"))]
    return [Route(*row.split()) for file in files for row in file.read_text().splitlines()]


ROUTES = tuple(read_routes())
