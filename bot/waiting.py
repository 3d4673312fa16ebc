"""Why a job waits, as one sentence. Pure; the same for every front end.

Reasons that keep it from starting at all come first, then its place in the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from bot.sentences import duration
from engine.sizes import part_of, percent


@dataclass(frozen=True)
class Facts:
    """What is known about a waiting job.

    `starting`: a sentence about a worker that is starting up, while none can run the job. `anyone`: a worker is online;
    `offered`: one in its pool has its model (empty: it needs none). `loaded`: the model is in memory. Else `fetched`:
    the loaded share (None: no worker loads it) of `size` bytes (0: unknown), and `fetching`: the seconds that loading
    takes. `mine`, `guild`, `channel`: running jobs of its member, server and channel, with their limits (None: none); a
    server limit of 0 means closed. `ahead`: jobs before it, of `others` members (0: not counted). Front ends show the
    ETA beside it.
    """

    model: str = ""
    starting: str = ""
    anyone: bool = True
    offered: bool = True
    loaded: bool = True
    fetched: float | None = None
    size: int = 0
    fetching: float = 0.0
    mine: int = 0
    mine_most: int | None = None
    guild: int = 0
    guild_most: int | None = None
    channel: int = 0
    channel_most: int | None = None
    ahead: int = 0
    others: int = 0


def why(facts: Facts) -> str:
    """Return one sentence, two at most."""
    return _unserved(facts) or _limited(facts) or _in_line(facts)


def _unserved(facts: Facts) -> str:
    if facts.starting and not (facts.anyone and facts.offered):
        return facts.starting
    model = f" for {facts.model}" if facts.model else ""
    if not facts.anyone:
        return f"No worker is online{model}."
    return "" if facts.offered else f"No worker that is online has {facts.model or 'room for it'}: it waits for one."


def _limited(facts: Facts) -> str:
    if facts.guild_most == 0:
        return "This server starts no jobs at present."
    limits = (
        (facts.mine, facts.mine_most, "member"), (facts.guild, facts.guild_most, "server"),
        (facts.channel, facts.channel_most, "channel"),
    )  # fmt: skip
    for running, most, whose in limits:
        if most is not None and running >= most:
            return f"{running} of this {whose}'s run already: one of them must end first."
    return ""


def _in_line(facts: Facts) -> str:
    if facts.ahead:
        place = f"{facts.ahead} ahead of it"
        place += f", of {facts.others} other members." if facts.others > 1 else "."
    else:
        place = "Next in line: it starts when there is room."
    return f"{_model(facts)} {place}".lstrip()


def _model(facts: Facts) -> str:
    if facts.loaded:
        return ""
    if facts.fetched is not None:
        done = part_of(facts.fetched, facts.size) if facts.size else f"{percent(facts.fetched)} %"
        return f"{facts.model} is being loaded, {done}."
    takes = f", which takes about {duration(facts.fetching)}" if facts.fetching else ""
    return f"{facts.model} has to be loaded first{takes}."
