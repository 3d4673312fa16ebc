"""`python -m tools.loopback.bench_party`: many members in one party, who say ten things a second; rows as JSON.

The bot, the broker and a worker with a simulated device are processes of their own. The members say something in turn
for as long as the party's picture develops.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.figure_row import FigureRow, format_json
from benchmarks.report.measures import jain_index
from benchmarks.steering.command import FAIR_NAME, LATE_NAME, LIMITED_NAME
from tools.loopback.bench import SOON
from tools.loopback.members import Act, Person
from tools.loopback.recorded_request import RecordedRequest
from tools.loopback.server import Loopback
from tools.loopback.simulated_installation import WORDS, open_installation

SAID_PER_SECOND = 10.0
ROW_MS = 4.0  # of the simulated device
GRACE_SECONDS = 90.0  # after a party's time, until its picture must be shown


@dataclass(frozen=True)
class PartySize:
    members: int = 50
    minutes: int = 2


@dataclass
class PartyResult:
    """The measurements of one party. `served`: of each member, how many changes of the words had their phrase."""

    size: PartySize
    loopback: Loopback
    acts: list[Act] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    change_count: int = 0
    final_delay: float = math.inf  # seconds from the job's end in the store to its picture in Discord

    def find_finals(self) -> list[RecordedRequest]:
        """The requests that carried the finished picture."""
        requests = (one for one in self.loopback.requests if one.files and one.status == 200)
        return [one for one in requests if one.files[0].filename.startswith("darkroom-")]


async def run_party(folder: Path, size: PartySize) -> PartyResult:
    """Runs one party from `/party` until its picture is shown."""
    loopback = Loopback(clock=time.monotonic, validates=False)
    result = PartyResult(size, loopback)
    guild = loopback.world.create_guild("guild")
    channel = guild.create_text_channel("party")
    people = [Person(loopback, f"member {number}", guild, answer_timeout=30.0) for number in range(size.members)]
    async with open_installation(loopback, folder, ROW_MS) as database:
        await people[0].slash(channel, "party", prompt="a fox", minutes=size.minutes)
        await _talk(people, channel, result)
        await asyncio.sleep(1.0)  # the store has the end
    await asyncio.to_thread(_read_store, database, result)
    return result


async def _talk(people: list[Person], channel: Any, result: PartyResult) -> None:
    """Lets members say something in turn until the finished picture is shown."""
    rng = random.Random(5)
    start = time.monotonic()
    order = rng.sample(people, len(people))
    await asyncio.sleep(2.0)  # the party is open
    for turn in itertools.count():
        if result.find_finals() or time.monotonic() - start > 60 * result.size.minutes + GRACE_SECONDS:
            return
        words = f"{rng.choice(WORDS)}, {rng.choice(WORDS)}"
        result.acts.append(await order[turn % len(order)].slash(channel, "say", words=words))
        await asyncio.sleep(max(0.0, start + 2.0 + (turn + 1) / SAID_PER_SECOND - time.monotonic()))


def _read_store(database: Path, result: PartyResult) -> None:
    with closing(sqlite3.connect(database)) as store:
        served = dict(store.execute("SELECT member, served FROM party_members").fetchall())
        result.change_count = store.execute("SELECT count(*) FROM amendments WHERE state = 'made'").fetchone()[0]
        ended = store.execute("SELECT ended FROM jobs").fetchone()
    counts = sorted(served.values())
    result.served = [0] * (result.size.members - len(counts)) + counts
    finals = result.find_finals()
    if finals and ended and ended[0]:
        result.final_delay = (finals[0].answered_at or math.inf) - (ended[0] + time.monotonic() - time.time())


def party_rows(result: PartyResult) -> list[FigureRow]:
    """Computes the rows of one party."""
    size = result.size
    heard_count = sum(act.answered_at is not None for act in result.acts)
    note = (
        f"{size.members} members said {len(result.acts)} things in {size.minutes} minutes, {heard_count} answered; "
        f"{result.change_count} changes, each member's words in {min(result.served)} to {max(result.served)} of them"
    )
    limited_count = result.loopback.rates.refused_count
    is_late = not result.final_delay <= SOON
    final_note = f"{result.final_delay:.2f} s after the picture's end; {len(result.find_finals())} shown"
    return [
        FigureRow(FAIR_NAME, jain_index(result.served), "≥ 0.95", "", note, size.members, size.members),
        FigureRow(LIMITED_NAME, limited_count, "= 0", "", "", len(result.loopback.requests), 1),
        FigureRow(LATE_NAME, float(is_late), "= 0", "", final_note),
    ]


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench_party", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 members, one minute")
    size = PartySize(20, 1) if parser.parse_args(args).quick else PartySize()
    with tempfile.TemporaryDirectory() as folder:
        print(format_json(party_rows(asyncio.run(run_party(Path(folder), size)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
