"""Admission through the whole app: each rule's refusal and its sentence, and the fields of an admitted job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.jobs import model_catalog
from bot.jobs.preferences import Preferences
from bot.policy.limits import Limits
from bot.policy.rules import EVERYWHERE, Scope
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
    model_profile = msgspec.structs.replace(model_catalog.SHIPPED_MODEL, guidance_start=0.0, guidance_stop=1.0)
    monkeypatch.setattr(model_catalog, "SHIPPED_MODEL", model_profile)


LAMP = "a lamp --evaluations all"  # at its full price


@dataclass(frozen=True)
class Case:
    """A server's rules and ceilings; prompts that are admitted; and one that is refused with a sentence."""

    rules: Sequence[tuple[Scope, str, str, str]]
    sentence: str
    prompt: str = LAMP
    admitted_prompts: Sequence[str] = ()
    ceilings: dict[str, str] = field(default_factory=dict)
    status: int = 403


CASES = {
    "steps": Case(
        [("guild", "", "steps", "30")],
        f"This asks for 50 steps, and at most 30 are allowed here: add --steps 30. {EVERYBODY}",
        "a lamp --steps 50",
        ["a lamp --steps 30"],
        status=422,
    ),
    "evaluations": Case(
        [("guild", "", "evaluations", "40")],
        f"This asks for 100 evaluations, and at most 40 are allowed here: add --evaluations 40. {EVERYBODY}",
        "a lamp",
        ["a lamp --evaluations 40", "a lamp --draft"],
        status=422,
    ),
    "count": Case(
        [("role", "8", "count", "2")],
        "This asks for 4 pictures, and at most 2 are allowed here: add --count 2. This server's admins set that for a "
        "role of yours.",
        admitted_prompts=["a lamp --count 2"],
        status=422,
    ),
    "count of a walk": Case(
        [("guild", "", "count", "3")],
        "A walk is drawn up to four pictures at a time, and at most 3 a job are allowed here: none can be made. "
        f"{EVERYBODY}",
        "a lamp --walk a torch --count 3",
        status=422,
    ),
    "pixels": Case(
        [("channel", "7", "pixels", "64x64")],
        "This would be 80x48, and at most 60x60 is allowed here. This bot's operator set that for this server.",
        "a lamp --ar 5:3",
        ceilings={"pixels": "60x60"},
        status=422,
    ),
    "models": Case(
        [("user", "discord:5", "models", "large, other")],
        "The model embedded is not allowed here; allowed: large, other. This server's admins set that for you.",
    ),
    "samplers": Case(
        [("guild", "", "samplers", "ddim, euler")],
        f"The sampler ddpm is not allowed here; allowed: ddim, euler. {EVERYBODY}",
        admitted_prompts=["a lamp --sampler euler"],
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
        [],
        "This bot's operator has blocked this server: nothing can be made until they take that back.",
        ceilings={"blocked": "on"},
    ),
    "speeds": Case(
        [("guild", "", "speeds", "fast")],
        f"The relaxed speed is not allowed here; allowed: fast. {EVERYBODY}",
        f"{LAMP} --relax",
        [LAMP],
    ),
    "queued": Case(
        [("guild", "", "queued", "1"), ("role", "9", "running", "1")],
        f"Your queue is full: at most 1 of yours runs at once and 1 more wait; you have 0 running and 2 waiting. "
        f"You can submit again when a worker comes. {EVERYBODY}",
        admitted_prompts=[LAMP, LAMP],
        status=429,
    ),
    "together_queued": Case(
        [("guild", "", "together_queued", "2")],
        "This server's queue is full: 2 of 2 waiting jobs are taken. You can submit again when a worker comes. "
        f"{EVERYBODY}",
        admitted_prompts=[LAMP, LAMP],
        status=429,
    ),
    "channel's queue": Case(
        [("channel", "7", "together_queued", "3"), ("guild", "", "together_queued", "9")],
        "This channel's queue is full: 1 of 3 waiting jobs are taken, and this makes 3 jobs. You can submit again when "
        "a worker comes. This server's admins set that for this channel.",
        "a {red,blue,green} lamp",
        [LAMP],
        status=429,
    ),
    "cost_day": Case(
        [("role", "9", "cost_day", "50")],
        "Your day's limit is reached: 33 s of 50 s device time used in the last 24 hours, and this needs 33 s of "
        f"device time. Enough quota is available again in about 1 d. This server's admins set that for a role of "
        f"yours. {HINT}",
        admitted_prompts=[LAMP],
        status=429,
    ),
    "relaxed_day": Case(
        [("guild", "", "relaxed_day", "50")],
        "Your relaxed day's limit is reached: 33 s of 50 s device time used in the last 24 hours, and this needs 33 s "
        f"of device time. Enough quota is available again in about 1 d. {EVERYBODY}",
        prompt=f"{LAMP} --relax",
        admitted_prompts=[LAMP, f"{LAMP} --relax"],
        status=429,
    ),
    "cost_month": Case(
        [("guild", "", "cost_month", "60"), ("guild", "", "speeds", "fast")],
        "Your month's limit is reached: 33 s of 1 min device time used in the last 30 days, and this needs 33 s of "
        f"device time. Enough quota is available again in about 30 d. {EVERYBODY}",
        admitted_prompts=[LAMP],
        status=429,
    ),
    "too large": Case(
        [("guild", "", "cost_day", "10")],
        "Too large: this needs 33 s of device time, and your limit is 10 s in 24 hours. Fewer --steps cost less. "
        f"{EVERYBODY} {HINT}",
        admitted_prompts=["a lamp --steps 100"],
        status=429,
    ),
    "a budget": Case(
        [("guild", "", "together_cost_day", "1 h")],
        "This server's day's limit is reached: 33 s of 40 s device time used in the last 24 hours, and this needs 33 s "
        f"of device time. Enough quota is available again in about 1 d. This bot's operator set that for this "
        f"server. {HINT}",
        admitted_prompts=[LAMP],
        ceilings={"together_cost_day": "40"},
        status=429,
    ),
}


async def refusal(awaitable) -> UserError:
    with pytest.raises(UserError) as error:
        await awaitable
    return error.value


@pytest.mark.asyncio
async def test_every_refusal_names_the_limit_its_use_when_it_frees_and_who_set_it(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    services = app.services
    for name, case in CASES.items():
        for scope, subject, setting, text in case.rules:
            await rule_admin.set_rule(replace(OLGA, guild=name), scope, subject, setting, text)
        if case.ceilings:
            await rule_admin.set_ceilings(HERA, name, **case.ceilings)
        asker = replace(BOB, guild=name, id="discord:5")
        for text in case.admitted_prompts:
            await services.jobs.imagine(text, asker, HERE)
        error = await refusal(services.jobs.imagine(case.prompt, asker, HERE))
        assert (name, error.sentence) == (name, case.sentence)
        assert (name, error.status) == (name, case.status)
        for view in await services.job_views.load_queue(name):
            await services.job_control.cancel(view.id, asker)


@pytest.mark.asyncio
async def test_a_refused_job_is_admitted_at_the_time_that_the_refusal_names(harness):
    moment = 1_800_000_000.0
    app = await harness.open_app(clock=lambda: moment)
    rule_admin = app.services.rule_admin
    services = app.services
    await rule_admin.set_rule(OLGA, "guild", "", "together_cost_day", "80")
    for n in range(2):
        (accepted,) = await services.jobs.imagine(LAMP, replace(BOB, id=f"discord:{n}"), HERE)
        await app.store.end_job("cancel", accepted.job, moment, None)
        moment += 3600
    error = await refusal(services.jobs.imagine(LAMP, BOB, HERE))
    assert "1 min 5 s of 1 min 20 s" in error.sentence
    assert "Enough quota is available again in about 22 h" in error.sentence
    assert error.retry_at == 1_800_000_000.0 + 86_400
    moment = error.retry_at
    await services.jobs.imagine(LAMP, BOB, HERE)


@pytest.mark.asyncio
async def test_a_refusal_says_that_the_operator_closed_or_blocked(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    hera_everywhere = replace(HERA, guild=EVERYWHERE)

    async def sentence() -> str:
        return (await refusal(app.services.jobs.imagine(LAMP, BOB, HERE))).sentence

    await rule_admin.set_rule(hera_everywhere, "user", BOB.id, "blocked", "on")
    assert await sentence() == "This bot's operator has blocked you: nothing can be made until they take that back."
    await rule_admin.close_guild(HERA, "abuse")
    assert await sentence() == (
        "This server accepts no new jobs: abuse (closed by Hera). It stays closed until this bot's operator opens it."
    )
    await rule_admin.close_guild(hera_everywhere, "moving")
    assert await sentence() == (
        "This bot accepts no new jobs: moving (closed by Hera). It stays closed until this bot's operator opens it."
    )


@pytest.mark.slow
@pytest.mark.asyncio
async def test_of_several_limits_the_refusal_names_the_one_that_holds_longest(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    for setting, text in (("cost_day", "40"), ("cost_month", "50"), ("queued", "0"), ("running", "1")):
        await rule_admin.set_rule(OLGA, "guild", "", setting, text)
    (accepted,) = await app.services.jobs.imagine(LAMP, BOB, HERE)
    await app.store.end_job("cancel", accepted.job, 1.0, None)
    assert "Your month's limit" in (await refusal(app.services.jobs.imagine(LAMP, BOB, HERE))).sentence
    assert "2 jobs are too many" in (await refusal(app.services.jobs.imagine("{a,b} lamp", BOB, HERE))).sentence


@pytest.mark.asyncio
async def test_defaults_and_global_ceilings_count_over_all_servers(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    services = app.services
    await rule_admin.set_ceilings(replace(HERA, guild=EVERYWHERE), EVERYWHERE, cost_day="80")
    await rule_admin.set_rule(replace(OLGA, guild="mine"), "guild", "", "cost_day", "unlimited")
    for guild in ("mine", "other"):
        await services.jobs.imagine(LAMP, replace(BOB, guild=guild), HERE)
    error = await refusal(services.jobs.imagine(LAMP, replace(BOB, guild="mine"), HERE))
    assert "1 min 5 s of 1 min 20 s device time used" in error.sentence
    assert "This bot's operator set that, over all servers." in error.sentence
    await rule_admin.set_ceilings(replace(HERA, guild=EVERYWHERE), EVERYWHERE, cost_day=None)
    for n in range(8):
        await services.jobs.imagine(LAMP, replace(BOB, guild=f"g{n}"), HERE)
    assert "10 waiting" in (await refusal(services.jobs.imagine(LAMP, replace(BOB, guild="another"), HERE))).sentence
    await rule_admin.set_rule(replace(OLGA, guild="mine"), "guild", "", "queued", "9")
    await services.jobs.imagine(LAMP, replace(BOB, guild="mine"), HERE)


@pytest.mark.asyncio
async def test_relaxed_jobs_have_a_default_ceiling(harness):
    harness.settings = harness.settings.model_copy(update={"relaxed_day": 50.0})
    app = await harness.open_app()
    await app.services.jobs.imagine(f"{LAMP} --relax", BOB, HERE)
    error = await refusal(app.services.jobs.imagine(f"{LAMP} --relax", BOB, HERE))
    assert error.sentence.startswith("Your relaxed day's limit is reached: 33 s of 50 s device time")
    assert Limits().relaxed_day == 4 * 3600
    lines = (await app.services.rule_admin.report_quotas(BOB)).lines
    assert [line.used for line in lines if line.setting == "relaxed_day"] == [pytest.approx(32.5, abs=1)]


@pytest.mark.asyncio
async def test_relaxed_jobs_use_no_quota_and_weigh_a_quarter(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    services = app.services
    await rule_admin.set_rule(OLGA, "guild", "", "cost_day", "40")
    await services.jobs.imagine(LAMP, BOB, HERE)
    await refusal(services.jobs.imagine(LAMP, BOB, HERE))
    (one,) = await services.jobs.imagine(f"{LAMP} --relax", BOB, HERE)
    await app.services.preferences.set_preference(BOB.id, "speed", "relaxed")
    (second,) = await services.jobs.imagine(LAMP, BOB, HERE)
    for accepted in (one, second):
        record = await app.store.get_job(accepted.job)
        assert (record.tier, record.weight, record.charged) == ("relaxed", 0.25, 0.0)
        assert record.to_job().billing_key.weight == 0.25
    query = "SELECT path, weight FROM accounts WHERE path LIKE 'default/%'"
    rows = await app.store.query(lambda connection: connection.exec_driver_sql(query).all())
    assert {path: weight for path, weight in rows if path.count("/") == 1} == {
        "default/standard": 1.0,
        "default/relaxed": 0.25,
    }
    (line,) = [line for line in (await rule_admin.report_quotas(BOB)).lines if line.setting == "cost_day"]
    assert (line.usage_text, round(line.used)) == ("33 s of 40 s", 32)
    assert line.frees_at is not None
    await rule_admin.set_rule(OLGA, "guild", "", "speeds", "fast")
    assert "day's limit" in (await refusal(services.jobs.imagine(LAMP, BOB, HERE))).sentence, (
        "a rule overrides a preference"
    )
    await rule_admin.set_rule(OLGA, "guild", "", "speeds", "relaxed")
    await app.services.preferences.set_preference(BOB.id, "speed", "fast")
    (third,) = await services.jobs.imagine(LAMP, BOB, HERE)
    assert (await app.store.get_job(third.job)).tier == "relaxed"
    assert any("relaxed" in note for note in third.notes)


@pytest.mark.asyncio
async def test_rules_and_preferences_decide_who_sees_results(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    services = app.services

    async def is_private(text: str = LAMP) -> bool:
        (accepted,) = await services.jobs.imagine(text, BOB, HERE)
        return (await app.store.get_job(accepted.job)).private

    assert not await is_private()
    await app.services.preferences.set_preference(BOB.id, "results", "private")
    assert await is_private()
    await rule_admin.set_rule(OLGA, "guild", "", "results", "public")
    assert (await refusal(is_private())).sentence == (
        f"Results are public here, and you prefer private ones. To take part: /public. {EVERYBODY}"
    )
    await app.services.preferences.set_preference(BOB.id, "results", "public")
    assert not await is_private()
    await rule_admin.set_rule(OLGA, "channel", "7", "results", "private")
    (accepted,) = await services.jobs.imagine(LAMP, BOB, HERE)
    assert (await app.store.get_job(accepted.job)).private
    assert "Results are private here: only you see this one." in accepted.notes
    (accepted,) = await services.jobs.imagine(LAMP, replace(BOB, channel="8"), HERE)
    assert not (await app.store.get_job(accepted.job)).private


@pytest.mark.asyncio
async def test_rules_also_hold_for_buttons(harness, wait_until):
    app = await harness.open_app()
    await harness.start_worker()
    rule_admin = app.services.rule_admin
    services = app.services
    (accepted,) = await services.jobs.imagine(LAMP, BOB, HERE)

    async def all_finished() -> bool:
        return (await services.job_views.load_view(accepted.job)).state == "finished"

    await wait_until(all_finished)
    await rule_admin.set_rule(OLGA, "guild", "", "commands", "imagine, upscale")
    assert "You may not use vary here" in (await refusal(services.variations.vary(accepted.job, 0, BOB, HERE))).sentence
    assert (
        "You may not use reroll here" in (await refusal(services.variations.reroll(accepted.job, BOB, HERE))).sentence
    )
    await services.variations.upscale(accepted.job, 0, BOB, HERE)


@pytest.mark.asyncio
async def test_a_repeated_request_is_answered_although_the_rules_changed(harness):
    app = await harness.open_app()
    (one,) = await app.services.jobs.imagine(LAMP, BOB, HERE, key="k")
    await app.services.rule_admin.close_guild(OLGA, "tea")
    (retry,) = await app.services.jobs.imagine(LAMP, BOB, HERE, key="k")
    assert retry.job == one.job


@pytest.mark.asyncio
async def test_concurrent_requests_do_not_exceed_the_servers_queue_limit(harness):
    app = await harness.open_app()
    await app.services.rule_admin.set_rule(OLGA, "guild", "", "together_queued", "5")

    async def request_job(n: int) -> int:
        try:
            await app.services.jobs.imagine(LAMP, replace(BOB, id=f"discord:{n}"), HERE)
        except UserError:
            return 0
        return 1

    assert sum(await asyncio.gather(*(request_job(n) for n in range(15)))) == 5


# Running at once


@pytest.mark.asyncio
async def test_each_members_own_rules_limit_their_running_jobs(harness, wait_until):
    app = await harness.open_app()
    worker, _ = await harness.start_worker(rows=1000)
    worker.run_gate.clear()
    rule_admin = app.services.rule_admin
    await rule_admin.set_rule(OLGA, "guild", "", "running", "1")
    await rule_admin.set_rule(OLGA, "role", "9", "running", "5")
    await rule_admin.set_ceilings(replace(HERA, guild=EVERYWHERE), EVERYWHERE, running="4")
    other_member = replace(BOB, id="discord:6", roles=())
    for member in (BOB, other_member):
        await app.services.jobs.imagine("a {a,b,c,d,e,f} lamp", member, HERE)
    await wait_until(lambda: len(worker.started_jobs) == 5)
    await app.queue.dispatcher.run_round()
    queue = await app.services.job_views.load_queue("g")
    running_members = [view.member_id for view in queue if view.state != "queued"]
    assert sorted(running_members) == ["discord:5"] * 4 + ["discord:6"]
    assert queue[-1].wait_reason in (
        "1 of this member's run already: one of them must end first.",
        "4 of this member's run already: one of them must end first.",
    )


@pytest.mark.asyncio
async def test_a_server_and_a_channel_limit_the_running_jobs_of_all_members(harness, wait_until):
    app = await harness.open_app()
    worker, _ = await harness.start_worker(rows=1000)
    worker.run_gate.clear()
    rule_admin = app.services.rule_admin
    await rule_admin.set_rule(OLGA, "guild", "", "together_running", "3")
    await rule_admin.set_rule(OLGA, "channel", "7", "together_running", "1")
    for n in range(3):
        member = replace(BOB, id=f"discord:{n}")
        await app.services.jobs.imagine("a {a,b} lamp", member, HERE)
        await app.services.jobs.imagine("a {a,b} lamp", replace(member, channel="8"), HERE)
    (free_job,) = await app.services.jobs.imagine(LAMP, replace(BOB, guild="other"), HERE)
    await wait_until(lambda: len(worker.started_jobs) == 4)
    await app.queue.dispatcher.run_round()
    dispatched_views = [view for view in await app.services.job_views.load_queue() if view.state != "queued"]
    assert sorted(view.channel for view in dispatched_views if view.guild == "g") == ["7", "8", "8"]
    assert free_job.job in [view.id for view in dispatched_views]
    waiting_views = [view for view in await app.services.job_views.load_queue("g") if view.state == "queued"]
    assert {view.wait_reason for view in waiting_views} - {
        "3 of this member's run already: one of them must end first."
    } == {"3 of this server's run already: one of them must end first."}
    await rule_admin.set_rule(OLGA, "channel", "8", "together_running", "2")
    await rule_admin.set_rule(OLGA, "guild", "", "together_running", "9")  # last: it lets jobs of both channels start
    await app.queue.dispatcher.run_round()
    waiting_views = [view for view in await app.services.job_views.load_queue("g") if view.state == "queued"]
    assert {view.wait_reason for view in waiting_views} - {
        "3 of this member's run already: one of them must end first."
    } <= {
        "1 of this channel's run already: one of them must end first.",
        "2 of this channel's run already: one of them must end first.",
    }
    await rule_admin.unset_rule(OLGA, "channel", "8", "together_running")
    worker.run_gate.set()

    async def all_finished() -> bool:
        return all(view.state == "finished" for view in await app.services.job_views.load_recent("g"))

    await wait_until(all_finished, 30)


@pytest.mark.asyncio
async def test_waiting_jobs_of_a_closed_server_do_not_start(harness, wait_until):
    app = await harness.open_app()
    (accepted,) = await app.services.jobs.imagine(LAMP, BOB, HERE)
    (free_job,) = await app.services.jobs.imagine(LAMP, replace(BOB, guild="other"), HERE)

    async def fail_to_cancel(_job: str) -> str:
        raise ConnectionError

    rule_admin = RuleAdmin(app.store, fail_to_cancel, limits=Limits())
    with pytest.raises(ConnectionError):
        await rule_admin.close_guild(OLGA, "tea")
    worker, _ = await harness.start_worker()
    await wait_until(lambda: free_job.job in worker.started_jobs)
    await app.queue.dispatcher.run_round()
    assert (
        await app.services.job_views.load_view(accepted.job)
    ).wait_reason == "This server starts no jobs at present."
    await app.services.rule_admin.open_guild(OLGA)
    await wait_until(lambda: accepted.job in worker.started_jobs)


@pytest.mark.asyncio
async def test_running_jobs_in_one_server_use_no_queue_places_in_another(harness):
    app = await harness.open_app()
    rule_admin = app.services.rule_admin
    bob_elsewhere = replace(BOB, guild="h")
    await rule_admin.set_rule(OLGA, "guild", "", "running", "3")
    await rule_admin.set_rule(replace(OLGA, guild="h"), "guild", "", "running", "1")
    for _ in range(3):
        await app.services.jobs.imagine(LAMP, BOB, HERE)
        assert (
            await app.store.pick_job(PickRequest("default", ("embedded",), member_limit=9), 99, 1.0, time.time())
            is not None
        )
    for _ in range(5):
        await app.services.jobs.imagine(LAMP, BOB, HERE)
    for _ in range(2):
        await app.services.jobs.imagine(LAMP, bob_elsewhere, HERE)
    with pytest.raises(UserError, match="you have 3 running and 7 waiting"):
        await app.services.jobs.imagine(LAMP, bob_elsewhere, HERE)


@pytest.mark.asyncio
async def test_concurrent_preferences_are_all_kept(store):
    preferences = Preferences(store)
    await asyncio.gather(
        preferences.set_preference("ann", "speed", "relaxed"),
        preferences.set_preference("ann", "remix", "on"),
        preferences.set_preference("ann", "suffix", "white"),
    )
    preference = await preferences.load_preference("ann")
    assert (preference.speed, preference.remix, preference.suffix) == ("relaxed", True, "white")
    assert (await preferences.set_preference("ann", "suffix", "")).suffix == ""
