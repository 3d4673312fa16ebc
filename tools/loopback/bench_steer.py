"""`python -m tools.loopback.bench_steer`: how soon a message in Discord shows what its author said; rows as JSON.

One job runs on a simulated device. Its author says more and more, and each edit says which step its picture shows.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.figure_row import FigureRow, format_json
from benchmarks.report.measures import percentile
from benchmarks.steering.command import EDIT_NAME
from tools.loopback.members import Act, Person
from tools.loopback.server import Loopback, wait_until
from tools.loopback.simulated_installation import WORDS, open_installation

ROW_MS = 60.0  # of the simulated device: a step takes so long for each of its rows
STEPS = 1000
PRESSES = 30
QUICK_PRESSES = 6
PAUSE_SECONDS = (0.5, 4.0)  # between two presses
SHOWN_TIMEOUT = 30.0  # after which a change counts as never shown


@dataclass
class SteeredMessage:
    """What was said to one picture. `steps`: the step from which each of the changes holds."""

    loopback: Loopback
    acts: list[Act] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def measure_delays(self) -> list[float]:
        """Return the seconds from each press to the first edit with a picture that shows it."""
        edits = list(self._list_edits())
        delays = list[float]()
        for act, step in zip(self.acts, self.steps, strict=False):
            shown_at = (answered_at for shown_step, answered_at in edits if shown_step > step)
            delays.append(next(shown_at, act.sent_at + SHOWN_TIMEOUT) - act.sent_at)
        return delays

    def _list_edits(self) -> list[tuple[int, float]]:
        """Return the step and the time of each edit that came with a picture."""
        edits = (one for one in self.loopback.requests if one.files and one.status == 200 and one.method == "PATCH")
        found = ((re.search(r"step (\d+) of", (one.body or {}).get("content") or ""), one) for one in edits)
        return [(int(match[1]), one.answered_at) for match, one in found if match]


async def steer_message(folder: Path, presses: int) -> SteeredMessage:
    """Runs one job, whose author says more `presses` times."""
    loopback = Loopback(clock=time.monotonic, validates=False)
    rng = random.Random(5)
    steered = SteeredMessage(loopback)
    guild = loopback.world.create_guild("guild")
    channel = guild.create_text_channel("pictures")
    alice = Person(loopback, "alice", guild, answer_timeout=30.0)
    async with open_installation(loopback, folder, ROW_MS) as database:
        act = await alice.slash(
            channel, "imagine", prompt=f"a fox --steps {STEPS} --evaluations all --count 1 --interval 0-1"
        )
        message = await act.wait_for_message()
        await wait_until(lambda: _has_button(message, "Say more"), SHOWN_TIMEOUT)
        for _ in range(presses):
            await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))
            form = await (await alice.press(message, label="Say more…")).wait_for_response()
            values = {"words": rng.choice(WORDS), "weight": "", "guidance": ["same"]}
            steered.acts.append(await alice.submit(form, values))
        await asyncio.sleep(5.0)  # the last change is shown
        steered.steps = await asyncio.to_thread(_read_steps, database)
    return steered


def _has_button(message: Any, label: str) -> bool:
    buttons = (each for row in message.components for each in row["components"])
    return any(label in (each.get("label") or "") for each in buttons)


def _read_steps(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as store:
        query = "SELECT step FROM amendments WHERE state = 'made' ORDER BY number"
        return [step for (step,) in store.execute(query)]


def build_row(steered: SteeredMessage, presses: int) -> FigureRow:
    delays = steered.measure_delays()
    note = f"p50 {percentile(delays, 0.5):.2f} s; one job of {STEPS} steps, its author says {len(steered.acts)} things"
    return FigureRow(EDIT_NAME, percentile(delays, 0.99), "≤ 3", "s", note, len(delays), presses)


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench_steer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PRESSES} presses")
    presses = QUICK_PRESSES if parser.parse_args(args).quick else PRESSES
    with tempfile.TemporaryDirectory() as folder:
        print(format_json([build_row(asyncio.run(steer_message(Path(folder), presses)), presses)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
