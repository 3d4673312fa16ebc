"""Runs both sides of one model, part after part, and collects their figures. Knows no goals.

If a part fails, its figures are missing and the failure is recorded; the other parts go on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.bench.models import rival
from engine.bench.models.chatroom import Chatroom, Seen, open_chatroom
from engine.bench.models.processes import Fact, collect_facts, darkroom
from engine.bench.models.sizes import Subject

PROMPT = "a lighthouse at night"
DTYPE = "bfloat16"  # of the folder, and so of diffusers
Say = Callable[[str], None]
SETTLE = 2.0  # seconds after a picture until memory is at rest
READ = 2**24


@dataclass
class Figures:
    """Seconds, pictures a second or MB, by name. `failures` says what could not be measured, and why."""

    values: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    dtype: str = ""

    def attempt(self, name: str, part: Callable[[], dict[str, float]]) -> None:
        try:
            self.values |= part()
        except (RuntimeError, OSError, ValueError, LookupError) as error:
            self.failures.append(f"{name} failed: {' '.join(str(error).split())[:300] or type(error).__name__}")


def measure(subject: Subject, folder: Path, say: Say) -> Figures:
    """Measure all figures of one model. The sides alternate, so that a slow hour of the machine affects both."""
    found = Figures()
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as scratch:
        sides = _Sides(subject, folder, Path(scratch), found)
        _read_through(folder)
        for name, part in sides.parts().items():
            say(f"{subject.name}: {name}")
            found.attempt(name, part)
    return found


def _read_through(folder: Path) -> None:
    """Read the weights into the page cache, so that the first side does not pay for the disk."""
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(READ):
                pass


class _Sides:
    def __init__(self, subject: Subject, folder: Path, scratch: Path, found: Figures) -> None:
        self._subject, self._folder, self._scratch, self._found = subject, folder, scratch, found

    def parts(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Return the parts by name, the sides alternating."""
        return {
            "diffusers, first start": lambda: self._rival("first", pictures=2, decodes=2),
            "darkroom imagine, first start ever": lambda: self._imagine("first"),
            "diffusers, second start": lambda: self._rival("second", pictures=1, decodes=1),
            "darkroom imagine, second start": lambda: self._imagine("second"),
            "a step and a decode of the engine": self._engine,
            "darkroom up": self._chatroom,
        }

    def _rival(self, start: str, pictures: int, decodes: int) -> dict[str, float]:
        order = self._order(pictures) | {"decodes": decodes}
        facts = collect_facts([sys.executable, rival.__file__, str(self._write(order))], self._log("rival"))
        drawn, loaded = [fact for fact in facts if "picture" in fact.value], facts[0].value["loaded"]
        found = {f"rival {start}": drawn[0].after}
        found |= {f"rival loaded {name}": value for name, value in loaded.items()}
        found |= {f"rival {name}": value for name, value in drawn[-1].value["memory"].items()}
        return found | self._seconds("rival", facts)

    def _engine(self) -> dict[str, float]:
        order = self._order(pictures=2) | {"data": str(self._scratch / "data")}
        command = [sys.executable, "-m", "engine.bench.models.ours", str(self._write(order))]
        facts = collect_facts(command, self._log("engine"))
        self._found.dtype = str(facts[0].value["dtype"])
        memory = facts[-1].value["memory"]
        card = {f"ours {name}": memory[name] for name in ("card", "card_peak") if name in memory}
        return card | self._seconds("ours", facts)

    def _seconds(self, side: str, facts: list[Fact]) -> dict[str, float]:
        """Return the minimum over several runs, the least disturbed one.

        The first picture does not count as a next one.
        """
        pictures = [fact.value["picture"] for fact in facts if "picture" in fact.value]
        steps = [fact.value["step"] for fact in facts if fact.value.get("step")]
        decodes = [fact.value["decode"] for fact in facts if "decode" in fact.value]
        found = {"alone": pictures[1:], "step": steps, "decode": decodes}
        best = {f"{side} {name}": min(seconds) for name, seconds in found.items() if seconds}
        return {name: min(value, self._found.values.get(name, value)) for name, value in best.items()}

    def _imagine(self, start: str) -> dict[str, float]:
        subject = self._subject
        command = darkroom(
            "imagine", PROMPT, "--model", str(self._folder), "--steps", str(subject.steps), "--count", "1",
            "--guidance", str(subject.guidance), "--seed", "1", "--out", str(self._scratch), "--json",
            "--data", str(self._scratch / "data"), *(("--sampler", subject.sampler) if subject.sampler else ()),
        )  # fmt: skip
        [fact] = collect_facts(command, self._log("imagine"))
        if fact.value["width"] % subject.side:  # a small model's pictures are upscaled
            raise RuntimeError(f"the picture has {fact.value['width']} pixels a side instead of {subject.side}")
        return {f"ours {start}": fact.after}

    def _chatroom(self) -> dict[str, float]:
        """Measure `darkroom up` on a new data folder, so that this is a first start, too."""
        with open_chatroom(self._folder, self._scratch / "chatroom", self._log("up")) as room:
            cookie = room.visit()
            first = room.draw(self._job(10), cookie)
            found = {"ours first up": first.picture - room.begun}
            found["ours preview"] = (first.picture if first.frame is None else first.frame) - room.begun
            following = [room.draw(self._job(11 + number), cookie) for number in range(2)]
            found["ours next"] = min(seen.picture - seen.posted for seen in following)
            time.sleep(SETTLE)
            found |= {f"ours {name}": value for name, value in room.memory().items()}
            self._found.values |= found  # kept even if many users at once fail
            for users in self._subject.users:
                found[f"ours {users} users"] = self._crowd(room, users)
            if (most := room.memory().get("peak")) is not None:
                found["ours crowd peak"] = most
        return found

    def _crowd(self, room: Chatroom, users: int) -> float:
        """Return the pictures a second of `users` at once."""
        seen: list[Seen] = room.draw_together([self._job(100 * users + number) for number in range(users)])
        return users / (max(one.picture for one in seen) - min(one.posted for one in seen))

    def _order(self, pictures: int) -> dict[str, Any]:
        subject = self._subject
        return {
            "folder": str(self._folder), "dtype": DTYPE, "prompt": PROMPT, "steps": subject.steps,
            "guidance": subject.guidance, "side": subject.side, "sampler": subject.sampler, "pictures": pictures,
            "out": str(self._scratch),
        }  # fmt: skip

    def _job(self, seed: int) -> dict[str, Any]:
        """Return the same job as the HTTP API takes it."""
        subject = self._subject
        order = {
            "prompt": PROMPT, "model": self._folder.name, "steps": subject.steps, "guidance": subject.guidance,
            "count": 1, "seed": seed,
        }  # fmt: skip
        return order | ({"sampler": subject.sampler} if subject.sampler else {})

    def _write(self, order: dict[str, Any]) -> Path:
        path = self._scratch / "order.json"
        path.write_text(json.dumps(order))
        return path

    def _log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"
