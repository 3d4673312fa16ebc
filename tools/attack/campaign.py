"""The campaign: one stage after the other against a running room, an honest visitor meanwhile, then the figures."""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from engine.bus import Bus
from tools.attack import floods, forgeries, hostile_worker
from tools.attack.room import HOSTILE_WORKER, Room, start_room
from tools.attack.room_watch import RoomWatch, find_log_damage, read_log, watch_room
from tools.attack.route_matrix import SIGN_OUT, Caller, Matrix
from tools.attack.schema_fuzzing import PHASES, SchemaCampaign, fuzz_schema
from tools.attack.visitors import Tally, Visitor

SCHEMA_SECONDS = 90  # of requests made from openapi.json, at most
WARM_UP_SECONDS = 20  # of requests made from openapi.json: they load every encoder of films
ENDED_JOBS = 50  # the most ended jobs that /api/jobs lists: the quiet room then lists as many as the attacked one
STAGE_TIMEOUT = 200.0  # seconds
MEMORY_RATIO = 1.1
NICE = 5  # the attackers run on the same machine: the room, started before, comes first
PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much of each attack. `scale`: 1, or a twentieth for the quick run."""

    seed: int
    is_quick: bool = False
    only: tuple[str, ...] = ()  # stages; all of them if empty

    def scaled(self, count: int) -> int:
        return max(1, count // 20) if self.is_quick else count

    def seconds(self, full: float, quick: float) -> float:
        return quick if self.is_quick else full


@dataclass
class Evidence:
    """What the campaign saw. Zero or None until its stage has run."""

    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list[str])
    matrix_cells: int = 0
    missing_rules: list[str] = field(default_factory=list[str])
    slow_bodies_left: int | None = None
    upload_status: int | None = None
    streams_open_again: bool | None = None
    schema_failures: list[str] | None = None
    schema_requests: int = 0
    subjects_tried: int = 0
    subjects_gained: list[str] = field(default_factory=list[str])
    messages_sent: int = 0
    memory_before: int = 0
    memory_after: int = 0
    is_alive: bool = False
    honest_job_ends: bool = False
    log_damage: list[str] = field(default_factory=list[str])
    log_tracebacks: int = 0
    watch: RoomWatch | None = None


@dataclass
class Campaign:
    """The attacks on one room. `owner`, `member` (who has jobs) and `guests` came in as everybody does."""

    plan: Plan
    room: Room
    watch: RoomWatch
    evidence: Evidence
    rng: random.Random
    print_line: PrintLine
    owner: Visitor
    member: Visitor
    guests: list[Visitor]

    @property
    def tally(self) -> Tally:
        return self.evidence.tally

    async def run(self) -> None:
        await self._warm_up()
        self.evidence.memory_before = self.watch.read_memory()
        first_line = read_log(self.room.data).partition("\n")[0]
        async with self.watch.stage("quiet"):
            await asyncio.sleep(self.plan.seconds(20.0, 4.0))
        stages = (
            self.hold_half_open,
            self.send_slow_bodies,
            self.send_heads,
            self.open_streams,
            self.forge,
            self.try_routes,
            self.fuzz_schema,
            self.attack_broker,
        )
        for stage in stages:
            if not self.plan.only or stage.__name__ in self.plan.only:
                await self._run_stage(stage)
        await self._run_stage(self.look_afterwards)
        secrets = [*self.room.keys.values(), self.room.broker_token, self.owner.headers["Cookie"]]
        self.evidence.log_damage = find_log_damage(self.room.data, first_line, [*secrets, self.room.read_owner_token()])
        self.evidence.log_tracebacks = read_log(self.room.data).count("Traceback (most recent call last)")

    async def _run_stage(self, stage: Callable[[], Awaitable[None]]) -> None:
        name = getattr(stage, "__name__", "stage")
        started_at = time.monotonic()
        try:
            async with self.watch.stage(name), asyncio.timeout(STAGE_TIMEOUT):
                await stage()
        except Exception as error:
            self.tally.problems.append(f"{name}: {type(error).__name__}: {error}"[:300])
        mebibytes = self.watch.read_memory() >> 20 if self.room.is_alive else 0
        self.print_line(
            f"{name}: {time.monotonic() - started_at:.0f} s, {self.tally.requests} requests so far, {mebibytes} MiB"
        )

    async def _warm_up(self) -> None:
        """A little of everything, so that what is loaded once counts as memory of before, and a full list of jobs."""
        await floods.send_heads(self.room.port, self.tally, floods.draw_heads(self.rng, 28, ""))
        await floods.open_streams(self.room.port, self.tally, 20, self.guests, 0.5)
        await floods.hold_half_open(self.room.port, self.tally, 100, 0.5)
        job = await self.member.draw()
        await Matrix([Caller(self.owner, "operator")], {"another's": job}, Tally()).run()
        await asyncio.gather(*(guest.draw() for guest in self.guests[: self.plan.scaled(ENDED_JOBS)]))
        if not self.plan.is_quick:
            (folder := self.room.folder / "warm-up").mkdir()
            campaign = SchemaCampaign(10, WARM_UP_SECONDS, self.plan.seed)
            await fuzz_schema(self.room, self.tally, folder, campaign)

    async def hold_half_open(self) -> None:
        count = self.plan.scaled(5000)
        seconds = self.plan.seconds(15.0, 3.0)
        self.evidence.notes.append(await floods.hold_half_open(self.room.port, self.tally, count, seconds))

    async def send_slow_bodies(self) -> None:
        flood = floods.Flood(self.room.port, self.tally, 5)
        self.evidence.upload_status = await floods.upload_beside_slow_ones(
            flood, self.guests[:4], self.member, _make_png()
        )
        count = self.plan.scaled(200)
        self.evidence.slow_bodies_left = await floods.send_slow_bodies(self.room.port, self.tally, count, self.guests)

    async def send_heads(self) -> None:
        heads = floods.draw_heads(self.rng, self.plan.scaled(1000), floods.cookie_line(self.guests[0]))
        await floods.send_heads(self.room.port, self.tally, heads)

    async def open_streams(self) -> None:
        count = self.plan.scaled(1000)
        seconds = self.plan.seconds(8.0, 2.0)
        self.evidence.notes.append(await floods.open_streams(self.room.port, self.tally, count, self.guests, seconds))
        await asyncio.sleep(3.0)
        self.evidence.streams_open_again = (await self.member.send("GET", "/api/events")).status == 200

    async def forge(self) -> None:
        cookies = forgeries.forge_cookies(self.rng, self.guests[0].headers["Cookie"], self.plan.scaled(400))
        keys = forgeries.forge_keys(self.rng, self.room.keys[HOSTILE_WORKER], self.plan.scaled(100))
        credentials = [*({"Cookie": one} for one in cookies), *({"Authorization": one} for one in keys)]
        self.tally.gained_rights += await forgeries.try_credentials(self.room.url, self.tally, credentials)
        await forgeries.replay_token(self.room.url, self.tally, self.owner)
        description = (await self.owner.send_patiently("GET", "/openapi.json")).json()
        sign_outs = [path for path in description["paths"] if path.startswith(SIGN_OUT)]
        await forgeries.replay_after_sign_out(self.tally, self.owner, sign_outs)

    async def try_routes(self) -> None:
        jobs = {"another's": await self.member.draw(), "private": await self.member.draw()}
        jobs["elsewhere"] = await self.member.draw()
        own_job = await self.guests[1].draw()
        self.room.change_job(jobs["private"], "private", 1)
        self.room.change_job(jobs["elsewhere"], "guild", "discord:2")
        worker_key = {"Authorization": f"Bearer {self.room.keys[HOSTILE_WORKER]}"}
        callers = [
            Caller(Visitor("a stranger", self.room.url, self.tally), "nobody"),
            Caller(Visitor("a worker", self.room.url, self.tally, worker_key), "nobody"),
            Caller(self.guests[0], "visitor"),
            Caller(self.guests[1], "visitor", own_job),
            Caller(self.owner, "operator"),
        ]
        matrix = Matrix(callers, jobs, self.tally)
        matrix.compare_routes((await self.owner.send_patiently("GET", "/openapi.json")).json())
        await matrix.run()
        self.evidence.matrix_cells = matrix.cells
        self.evidence.missing_rules = matrix.missing_rules

    async def fuzz_schema(self) -> None:
        examples = self.plan.scaled(200)
        phases = PHASES
        if self.plan.is_quick:  # the others take what time there is
            phases = ("coverage",)
        before = self.tally.requests
        self.evidence.schema_failures = await fuzz_schema(
            self.room, self.tally, self.room.folder, SchemaCampaign(examples, SCHEMA_SECONDS, self.plan.seed, phases)
        )
        self.evidence.schema_requests = self.tally.requests - before

    async def attack_broker(self) -> None:
        bot = await Bus.connect(self.room.broker_url, self.room.broker_token)
        key = self.room.keys[HOSTILE_WORKER]
        try:
            tried, gained = await hostile_worker.try_every_subject(self.room.broker_url, key, bot)
        finally:
            await bot.close()
        self.evidence.subjects_tried = tried
        self.evidence.subjects_gained = gained
        jobs = [str((await self.member.send_patiently("POST", "/api/jobs", {"prompt": "a sun"})).json()["id"])]
        self.evidence.messages_sent = await hostile_worker.send_nonsense(
            self.room.broker_url, key, jobs, self.plan.scaled(2000), self.rng
        )

    async def look_afterwards(self) -> None:
        """Waits for the memory to come back, then asks for a picture as an honest member."""
        deadline = time.monotonic() + self.plan.seconds(60.0, 10.0)
        least = self.watch.read_memory()
        while least > MEMORY_RATIO * self.evidence.memory_before and time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            least = min(least, self.watch.read_memory())
        self.evidence.memory_after = least
        self.evidence.is_alive = self.room.is_alive
        await self.member.draw()
        self.evidence.honest_job_ends = True


def _make_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "#c33").save(buffer, "PNG")
    return buffer.getvalue()


async def run_campaign(plan: Plan, folder: Path, print_line: PrintLine) -> Evidence:
    """An open room first, then the same data folder behind DARKROOM_PUBLIC_URL; its open days must open nothing."""
    evidence = Evidence()
    rng = random.Random(plan.seed)
    old_cookie = await _attack_open_room(folder, evidence.tally)
    print_line("an open room: done")
    async with (
        start_room(folder, is_open=False) as room,
        _let_in(plan, room, evidence.tally) as (owner, member, guests),
    ):
        if old_cookie:
            old = await forgeries.try_credentials(room.url, evidence.tally, [{"Cookie": old_cookie}])
            evidence.tally.open_room_rights += [f"a cookie of the open room: {right}" for right in old]
        async with watch_room(room, member.headers["Cookie"]) as watch:
            evidence.watch = watch
            os.nice(NICE)
            await Campaign(plan, room, watch, evidence, rng, print_line, owner, member, guests).run()
    return evidence


async def _attack_open_room(folder: Path, tally: Tally) -> str:
    """Returns a cookie of a visitor of the open room."""
    async with start_room(folder, is_open=True) as room:
        await forgeries.reach_through_proxy(room.url, room.port, tally)
        return (await Visitor("an early visitor", room.url, tally).send("GET", "/")).cookie


@asynccontextmanager
async def _let_in(plan: Plan, room: Room, tally: Tally) -> AsyncGenerator[tuple[Visitor, Visitor, list[Visitor]]]:
    """The owner by the printed address, a member and guests by invitations."""
    owner = Visitor("the owner", room.url, tally)
    assert await owner.sign_in(room.read_owner_token()), "the printed address does not sign the owner in"
    count = 5 if plan.is_quick else 50
    yield owner, await owner.invite("a member"), [await owner.invite(f"guest {k}") for k in range(count)]
