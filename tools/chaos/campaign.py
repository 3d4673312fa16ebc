"""One campaign: a reference run without faults, load with faults, recovery, and then the evidence.

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

from engine.bus import Bus
from tools.chaos import evidence_collector
from tools.chaos.discord_members import DiscordMembers
from tools.chaos.evidence import ENDS, Accepted, Evidence, JobSpec
from tools.chaos.fault_injector import FaultInjector
from tools.chaos.faults import MOUNT_KINDS, WEIGHTS, draw_faults, list_possible_kinds
from tools.chaos.hostile_client import HostileClient
from tools.chaos.http_members import HttpMember, WebTarget
from tools.chaos.installation import Build, Installation, start_installation
from tools.chaos.invariants import check_invariants
from tools.chaos.observer import Observer
from tools.chaos.report import Outcome
from tools.chaos.timeline import AcceptedLog, Timeline
from tools.chaos.tmpfs import can_mount

PROMPTS = ("red apple", "blue teapot", "green tree on a hill")
SETTLE_TIMEOUT = 240.0  # seconds for all jobs to end once everything is up
GUILDS = 2
COMMAND_INTERVAL = 2.5  # seconds between two commands in Discord


@dataclass(frozen=True)
class Plan:
    """The plan of a campaign. `gap`: seconds between two faults on average; `steps`: of the jobs."""

    seed: int
    fault_count: int
    build: Build
    gap: float = 2.5
    steps: tuple[int, ...] = (20, 60, 150)
    members: int = 6
    discord_members: int = 4
    kinds: tuple[str, ...] = ()  # empty: all that are possible here
    excluded_kinds: tuple[str, ...] = ()
    settle_timeout: float = SETTLE_TIMEOUT

    def make_job_specs(self) -> list[JobSpec]:
        """Makes a few recipes that members repeat; each is compared with its reference run."""
        rng = random.Random(self.seed)
        return [
            JobSpec(prompt, rng.randrange(10**6), steps, 1 + number % 2)
            for number, prompt in enumerate(PROMPTS)
            for steps in self.steps
        ]


@dataclass(frozen=True)
class Setup:
    """Everything that is open during a campaign."""

    plan: Plan
    site: Installation
    accepted_log: AcceptedLog
    bus: Bus
    observer: Observer
    web_target: WebTarget
    discord_members: DiscordMembers
    fault_injector: FaultInjector
    members: list[HttpMember]
    references: dict[JobSpec, tuple[str, ...]]


async def run_campaign(plan: Plan, folder: Path, print_line: Callable[[str], None]) -> Outcome:
    """Runs a campaign. Raises if the reference run fails. The outcome reports what faults break."""
    folder.mkdir(parents=True, exist_ok=True)
    can_mount_here = any(kind in MOUNT_KINDS for kind in plan.kinds or WEIGHTS) and can_mount(folder)
    allowed_kinds = list_possible_kinds(plan.build.database, mounts=can_mount_here, excluded=plan.excluded_kinds)
    kinds = [kind for kind in allowed_kinds if not plan.kinds or kind in plan.kinds]
    build = replace(plan.build, disks=bool(set(kinds) & set(MOUNT_KINDS)))
    impossible_kinds = () if can_mount_here else [kind for kind in MOUNT_KINDS if kind in (plan.kinds or WEIGHTS)]
    skipped_kinds = dict.fromkeys(impossible_kinds, "no file system can be mounted here")
    skipped_kinds |= dict.fromkeys(plan.excluded_kinds, "left out on the command line")
    started_at = time.monotonic()
    async with AsyncExitStack() as parts:
        timeline = Timeline.open(folder / "timeline.jsonl", print_line)
        parts.callback(timeline.close)
        timeline.note("begins", is_printed=True, seed=plan.seed, engine=build.engine, database=build.database)
        site = await parts.enter_async_context(start_installation(build, folder, timeline))
        timeline.note("everything is up", is_printed=True)
        setup = await _open_scene(parts, plan, site, folder)
        await _run_references(setup)
        is_settled = await _run_with_faults(setup, kinds)
        evidence = await _collect_evidence(setup)
        verdicts = check_invariants(evidence)
        death_counts = {name: one.death_count for name, one in site.programs.items() if one.death_count}
        timeline.note("is over", is_printed=True, settled=is_settled)
        outcome = Outcome(
            plan.seed,
            build.engine,
            build.database,
            time.monotonic() - started_at,
            setup.fault_injector.injected,
            skipped_kinds,
            death_counts,
            is_settled,
            evidence,
            verdicts,
        )
    if outcome.is_satisfied:
        await asyncio.to_thread(site.database.delete)
    return outcome


async def _open_scene(parts: AsyncExitStack, plan: Plan, site: Installation, folder: Path) -> Setup:
    accepted_log = AcceptedLog(folder / "accepted.jsonl")
    parts.callback(accepted_log.close)
    bus = await Bus.connect(site.broker_url, site.token, name="observer")
    parts.push_async_callback(bus.close)
    specs = plan.make_job_specs()
    model = site.build.model
    members: list[HttpMember] = []
    observer = Observer(bus, lambda: [job for member in members for job in member.open_jobs])
    setup = Setup(
        plan,
        site,
        accepted_log,
        bus,
        observer,
        WebTarget.create(site.url, model, specs, accepted_log, is_exact=site.build.engine == "real"),
        DiscordMembers(
            site.loopback, GUILDS, plan.discord_members, model, specs, accepted_log, random.Random(plan.seed + 1)
        ),
        FaultInjector(site, observer, HostileClient(bus, observer)),
        members,
        {},
    )
    await observer.subscribe()
    watcher = asyncio.create_task(observer.request_previews_forever())
    parts.callback(watcher.cancel)
    return setup


async def _run_references(setup: Setup) -> None:
    """Runs every recipe once, without faults."""
    member = HttpMember(
        "reference",
        setup.web_target,
        random.Random(0),
        max_open=len(setup.web_target.specs),
        cancel_share=0.0,
        steer_share=0.0,
    )
    setup.members.append(member)
    jobs = await member.request_each_once(setup.web_target.specs)
    assert len(jobs) == len(setup.web_target.specs), f"Refused: {setup.web_target.refusals}"
    results = await evidence_collector.fetch_jobs(setup.site.url, setup.site.folder / "bot", list(jobs))
    for job, spec in jobs.items():
        assert results[job].state == "finished", f"{spec} did not finish, without any fault: {results[job]}"
        setup.references[spec] = tuple(digest for _, _, digest in results[job].pictures)
    setup.site.timeline.note("the undisturbed run is done", is_printed=True, recipes=len(jobs))


async def _run_with_faults(setup: Setup, kinds: list[str]) -> bool:
    """Runs load and faults, then recovery. True if all jobs end in time afterwards."""
    plan = setup.plan
    site = setup.site
    setup.members.extend(
        HttpMember(f"m{n}", setup.web_target, random.Random(plan.seed + 10 + n)) for n in range(plan.members)
    )
    tasks = [asyncio.create_task(member.run()) for member in setup.members[1:]]
    tasks.append(asyncio.create_task(setup.discord_members.run(COMMAND_INTERVAL)))
    await asyncio.sleep(2.0)
    await setup.fault_injector.inject_all(draw_faults(plan.seed, plan.fault_count, kinds, site.build.names, plan.gap))
    site.timeline.note("no more faults", is_printed=True, promised=len(setup.accepted_log.jobs))
    for one in (*setup.members, setup.discord_members):
        one.is_requesting = False
    try:
        async with asyncio.timeout(plan.settle_timeout):
            await setup.fault_injector.restore_all()
            site.timeline.note("everything is up", is_printed=True)
            await asyncio.gather(*tasks)
            await _wait_until_settled(setup)
        return True
    except TimeoutError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return False


async def _wait_until_settled(setup: Setup) -> None:
    """Waits until every job has ended, every end is shown, and the broker is empty."""
    database = setup.site.database
    while True:
        rows = await asyncio.to_thread(evidence_collector.read_jobs, database)
        places = await asyncio.to_thread(evidence_collector.read_destinations, database)
        undelivered_places = [
            destination for destination in places if destination.kind == "discord" and destination.delivered is None
        ]
        if (
            all(row.state in ENDS for row in rows)
            and not undelivered_places
            and not any((await evidence_collector.count_messages_left(setup.bus)).values())
        ):
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(2.0)  # duplicates arrive now


async def _collect_evidence(setup: Setup) -> Evidence:
    database = setup.site.database
    rows = await asyncio.to_thread(evidence_collector.read_jobs, database)
    accepted = tuple(
        Accepted(job, spec, front_end, tuple(sorted(setup.web_target.end_states.get(job, ()))))
        for job, (spec, front_end) in setup.accepted_log.jobs.items()
    )
    job_ids = sorted({row.id for row in rows} | {one.job for one in accepted})
    evidence = Evidence(
        accepted=accepted,
        jobs=rows,
        moves=await asyncio.to_thread(evidence_collector.read_moves, database),
        places=await asyncio.to_thread(evidence_collector.read_destinations, database),
        accounts=await asyncio.to_thread(evidence_collector.read_accounts, database),
        api=await evidence_collector.fetch_jobs(setup.site.url, setup.site.folder / "bot", job_ids),
        posted_counts=setup.discord_members.count_posted(),
        messages_left=await evidence_collector.count_messages_left(setup.bus),
        references=setup.references,
        repeatable_front_ends=("web",) if setup.web_target.is_exact else ("web", "discord"),
        setbacks=tuple(setup.observer.list_setbacks()),
        asked_amendments=tuple(setup.web_target.asked_amendments),
        told_amendments=tuple(sorted(setup.web_target.told_amendments, key=lambda one: (one.job, one.number))),
        amendments=await asyncio.to_thread(evidence_collector.read_amendments, database),
    )
    redrawn = await evidence_collector.redraw_jobs(setup.site, evidence, setup.plan.seed)
    return replace(evidence, redrawn=redrawn)
