"""Admission through the whole app: what each rule refuses, in which words, and what an admitted job carries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.policy.limits import Limits
from bot.policy.rules import EVERYWHERE, Scope
from bot.queue import model_catalog
from bot.services.preferences import Preferences
from bot.services.rule_admin import RuleAdmin
from bot.store import PickRequest

OLGA = Member("discord:2", "Olga", "g", is_admin=True, is_owner=True)
HERA = Member("discord:3", "Hera", "g", is_operator=True)
BOB = Member("discord:5", "Bob", "g", roles=("9", "8"), channel="7")
HERE = Destination("web", {"room": "1"})
EVERYBODY = "This server's admins set that for everybody here."
HINT = "Relaxed jobs (--relax, or /relax) do not count against it."


@pytest.fixture(autouse=True)
def guidance_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs here, 33 s for a grid of four, are those of a model with guidance in every step."""
    plain = msgspec.structs.replace(model_catalog.SHIPPED_MODEL, guidance_start=0.0, guidance_stop=1.0)
    monkeypatch.setattr(model_catalog, "SHIPPED_MODEL", plain)


@dataclass(frozen=True)
class Case:
    """A server's rules and ceilings; prompts that are admitted; and one that is refused with a sentence."""

    rules: Sequence[tuple[Scope, str, str, str]]
    sentence: str
    prompt: str = "a lamp"
    admitted: Sequence[str] = ()
    ceilings: dict[str, str] = field(default_factory=dict)
    status: int = 403


CASES = {
    "steps": Case(
        [("guild", "", "steps", "30")],
        f"This asks for 50 steps, and at most 30 are allowed here: add --steps 30. {EVERYBODY}",
        "a lamp --steps 50", ["a lamp --steps 30"], status=422,
    ),
    "count": Case(
        [("role", "8", "count", "2")],
        "This asks for 4 pictures, and at most 2 are allowed here: add --count 2. This server's admins set that for a "
        "role of yours.",
        admitted=["a lamp --count 2"], status=422,
    ),
    "count of a walk": Case(
        [("guild", "", "count", "3")],
        "A walk is drawn up to four pictures at a time, and at most 3 a job are allowed here: none can be made. "
        f"{EVERYBODY}",
        "a lamp --walk a torch --count 3", status=422,
    ),
    "pixels": Case(
        [("channel", "7", "pixels", "64x64")],
        "This would be 80x48, and at most 60x60 is allowed here. This bot's operator set that for this server.",
        "a lamp --ar 5:3", ceilings={"pixels": "60x60"}, status=422,
    ),
    "models": Case(
        [("user", "discord:5", "models", "large, other")],
        "The model embedded is not allowed here; allowed: large, other. This server's admins set that for you.",
    ),
    "samplers": Case(
        [("guild", "", "samplers", "ddim, euler")],
        f"The sampler ddpm is not allowed here; allowed: ddim, euler. {EVERYBODY}", admitted=["a lamp --sampler euler"],
    ),
    "commands": Case(
        [("channel", "7", "commands", "vary, queue")],
        "You may not use imagine here; allowed: vary, queue. This server's admins set that for this channel.",
    ),
    "blocked": Case(
        [("user", "discord:5", "blocked", "on")],
        "You are blocked on this server: you can make nothing here until its admins unblock you.",
    ),
    "blocked role": Case(
        [("role", "9", "blocked", "on"), ("role", "8", "blocked", "off")],
        "A role of yours is blocked on this server: you can make nothing here until its admins unblock you.",
    ),
    "blocked server": Case(
        [], "This bot's operator has blocked this server: nothing can be made until they take that back.",
        ceilings={"blocked": "on"},
    ),
    "speeds": Case(
        [("guild", "", "speeds", "fast")],
        f"The relaxed speed is not allowed here; allowed: fast. {EVERYBODY}", "a lamp --relax", ["a lamp"],
    ),
    "queued": Case(
        [("guild", "", "queued", "1"), ("role", "9", "running", "1")],
        f"Your queue is full: at most 1 of yours runs at once and 1 more wait; you have 0 running and 2 waiting. "
        f"A place frees when a worker comes. {EVERYBODY}",
        admitted=["a lamp", "a lamp"], status=429,
    ),
    "together_queued": Case(
        [("guild", "", "together_queued", "2")],
        f"This server's queue is full: 2 of 2 waiting jobs are taken. A place frees when a worker comes. {EVERYBODY}",
        admitted=["a lamp", "a lamp"], status=429,
    ),
    "channel's queue": Case(
        [("channel", "7", "together_queued", "3"), ("guild", "", "together_queued", "9")],
        "This channel's queue is full: 1 of 3 waiting jobs are taken, and this makes 3 jobs. A place frees when a "
        "worker comes. This server's admins set that for this channel.",
        "a {red,blue,green} lamp", ["a lamp"], status=429,
    ),
    "cost_day": Case(
        [("role", "9", "cost_day", "50")],
        "Your day's limit is reached: 33 s of 50 s device time used in the last 24 hours, and this needs 33 s of "
        f"device time. Enough frees in about 1 d. This server's admins set that for a role of yours. {HINT}",
        admitted=["a lamp"], status=429,
    ),
    "cost_month": Case(
        [("guild", "", "cost_month", "60"), ("guild", "", "speeds", "fast")],
        "Your month's limit is reached: 33 s of 1 min device time used in the last 30 days, and this needs 33 s of "
        f"device time. Enough frees in about 30 d. {EVERYBODY}",
        admitted=["a lamp"], status=429,
    ),
    "too large": Case(
        [("guild", "", "cost_day", "10")],
        "Too large: this needs 33 s of device time, and your limit is 10 s in 24 hours. Fewer --steps cost less. "
        f"{EVERYBODY} {HINT}",
        admitted=["a lamp --steps 100"], status=429,
    ),
    "a budget": Case(
        [("guild", "", "together_cost_day", "1 h")],
        "This server's day's limit is reached: 33 s of 40 s device time used in the last 24 hours, and this needs 33 s "
        f"of device time. Enough frees in about 1 d. This bot's operator set that for this server. {HINT}",
        admitted=["a lamp"], ceilings={"together_cost_day": "40"}, status=429,
    ),
}  # fmt: skip


async def refusal(awaited) -> UserError:
    with pytest.raises(UserError) as refused:
        await awaited
    return refused.value


@pytest.mark.asyncio
async def test_every_refusal_names_the_limit_its_use_when_it_frees_and_who_set_it(workplace):
    house = await workplace.house()
    desk, services = house.services.rule_admin, house.services
    for name, case in CASES.items():
        for scope, subject, setting, text in case.rules:
            await desk.set_rule(replace(OLGA, guild=name), scope, subject, setting, text)
        if case.ceilings:
            await desk.set_ceilings(HERA, name, **case.ceilings)
        asker = replace(BOB, guild=name, id="discord:5")
        for text in case.admitted:
            await services.jobs.imagine(text, asker, HERE)
        refused = await refusal(services.jobs.imagine(case.prompt, asker, HERE))
        assert (name, refused.sentence) == (name, case.sentence)
        assert (name, refused.status) == (name, case.status)
        for view in await services.job_views.load_queue(name):
            await services.jobs.cancel(view.id, asker)


@pytest.mark.asyncio
async def test_a_refused_job_is_admitted_at_the_time_that_the_refusal_names(workplace):
    moment = 1_800_000_000.0
    house = await workplace.house(clock=lambda: moment)
    desk, services = house.services.rule_admin, house.services
    await desk.set_rule(OLGA, "guild", "", "together_cost_day", "80")
    for n in range(2):
        (ticket,) = await services.jobs.imagine("a lamp", replace(BOB, id=f"discord:{n}"), HERE)
        await house.store.end_job("cancel", ticket.job, moment, None)
        moment += 3600
    refused = await refusal(services.jobs.imagine("a lamp", BOB, HERE))
    assert "1 min 5 s of 1 min 20 s" in refused.sentence
    assert "Enough frees in about 22 h" in refused.sentence
    assert refused.retry_at == 1_800_000_000.0 + 86_400
    moment = refused.retry_at
    await services.jobs.imagine("a lamp", BOB, HERE)


@pytest.mark.asyncio
async def test_a_refusal_says_that_the_operator_closed_or_blocked(workplace):
    house = await workplace.house()
    desk, everywhere = house.services.rule_admin, replace(HERA, guild=EVERYWHERE)

    async def sentence() -> str:
        return (await refusal(house.services.jobs.imagine("a lamp", BOB, HERE))).sentence

    await desk.set_rule(everywhere, "user", BOB.id, "blocked", "on")
    assert await sentence() == "This bot's operator has blocked you: nothing can be made until they take that back."
    await desk.close_guild(HERA, "abuse")
    assert await sentence() == (
        "This server is closed for new pictures: abuse (closed by Hera). It waits for this bot's operator to open it."
    )
    await desk.close_guild(everywhere, "moving")
    assert await sentence() == (
        "This bot is closed for new pictures: moving (closed by Hera). It waits for this bot's operator to open it."
    )


@pytest.mark.slow
@pytest.mark.asyncio
async def test_of_several_limits_the_refusal_names_the_one_that_holds_longest(workplace):
    house = await workplace.house()
    desk = house.services.rule_admin
    for setting, text in (("cost_day", "40"), ("cost_month", "50"), ("queued", "0"), ("running", "1")):
        await desk.set_rule(OLGA, "guild", "", setting, text)
    (ticket,) = await house.services.jobs.imagine("a lamp", BOB, HERE)
    await house.store.end_job("cancel", ticket.job, 1.0, None)
    assert "Your month's limit" in (await refusal(house.services.jobs.imagine("a lamp", BOB, HERE))).sentence
    assert "2 jobs are too many" in (await refusal(house.services.jobs.imagine("{a,b} lamp", BOB, HERE))).sentence


@pytest.mark.asyncio
async def test_defaults_and_global_ceilings_count_over_all_servers(workplace):
    house = await workplace.house()
    desk, services = house.services.rule_admin, house.services
    await desk.set_ceilings(replace(HERA, guild=EVERYWHERE), EVERYWHERE, cost_day="80")
    await desk.set_rule(replace(OLGA, guild="mine"), "guild", "", "cost_day", "unlimited")
    for guild in ("mine", "other"):
        await services.jobs.imagine("a lamp", replace(BOB, guild=guild), HERE)
    refused = await refusal(services.jobs.imagine("a lamp", replace(BOB, guild="mine"), HERE))
    assert "1 min 5 s of 1 min 20 s device time used" in refused.sentence
    assert "This bot's operator set that, over all servers." in refused.sentence
    await desk.set_ceilings(replace(HERA, guild=EVERYWHERE), EVERYWHERE, cost_day=None)
    for n in range(8):
        await services.jobs.imagine("a lamp", replace(BOB, guild=f"g{n}"), HERE)
    assert (
        "10 waiting" in (await refusal(services.jobs.imagine("a lamp", replace(BOB, guild="another"), HERE))).sentence
    )
    await desk.set_rule(replace(OLGA, guild="mine"), "guild", "", "queued", "9")
    await services.jobs.imagine("a lamp", replace(BOB, guild="mine"), HERE)


@pytest.mark.asyncio
async def test_relaxed_jobs_use_no_quota_and_weigh_a_quarter(workplace):
    house = await workplace.house()
    desk, services = house.services.rule_admin, house.services
    await desk.set_rule(OLGA, "guild", "", "cost_day", "40")
    await services.jobs.imagine("a lamp", BOB, HERE)
    await refusal(services.jobs.imagine("a lamp", BOB, HERE))
    (one,) = await services.jobs.imagine("a lamp --relax", BOB, HERE)
    await house.services.preferences.set_preference(BOB.id, "speed", "relaxed")
    (two,) = await services.jobs.imagine("a lamp", BOB, HERE)
    for ticket in (one, two):
        record = await house.store.get_job(ticket.job)
        assert (record.tier, record.weight, record.charged) == ("relaxed", 0.25, 0.0)
        assert record.to_job().share.weight == 0.25
    query = "SELECT path, weight FROM accounts WHERE path LIKE 'default/%'"
    rows = await house.store.query(lambda connection: connection.exec_driver_sql(query).all())
    assert {path: weight for path, weight in rows if path.count("/") == 1} == {
        "default/standard": 1.0,
        "default/relaxed": 0.25,
    }
    (line,) = [line for line in (await desk.report_quotas(BOB)).lines if line.setting == "cost_day"]
    assert (line.usage_text, round(line.used)) == ("33 s of 40 s", 32)
    assert line.frees_at is not None
    await desk.set_rule(OLGA, "guild", "", "speeds", "fast")
    assert "day's limit" in (await refusal(services.jobs.imagine("a lamp", BOB, HERE))).sentence, (
        "a rule overrides a preference"
    )
    await desk.set_rule(OLGA, "guild", "", "speeds", "relaxed")
    await house.services.preferences.set_preference(BOB.id, "speed", "fast")
    (three,) = await services.jobs.imagine("a lamp", BOB, HERE)
    assert (await house.store.get_job(three.job)).tier == "relaxed"
    assert any("relaxed" in note for note in three.notes)


@pytest.mark.asyncio
async def test_rules_and_preferences_decide_who_sees_results(workplace):
    house = await workplace.house()
    desk, services = house.services.rule_admin, house.services

    async def is_private(text: str = "a lamp") -> bool:
        (ticket,) = await services.jobs.imagine(text, BOB, HERE)
        return (await house.store.get_job(ticket.job)).private

    assert not await is_private()
    await house.services.preferences.set_preference(BOB.id, "results", "private")
    assert await is_private()
    await desk.set_rule(OLGA, "guild", "", "results", "public")
    assert (await refusal(is_private())).sentence == (
        f"Results are public here, and you prefer private ones. To take part: /public. {EVERYBODY}"
    )
    await house.services.preferences.set_preference(BOB.id, "results", "public")
    assert not await is_private()
    await desk.set_rule(OLGA, "channel", "7", "results", "private")
    (ticket,) = await services.jobs.imagine("a lamp", BOB, HERE)
    assert (await house.store.get_job(ticket.job)).private
    assert "Results are private here: only you see this one." in ticket.notes
    (ticket,) = await services.jobs.imagine("a lamp", replace(BOB, channel="8"), HERE)
    assert not (await house.store.get_job(ticket.job)).private


@pytest.mark.asyncio
async def test_rules_also_hold_for_buttons(workplace, until):
    house = await workplace.house()
    await workplace.worker()
    desk, services = house.services.rule_admin, house.services
    (ticket,) = await services.jobs.imagine("a lamp", BOB, HERE)

    async def finished() -> bool:
        return (await services.job_views.load_view(ticket.job)).state == "finished"

    await until(finished)
    await desk.set_rule(OLGA, "guild", "", "commands", "imagine, upscale")
    assert "You may not use vary here" in (await refusal(services.variations.vary(ticket.job, 0, BOB, HERE))).sentence
    assert "You may not use reroll here" in (await refusal(services.variations.reroll(ticket.job, BOB, HERE))).sentence
    await services.variations.upscale(ticket.job, 0, BOB, HERE)


@pytest.mark.asyncio
async def test_a_repeated_request_is_answered_although_the_rules_changed(workplace):
    house = await workplace.house()
    (one,) = await house.services.jobs.imagine("a lamp", BOB, HERE, key="k")
    await house.services.rule_admin.close_guild(OLGA, "tea")
    (again,) = await house.services.jobs.imagine("a lamp", BOB, HERE, key="k")
    assert again.job == one.job


@pytest.mark.asyncio
async def test_concurrent_requests_do_not_exceed_the_servers_queue_limit(workplace):
    house = await workplace.house()
    await house.services.rule_admin.set_rule(OLGA, "guild", "", "together_queued", "5")

    async def ask(n: int) -> int:
        try:
            await house.services.jobs.imagine("a lamp", replace(BOB, id=f"discord:{n}"), HERE)
        except UserError:
            return 0
        return 1

    assert sum(await asyncio.gather(*(ask(n) for n in range(15)))) == 5


# Running at once


@pytest.mark.asyncio
async def test_each_members_own_rules_limit_their_running_jobs(workplace, until):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=1000)
    apprentice.go.clear()
    desk = house.services.rule_admin
    await desk.set_rule(OLGA, "guild", "", "running", "1")
    await desk.set_rule(OLGA, "role", "9", "running", "5")
    await desk.set_ceilings(replace(HERA, guild=EVERYWHERE), EVERYWHERE, running="4")
    plain = replace(BOB, id="discord:6", roles=())
    for member in (BOB, plain):
        await house.services.jobs.imagine("a {a,b,c,d,e,f} lamp", member, HERE)
    await until(lambda: len(apprentice.begun) == 5)
    await house.queue.dispatcher.run_round()
    queue = await house.services.job_views.load_queue("g")
    running = [view.member_id for view in queue if view.state != "queued"]
    assert sorted(running) == ["discord:5"] * 4 + ["discord:6"]
    assert queue[-1].wait_reason in (
        "1 of this member's run already: one of them must end first.",
        "4 of this member's run already: one of them must end first.",
    )


@pytest.mark.asyncio
async def test_a_server_and_a_channel_limit_the_running_jobs_of_all_members(workplace, until):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=1000)
    apprentice.go.clear()
    desk = house.services.rule_admin
    await desk.set_rule(OLGA, "guild", "", "together_running", "3")
    await desk.set_rule(OLGA, "channel", "7", "together_running", "1")
    for n in range(3):
        member = replace(BOB, id=f"discord:{n}")
        await house.services.jobs.imagine("a {a,b} lamp", member, HERE)
        await house.services.jobs.imagine("a {a,b} lamp", replace(member, channel="8"), HERE)
    (free,) = await house.services.jobs.imagine("a lamp", replace(BOB, guild="other"), HERE)
    await until(lambda: len(apprentice.begun) == 4)
    await house.queue.dispatcher.run_round()
    sent = [view for view in await house.services.job_views.load_queue() if view.state != "queued"]
    assert sorted(view.channel for view in sent if view.guild == "g") == ["7", "8", "8"]
    assert free.job in [view.id for view in sent]
    waiting = [view for view in await house.services.job_views.load_queue("g") if view.state == "queued"]
    assert {view.wait_reason for view in waiting} - {"3 of this member's run already: one of them must end first."} == {
        "3 of this server's run already: one of them must end first."
    }
    await desk.set_rule(OLGA, "guild", "", "together_running", "9")
    await desk.set_rule(OLGA, "channel", "8", "together_running", "2")
    await house.queue.dispatcher.run_round()
    waiting = [view for view in await house.services.job_views.load_queue("g") if view.state == "queued"]
    assert {view.wait_reason for view in waiting} - {"3 of this member's run already: one of them must end first."} <= {
        "1 of this channel's run already: one of them must end first.",
        "2 of this channel's run already: one of them must end first.",
    }
    await desk.unset_rule(OLGA, "channel", "8", "together_running")
    apprentice.go.set()

    async def all_finished() -> bool:
        return all(view.state == "finished" for view in await house.services.job_views.load_recent("g"))

    await until(all_finished, 30)


@pytest.mark.asyncio
async def test_waiting_jobs_of_a_closed_server_do_not_start(workplace, until):
    house = await workplace.house()
    (ticket,) = await house.services.jobs.imagine("a lamp", BOB, HERE)
    (free,) = await house.services.jobs.imagine("a lamp", replace(BOB, guild="other"), HERE)

    async def fail_to_cancel(_job: str) -> str:
        raise ConnectionError

    administration = RuleAdmin(house.store, fail_to_cancel, limits=Limits())
    with pytest.raises(ConnectionError):
        await administration.close_guild(OLGA, "tea")
    apprentice, _ = await workplace.worker()
    await until(lambda: free.job in apprentice.begun)
    await house.queue.dispatcher.run_round()
    assert (
        await house.services.job_views.load_view(ticket.job)
    ).wait_reason == "This server starts no jobs at present."
    await house.services.rule_admin.open_guild(OLGA)
    await until(lambda: ticket.job in apprentice.begun)


@pytest.mark.asyncio
async def test_running_jobs_in_one_server_use_no_queue_places_in_another(workplace):
    house = await workplace.house()
    desk, elsewhere = house.services.rule_admin, replace(BOB, guild="h")
    await desk.set_rule(OLGA, "guild", "", "running", "3")
    await desk.set_rule(replace(OLGA, guild="h"), "guild", "", "running", "1")
    for _ in range(3):
        await house.services.jobs.imagine("a lamp", BOB, HERE)
        assert (
            await house.store.pick_job(PickRequest("default", ("embedded",), member_limit=9), 99, 1.0, time.time())
            is not None
        )
    for _ in range(5):
        await house.services.jobs.imagine("a lamp", BOB, HERE)
    for _ in range(2):
        await house.services.jobs.imagine("a lamp", elsewhere, HERE)
    with pytest.raises(UserError, match="you have 3 running and 7 waiting"):
        await house.services.jobs.imagine("a lamp", elsewhere, HERE)


@pytest.mark.asyncio
async def test_concurrent_preferences_are_all_kept(store):
    preferences = Preferences(store)
    await asyncio.gather(
        preferences.set_preference("ann", "speed", "relaxed"),
        preferences.set_preference("ann", "remix", "on"),
        preferences.set_preference("ann", "suffix", "white"),
    )
    found = await preferences.load_preference("ann")
    assert (found.speed, found.remix, found.suffix) == ("relaxed", True, "white")
    assert (await preferences.set_preference("ann", "suffix", "")).suffix == ""
