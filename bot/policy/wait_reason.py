"""Why a job waits, as one sentence. Pure; the same for every front end.

First come reasons why it cannot start at all, then its place in the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from bot.domain.texts import format_duration
from engine.process.load_progress import format_loaded_part, loaded_percent


@dataclass(frozen=True)
class WaitFacts:
    """What is known about a waiting job.

    `startup_notice`: a sentence about a worker that is starting up, while none can run the job. `any_worker`: a worker
    is online; `is_offered`: one in its pool has its model (empty: it needs none). `is_loaded`: the model is in memory.
    Else `loaded_share`: the loaded share (None: no worker loads it) of `model_bytes` bytes (0: unknown), and
    `load_seconds`: the seconds that loading takes. `member_running`, `guild_running`, `channel_running`: running jobs
    of its member, server and channel, with their limits (None: none); a server limit of 0 means closed. `jobs_ahead`:
    jobs before it, of `other_members` members (0: not counted). Front ends show the ETA beside it.
    """

    model: str = ""
    startup_notice: str = ""
    any_worker: bool = True
    is_offered: bool = True
    is_loaded: bool = True
    loaded_share: float | None = None
    model_bytes: int = 0
    load_seconds: float = 0.0
    member_running: int = 0
    member_limit: int | None = None
    guild_running: int = 0
    guild_limit: int | None = None
    channel_running: int = 0
    channel_limit: int | None = None
    jobs_ahead: int = 0
    other_members: int = 0


def wait_reason(facts: WaitFacts) -> str:
    """Return one sentence, two at most."""
    return _no_worker_reason(facts) or _limit_reason(facts) or _queue_reason(facts)


def _no_worker_reason(facts: WaitFacts) -> str:
    if facts.startup_notice and not (facts.any_worker and facts.is_offered):
        return facts.startup_notice
    model_part = f" for {facts.model}" if facts.model else ""
    if not facts.any_worker:
        return f"No worker is online{model_part}."
    return "" if facts.is_offered else f"No worker that is online has {facts.model or 'room for it'}: it waits for one."


def _limit_reason(facts: WaitFacts) -> str:
    if facts.guild_limit == 0:
        return "This server starts no jobs at present."
    limits = (
        (facts.member_running, facts.member_limit, "member"),
        (facts.guild_running, facts.guild_limit, "server"),
        (facts.channel_running, facts.channel_limit, "channel"),
    )
    for running, limit, owner in limits:
        if limit is not None and running >= limit:
            return f"{running} of this {owner}'s run already: one of them must end first."
    return ""


def _queue_reason(facts: WaitFacts) -> str:
    if facts.jobs_ahead:
        place_part = f"{facts.jobs_ahead} ahead of it"
        place_part += f", of {facts.other_members} other members." if facts.other_members > 1 else "."
    else:
        place_part = "Next in line: it starts when there is room."
    return f"{_loading_part(facts)} {place_part}".lstrip()


def _loading_part(facts: WaitFacts) -> str:
    if facts.is_loaded:
        return ""
    if facts.loaded_share is not None:
        loaded_part = (
            format_loaded_part(facts.loaded_share, facts.model_bytes)
            if facts.model_bytes
            else f"{loaded_percent(facts.loaded_share)} %"
        )
        return f"{facts.model} is being loaded, {loaded_part}."
    duration_part = f", which takes about {format_duration(facts.load_seconds)}" if facts.load_seconds else ""
    return f"{facts.model} has to be loaded first{duration_part}."
