"""Administration over a real store: permissions, the log of changes, undo and the kill switch."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ulid import ULID

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.policy.limits import DAY_SECONDS, Limits
from bot.policy.rules import EVERYWHERE, RuleChange, Scope
from bot.services.rule_admin import RuleAdmin
from bot.store import DatabaseUnavailable, NewJob, Store
from bot.store.jobs import queries
from bot.store.rules import MAX_CHANGES
from engine.contract import Concept, Recipe

NOW = 1_800_000_000.0
ANN = Member("discord:1", "Ann", "g", is_admin=True)
OWNER = Member("discord:2", "Olga", "g", is_admin=True, is_owner=True)
OPERATOR = Member("discord:3", "Hera", "g", is_operator=True)
MOD = Member("discord:4", "Mo", "g", is_moderator=True)
BOB = Member("discord:5", "Bob", "g", roles=("9",), channel="7")


def draft(member: Member) -> NewJob:
    recipe = Recipe(
        concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
        height=64, dtype="float32",
    )  # fmt: skip
    return NewJob(
        id=str(ULID()), action="imagine", prompt="a lamp", notes=(), task=recipe, member=member,
        destination=Destination("web", {}), pool="default", model="embedded", cost=10.0, created=NOW, deadline=NOW + 60,
    )  # fmt: skip


async def refuse_to_cancel(_job: str) -> str:
    raise AssertionError("this test has no jobs to cancel")


def administration(store: Store) -> RuleAdmin:
    return RuleAdmin(store, refuse_to_cancel, limits=Limits(), clock=lambda: NOW)


async def refusal(awaited) -> UserError:
    with pytest.raises(UserError) as refused:
        await awaited
    return refused.value


@pytest.mark.asyncio
async def test_a_rule_is_set_explained_and_unset(store):
    desk = administration(store)
    first = await desk.set_rule(ANN, "guild", "", "cost_day", "30 min")
    assert (first.what, first.actor, first.actor_name, first.at) == ("set", "discord:1", "Ann", NOW)
    await desk.set_rule(ANN, "role", "9", "cost_day", "1 h")
    await desk.set_ceilings(OPERATOR, "g", cost_day="2 h")
    (found,) = await desk.explain("g", BOB, "cost day", {"9": "@artists"})
    assert (found.setting, found.value, found.used) == ("cost_day", "1 h", "0 s of 1 h")
    assert found.sentence == (
        "cost_day is 1 h: the role's rule for @artists decides, over the server's 30 min; this bot's operator allows "
        "at most 2 h here."
    )
    assert (await desk.effective_rules(BOB)).cost_day == 3600
    assert (await desk.effective_rules(replace(BOB, guild="elsewhere"))).cost_day == 1800
    await desk.unset_rule(ANN, "role", "9", "cost_day")
    decides = (await desk.effective_rules(BOB)).deciding_rules["cost_day"]
    assert decides is not None
    assert decides.scope == "guild"
    assert [change.what for change in await desk.list_changes("g")] == ["unset", "budget", "set", "set"]
    assert await desk.list_changes("elsewhere") == []


@pytest.mark.asyncio
async def test_every_setting_is_explained(store):
    found = await administration(store).explain("g", BOB)
    assert all(one.sentence.startswith(f"{one.setting} is {one.value}: ") for one in found)
    assert len(found) == 24


@pytest.mark.asyncio
async def test_of_several_limits_in_force_the_one_with_the_least_left_is_explained(store):
    desk = administration(store)
    await desk.set_rule(ANN, "channel", "7", "together_cost_day", "1 h")
    await desk.set_rule(ANN, "guild", "", "together_cost_day", "2 h")
    lamps = [replace(draft(replace(BOB, id=f"discord:{n}", channel="8")), cost=3595.0) for n in range(2)]
    await store.admit_jobs(lamps, None, lambda drafts, _ledger: drafts, NOW)
    (found,) = await desk.explain("g", BOB, "together_cost_day")
    assert (found.value, found.used, found.frees) == ("2 h", "2 h of 2 h", NOW + DAY_SECONDS)
    assert found.sentence == (
        "together_cost_day is 2 h: the server's rule decides, as it has the least left; "
        "also in force is channel 7's 1 h."
    )
    await desk.set_rule(ANN, "guild", "", "cost_day", "3 h")
    await desk.set_rule(replace(OPERATOR, guild=EVERYWHERE), "house", "", "cost_day", "2 h")
    (found,) = await desk.explain("g", replace(BOB, id="discord:0"), "cost_day")
    assert (found.value, found.used) == ("2 h", "59 min 55 s of 2 h")
    assert found.sentence == (
        "cost_day is 2 h: this bot's operator decides, for all servers, as it has the least left; "
        "also in force is the server's 3 h."
    )


@pytest.mark.asyncio
async def test_the_explanation_names_a_members_own_ceiling_instead_of_the_general_one(store):
    desk, everywhere = administration(store), replace(OPERATOR, guild=EVERYWHERE)
    await desk.set_rule(everywhere, "house", "", "cost_day", "30 s")
    await desk.set_rule(everywhere, "user", "discord:5", "cost_day", "2 min")
    await desk.set_rule(ANN, "guild", "", "cost_day", "1 min")
    (found,) = await desk.explain("g", BOB, "cost_day")
    assert found.sentence == (
        "cost_day is 1 min: the server's rule decides; this bot's operator allows at most 2 min over all servers."
    )


@pytest.mark.asyncio
async def test_lists_that_add_up_are_explained_as_a_sum(store):
    desk, bob = administration(store), replace(BOB, roles=("1", "2"))
    await desk.set_rule(ANN, "role", "1", "samplers", "ddpm")
    await desk.set_rule(ANN, "role", "2", "samplers", "euler")
    await desk.set_rule(ANN, "guild", "", "samplers", "ddim")
    await desk.set_rule(ANN, "guild", "", "words", "a1")
    (alone,) = await desk.explain("g", bob, "words")
    assert alone.sentence == "words is a1: the server's rule decides."
    await desk.set_ceilings(OPERATOR, "g", words="b1")
    samplers, words = [(await desk.explain("g", bob, name))[0] for name in ("samplers", "words")]
    assert samplers.sentence == (
        "samplers is ddpm, euler: the rules for role 1 and role 2 add up, over the server's ddim."
    )
    assert words.sentence == "words is a1, b1: the lists of this server and of this bot's operator add up."


@pytest.mark.asyncio
async def test_nobody_writes_settings_above_their_role(store):
    desk = administration(store)
    for member in (BOB, MOD):
        for awaited in (
            desk.set_rule(member, "guild", "", "running", "1"), desk.unset_rule(member, "guild", "", "running"),
            desk.apply_preset(member, "contest"), desk.import_yaml(member, "server: {running: 1}"),
            desk.close_guild(member, "x"), desk.open_guild(member), desk.set_ceilings(member, "g", running="1"),
        ):  # fmt: skip
            assert (await refusal(awaited)).status == 403
    for awaited in (
        desk.set_rule(ANN, "house", "", "running", "1"), desk.set_ceilings(ANN, "g", running="1"),
        desk.close_guild(ANN, "x"), desk.open_guild(ANN),
        desk.set_rule(replace(OWNER, guild=EVERYWHERE), "house", "", "running", "1"),
        desk.close_guild(replace(OWNER, guild=EVERYWHERE), "all"), desk.set_ceilings(OWNER, "g", running="1"),
    ):  # fmt: skip
        assert (await refusal(awaited)).status == 403
    assert await desk.list_rules("g") == await desk.list_rules(EVERYWHERE) == []
    assert await desk.list_changes("g") == []


@pytest.mark.asyncio
async def test_a_wrong_value_writes_nothing(store):
    desk = administration(store)
    wrong: list[tuple[Scope, str, str, str]] = [
        ("guild", "", "runing", "1"), ("guild", "", "running", "0"), ("user", "", "running", "1"),
        ("guild", "", "closed", "x"), ("guild", "7", "running", "1"), ("user", "u", "words", "x"),
    ]  # fmt: skip
    for scope, subject, name, text in wrong:
        assert (await refusal(desk.set_rule(ANN, scope, subject, name, text))).status == 422
    assert "is not set there" in (await refusal(desk.unset_rule(ANN, "guild", "", "running"))).sentence
    await desk.set_rule(ANN, "guild", "", "running", "2")
    assert "running is 2 there already" in (await refusal(desk.set_rule(ANN, "guild", "", "running", "2"))).sentence
    assert len(await desk.list_changes("g")) == 1


@pytest.mark.asyncio
async def test_undo_reverts_the_newest_change_and_then_the_one_before(store):
    desk = administration(store)
    await desk.set_rule(ANN, "guild", "", "running", "1")
    await desk.apply_preset(ANN, "large server")
    back = await desk.undo_change(ANN)
    assert (back.what, back.undoes) == ("undo", 2)
    assert [(rule.setting, rule.value) for rule in await desk.list_rules("g")] == [("running", 1)]
    await desk.undo_change(ANN)
    assert await desk.list_rules("g") == []
    assert "There is nothing to undo." in (await refusal(desk.undo_change(ANN))).sentence
    assert "Change 2 is undone already, by change 3." in (await refusal(desk.undo_change(ANN, 2))).sentence
    await desk.undo_change(ANN, 3)  # an undo can be undone, by its number
    assert len(await desk.list_rules("g")) == 9, "the preset found running at its own value already"


@pytest.mark.asyncio
async def test_a_change_is_not_undone_after_its_setting_changed_again(store):
    desk = administration(store)
    await desk.set_rule(ANN, "guild", "", "running", "1")
    await desk.set_rule(ANN, "guild", "", "running", "2")
    assert (await refusal(desk.undo_change(ANN, 1))).sentence == (
        "Change 1 cannot be undone: running was changed again since by change 2. Undo that first, or set it by hand."
    )
    assert "There is no change 99 here." in (await refusal(desk.undo_change(ANN, 99))).sentence
    assert (await refusal(desk.undo_change(replace(ANN, guild="other"), 1))).status == 404


@pytest.mark.asyncio
async def test_undo_needs_the_permission_of_the_change(store):
    desk = administration(store)
    await desk.set_rule(ANN, "guild", "", "running", "1")
    budget = await desk.set_ceilings(OPERATOR, "g", running="5", cost_day="1h")
    await desk.close_guild(OWNER, "holidays")
    assert (await refusal(desk.undo_change(ANN, budget.number))).status == 403
    assert (await refusal(desk.undo_change(ANN, budget.number + 1))).status == 403
    assert (await desk.undo_change(ANN)).undoes == 1, "the newest change that an admin may undo"
    await desk.undo_change(OWNER)
    await desk.undo_change(OPERATOR, budget.number)
    assert await desk.list_rules("g") == []


@pytest.mark.asyncio
async def test_an_import_is_one_change_and_all_or_nothing(store):
    desk = administration(store)
    await desk.set_rule(ANN, "user", "discord:5", "blocked", "on")
    await desk.set_ceilings(OPERATOR, "g", cost_day="1 h")
    await desk.close_guild(OWNER, "tea")
    text = await desk.export_yaml("g")
    assert "tea" not in text
    assert "cost_day" not in text
    assert (await refusal(desk.import_yaml(ANN, text))).sentence == "The rules are the same already: nothing to import."
    await refusal(desk.import_yaml(ANN, "server:\n  running: 3\n  steps: 0"))
    change = await desk.import_yaml(ANN, "server:\n  running: 3\n  steps: 50\n")
    assert {step.setting for step in change.steps} == {"running", "steps", "blocked"}
    assert {rule.setting for rule in await desk.list_rules("g")} == {"running", "steps", "closed", "cost_day"}
    await desk.undo_change(ANN, change.number)
    assert await desk.export_yaml("g") == text


@pytest.mark.asyncio
async def test_the_operator_sets_ceilings_and_rules_for_all_servers(store):
    desk, everywhere = administration(store), replace(OPERATOR, guild=EVERYWHERE)
    await desk.set_rule(everywhere, "house", "", "cost_day", "10 min")
    await desk.set_rule(everywhere, "user", "discord:5", "blocked", "on")
    await desk.set_rule(ANN, "guild", "", "cost_day", "5 h")
    terms = await desk.effective_rules(BOB)
    assert (terms.cost_day, terms.blocked) == (600, True)
    assert (await refusal(desk.set_rule(everywhere, "guild", "", "running", "1"))).status == 422
    assert (await refusal(desk.set_ceilings(OPERATOR, "g", cost_day=None))).sentence == "All of that is set already."
    await desk.set_ceilings(OPERATOR, "g", together_cost_day="1 h")
    await desk.set_ceilings(OPERATOR, "g", together_cost_day=None, running="1")
    assert [rule.setting for rule in await desk.list_rules("g") if rule.scope == "house"] == ["running"]


@pytest.mark.asyncio
async def test_ids_are_accepted_as_members_write_them(store):
    desk, ann = administration(store), replace(ANN, guild="discord:1")
    subjects: list[tuple[Scope, str, str]] = [
        ("user", "789", "running"), ("user", "<@!789>", "queued"), ("user", "discord:789", "steps"),
        ("role", "<@&5>", "running"), ("channel", " <#6> ", "running"),
    ]  # fmt: skip
    for scope, typed, name in subjects:
        await desk.set_rule(ann, scope, typed, name, "7")
    found = {(rule.scope, rule.subject) for rule in await desk.list_rules("discord:1")}
    assert found == {("user", "discord:789"), ("role", "5"), ("channel", "6")}
    await desk.unset_rule(ann, "user", "789", "steps")
    await desk.import_yaml(ann, "users: {789: {count: 1}}")
    assert [rule.key for rule in await desk.list_rules("discord:1")] == [("user", "discord:789", "count")]
    await desk.set_rule(replace(ANN, guild="local"), "user", "local:ann", "running", "1")


@pytest.mark.asyncio
async def test_a_server_closes_with_a_reason_and_opens_again(store):
    desk = administration(store)
    assert (await refusal(desk.open_guild(OWNER))).sentence == "It is open already."
    assert await desk.close_guild(OWNER, "too much\nnoise") == 0
    assert (await desk.effective_rules(BOB)).closed == "too much noise (closed by Olga)"
    await desk.open_guild(OWNER)
    assert (await desk.effective_rules(BOB)).closed == ""
    await desk.close_guild(OPERATOR, "abuse")
    assert "only they can open it" in (await refusal(desk.open_guild(OWNER))).sentence
    await desk.open_guild(OPERATOR)
    await desk.close_guild(replace(OPERATOR, guild=EVERYWHERE), "moving")
    assert (await desk.effective_rules(replace(BOB, guild="any"))).closed == "moving (closed by Hera)"


@pytest.mark.asyncio
async def test_an_interrupted_close_takes_effect_and_a_second_one_finishes_it(store):
    lamps = [draft(replace(BOB, id=f"discord:{n}")) for n in range(3)]
    await store.admit_jobs(lamps, None, lambda drafts, _ledger: drafts, NOW)
    broken = True

    async def cancel(job: str) -> str:
        if broken and job == lamps[1].id:
            raise DatabaseUnavailable("away")
        await store.request_cancel(job, NOW)
        return ""

    desk = RuleAdmin(store, cancel, limits=Limits(), clock=lambda: NOW)
    with pytest.raises(DatabaseUnavailable):
        await desk.close_guild(OWNER, "noise")
    assert (await desk.effective_rules(BOB)).closed
    broken = False
    assert await desk.close_guild(OWNER, "noise") == 2
    assert await store.query(queries.list_open_ids, "g") == []
    assert len(await desk.list_changes("g")) == 1


@pytest.mark.asyncio
async def test_rules_also_hold_for_commands_that_make_no_job(store):
    desk = administration(store)
    await desk.set_rule(ANN, "guild", "", "commands", "imagine, queue")
    await desk.set_rule(ANN, "user", "discord:6", "blocked", "on")
    await desk.close_guild(OWNER, "tea")
    await desk.check_command(BOB, "queue")
    for always in ("cancel", "report", "delete", "help", "info", "mine", "prefer"):
        await desk.check_command(replace(BOB, id="discord:6"), always)
    assert (await refusal(desk.check_command(BOB, "film"))).sentence == (
        "You may not use film here; allowed: imagine, queue. This server's admins set that for everybody here."
    )
    assert "You are blocked" in (await refusal(desk.check_command(replace(BOB, id="discord:6"), "queue"))).sentence


@pytest.mark.asyncio
async def test_only_old_changes_of_the_same_server_are_deleted(store):
    desk = administration(store)
    other = await desk.set_rule(replace(ANN, guild="h"), "guild", "", "running", "5")
    for n in range(MAX_CHANGES + 3):
        await desk.set_rule(ANN, "guild", "", "queued", str(n))
    assert len(await desk.list_changes("g", 10_000)) == MAX_CHANGES
    assert [change.number for change in await desk.list_changes("h")] == [other.number]


@pytest.mark.asyncio
async def test_concurrent_changes_by_admins_are_all_kept(store):
    desk = administration(store)
    await asyncio.gather(*(desk.set_rule(ANN, "user", f"discord:{n}", "running", "2") for n in range(40)))
    assert len(await desk.list_rules("g")) == 40
    assert len({change.number for change in await desk.list_changes("g", 100)}) == 40


@pytest.mark.asyncio
async def test_the_kill_switch_cancels_open_jobs_refunds_them_and_admits_no_more(workplace, until, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    desk, services = house.services.rule_admin, house.services
    await desk.set_rule(OWNER, "user", "discord:3", "running", "1")
    jobs: list[str] = []
    for n in (0, 1, 2, 3, 3):  # the second of user 3 waits for the first
        jobs.append((await services.jobs.imagine("a lamp", replace(BOB, id=f"discord:{n}"), here))[0].job)
    (elsewhere,) = await services.jobs.imagine("a lamp", replace(BOB, guild="h"), here)

    async def all_run() -> bool:
        """A job cancelled between dispatch and first step is charged nothing: wait until none is there."""
        found = await house.store.query(queries.get_jobs, jobs)
        return all(found[job].state == "running" for job in jobs[:-1]) and found[jobs[-1]].state == "queued"

    await until(all_run)
    assert await desk.close_guild(OWNER, "enough") == 5
    refused = await refusal(services.jobs.imagine("a lamp", BOB, here))
    assert refused.status == 403
    assert refused.sentence == (
        "This server is closed for new pictures: enough (closed by Olga). It waits for the server's owner to open it."
    )

    async def all_cancelled() -> bool:
        found = await house.store.query(queries.get_jobs, jobs)
        return all(record.state == "cancelled" for record in found.values())

    await until(all_cancelled)
    found = await house.store.query(queries.get_jobs, jobs)
    assert [found[job].charged for job in jobs] == [found[job].cost / 4 for job in jobs[:-1]] + [0.0]
    assert (await house.store.get_job(elsewhere.job)).state in ("queued", "sent", "running")
    await desk.open_guild(OWNER)
    await services.jobs.imagine("a lamp", BOB, here)


TEXTS = {"running": ("1", "2", "3"), "cost_day": ("10", "20", "unlimited"), "results": ("public", "private")}


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(sorted(TEXTS)), st.integers(0, 2), st.booleans()), max_size=12))
def test_undoing_every_change_in_turn_leaves_no_rules(plan: list[tuple[str, int, bool]]) -> None:
    async def run(folder: str) -> None:
        store = await Store.open(f"sqlite:///{Path(folder) / 'one.sqlite'}")
        desk = administration(store)
        history: list[tuple[RuleChange, list]] = []
        for name, choice, roles in plan:
            before = await desk.list_rules("g")
            try:
                change = await desk.set_rule(
                    ANN,
                    "role" if roles else "guild",
                    "9" if roles else "",
                    name,
                    TEXTS[name][choice % len(TEXTS[name])],
                )
            except UserError:
                continue
            history.append((change, before))
        for change, before in reversed(history):
            assert (await desk.undo_change(ANN)).undoes == change.number
            assert await desk.list_rules("g") == before
        assert await desk.list_rules("g") == []
        await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(folder))
