"""One campaign: an undisturbed reference run, load with plugs, recovery, and then the evidence.

Connects the parts; contains no rules.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from chaos import evidence_collector
from chaos.discord_members import Speakers
from chaos.evidence import ENDS, Accepted, Evidence, Wish
from chaos.fault_injector import Pulling
from chaos.faults import NEED_MOUNTS, WEIGHTS, draw, possible
from chaos.hostile_client import Liar
from chaos.http_members import Member, Room
from chaos.installation import Build, Installation, installed
from chaos.invariants import judge
from chaos.observer import Observer
from chaos.report import Outcome
from chaos.timeline import Promises, Timeline
from chaos.tmpfs import may_mount
from engine.bus import Bus

PROMPTS = ("red apple", "blue teapot", "green tree on a hill")
SETTLING = 240.0  # seconds for all jobs to end once everything is up
GUILDS = 2
PAUSE = 2.5  # seconds between two commands in Discord


@dataclass(frozen=True)
class Plan:
    """The plan of a campaign. `gap`: seconds between two plugs on average; `steps`: of the jobs."""

    seed: int
    kills: int
    build: Build
    gap: float = 2.5
    steps: tuple[int, ...] = (20, 60, 150)
    members: int = 6
    speakers: int = 4
    kinds: tuple[str, ...] = ()  # empty: all that are possible here
    without: tuple[str, ...] = ()
    settling: float = SETTLING

    def wishes(self) -> list[Wish]:
        """A few recipes that members repeat; each is compared with its undisturbed run."""
        chance = random.Random(self.seed)
        return [
            Wish(prompt, chance.randrange(10**6), steps, 1 + number % 2)
            for number, prompt in enumerate(PROMPTS)
            for steps in self.steps
        ]


@dataclass(frozen=True)
class _Scene:
    """Everything that is open during a campaign."""

    plan: Plan
    site: Installation
    promises: Promises
    bus: Bus
    observer: Observer
    room: Room
    speakers: Speakers
    pulling: Pulling
    members: list[Member]
    references: dict[Wish, tuple[str, ...]]


async def campaign(plan: Plan, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Runs a campaign. Raises if even the undisturbed run fails; the outcome reports what plugs break."""
    folder.mkdir(parents=True, exist_ok=True)
    mounts = any(kind in NEED_MOUNTS for kind in plan.kinds or WEIGHTS) and may_mount(folder)
    allowed = possible(plan.build.database, mounts=mounts, without=plan.without)
    kinds = [kind for kind in allowed if not plan.kinds or kind in plan.kinds]
    build = replace(plan.build, disks=bool(set(kinds) & set(NEED_MOUNTS)))
    impossible = () if mounts else [kind for kind in NEED_MOUNTS if kind in (plan.kinds or WEIGHTS)]
    skipped = dict.fromkeys(impossible, "no file system can be mounted here")
    skipped |= dict.fromkeys(plan.without, "left out on the command line")
    started = time.monotonic()
    async with AsyncExitStack() as parts:
        timeline = Timeline.open(folder / "timeline.jsonl", say)
        parts.callback(timeline.close)
        timeline.note("begins", aloud=True, seed=plan.seed, engine=build.engine, database=build.database)
        site = await parts.enter_async_context(installed(build, folder, timeline))
        timeline.note("everything is up", aloud=True)
        scene = await _open_scene(parts, plan, site, folder)
        await _run_references(scene)
        settled = await _run_with_plugs(scene, kinds)
        evidence = await _collect_evidence(scene)
        verdicts = judge(evidence)
        died = {name: one.died for name, one in site.programs.items() if one.died}
        timeline.note("is over", aloud=True, settled=settled)
        outcome = Outcome(
            plan.seed, build.engine, build.database, time.monotonic() - started, scene.pulling.pulled, skipped, died,
            settled, evidence, verdicts,
        )  # fmt: skip
    if outcome.holds:
        await asyncio.to_thread(site.database.forget)
    return outcome


async def _open_scene(parts: AsyncExitStack, plan: Plan, site: Installation, folder: Path) -> _Scene:
    promises = Promises(folder / "accepted.jsonl")
    parts.callback(promises.close)
    bus = await Bus.connect(site.broker_url, site.token, name="observer")
    parts.push_async_callback(bus.close)
    wishes, model = plan.wishes(), site.build.model
    members: list[Member] = []
    observer = Observer(bus, lambda: [job for member in members for job in member.open])
    scene = _Scene(
        plan, site, promises, bus, observer,
        Room.at(site.url, model, wishes, promises, exact=site.build.engine == "real"),
        Speakers(site.loopback, GUILDS, plan.speakers, model, wishes, promises, random.Random(plan.seed + 1)),
        Pulling(site, observer, Liar(bus, observer)), members, {},
    )  # fmt: skip
    await observer.open()
    watcher = asyncio.create_task(observer.want())
    parts.callback(watcher.cancel)
    return scene


async def _run_references(scene: _Scene) -> None:
    """Runs every recipe once, without plugs."""
    member = Member("reference", scene.room, random.Random(0), most=len(scene.room.wishes), cancels=0.0)
    scene.members.append(member)
    jobs = await member.make(scene.room.wishes)
    assert len(jobs) == len(scene.room.wishes), f"Refused: {scene.room.refused}"
    results = await evidence_collector.shown(scene.site.url, list(jobs))
    for job, wish in jobs.items():
        assert results[job].state == "finished", f"{wish} did not finish, without any plug: {results[job]}"
        scene.references[wish] = tuple(digest for _, _, digest in results[job].pictures)
    scene.site.timeline.note("the undisturbed run is done", aloud=True, recipes=len(jobs))


async def _run_with_plugs(scene: _Scene, kinds: list[str]) -> bool:
    """Runs load and plugs, then recovery. True if all jobs end in time afterwards."""
    plan, site = scene.plan, scene.site
    scene.members.extend(Member(f"m{n}", scene.room, random.Random(plan.seed + 10 + n)) for n in range(plan.members))
    tasks = [asyncio.create_task(member.live()) for member in scene.members[1:]]
    tasks.append(asyncio.create_task(scene.speakers.live(PAUSE)))
    await asyncio.sleep(2.0)
    await scene.pulling.pull_all(draw(plan.seed, plan.kills, kinds, site.build.names, plan.gap))
    site.timeline.note("no more plugs", aloud=True, promised=len(scene.promises.known))
    for one in (*scene.members, scene.speakers):
        one.asking = False
    try:
        async with asyncio.timeout(plan.settling):
            await scene.pulling.heal()
            site.timeline.note("everything is up", aloud=True)
            await asyncio.gather(*tasks)
            await _wait_until_settled(scene)
        return True
    except TimeoutError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return False


async def _wait_until_settled(scene: _Scene) -> None:
    """Waits until every job has ended, every end is shown, and the broker is empty."""
    database = scene.site.database
    while True:
        rows = await asyncio.to_thread(evidence_collector.jobs, database)
        places = await asyncio.to_thread(evidence_collector.places, database)
        undelivered = [place for place in places if place.kind == "discord" and place.delivered is None]
        if (
            all(row.state in ENDS for row in rows)
            and not undelivered
            and not any((await evidence_collector.left(scene.bus)).values())
        ):
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(2.0)  # duplicates arrive now


async def _collect_evidence(scene: _Scene) -> Evidence:
    database = scene.site.database
    rows = await asyncio.to_thread(evidence_collector.jobs, database)
    accepted = tuple(
        Accepted(job, wish, by, tuple(sorted(scene.room.ends.get(job, ()))))
        for job, (wish, by) in scene.promises.known.items()
    )
    job_ids = sorted({row.id for row in rows} | {one.job for one in accepted})
    return Evidence(
        accepted=accepted,
        jobs=rows,
        moves=await asyncio.to_thread(evidence_collector.moves, database),
        places=await asyncio.to_thread(evidence_collector.places, database),
        accounts=await asyncio.to_thread(evidence_collector.accounts, database),
        api=await evidence_collector.shown(scene.site.url, job_ids),
        posted=scene.speakers.posted(),
        left=await evidence_collector.left(scene.bus),
        references=scene.references,
        repeats=("web",) if scene.room.exact else ("web", "discord"),
        setbacks=tuple(scene.observer.setbacks()),
    )
