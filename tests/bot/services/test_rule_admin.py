"""Rule administration over a real store: permissions, the log of changes, undo and the kill switch."""

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
from bot.policy.rules import EVERYWHERE, SETTINGS, RuleChange, Scope
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
        concepts=(Concept(text="a lamp"),),
        model="embedded",
        sampler="ddim",
        steps=40,
        seed=7,
        guidance=3.0,
        width=64,
        height=64,
        dtype="float32",
    )
    return NewJob(
        id=str(ULID()),
        action="imagine",
        prompt="a lamp",
        notes=(),
        task=recipe,
        member=member,
        destination=Destination("web", {}),
        pool="default",
        model="embedded",
        cost=10.0,
        created=NOW,
        deadline=NOW + 60,
    )


async def refuse_to_cancel(_job: str) -> str:
    raise AssertionError("this test has no jobs to cancel")


def make_rule_admin(store: Store) -> RuleAdmin:
    return RuleAdmin(store, refuse_to_cancel, limits=Limits(), clock=lambda: NOW)


async def refusal(awaitable) -> UserError:
    with pytest.raises(UserError) as error:
        await awaitable
    return error.value


@pytest.mark.asyncio
async def test_a_rule_is_set_explained_and_unset(store):
    rule_admin = make_rule_admin(store)
    first = await rule_admin.set_rule(ANN, "guild", "", "cost_day", "30 min")
    assert (first.action, first.actor, first.actor_name, first.changed_at) == ("set", "discord:1", "Ann", NOW)
    await rule_admin.set_rule(ANN, "role", "9", "cost_day", "1 h")
    await rule_admin.set_ceilings(OPERATOR, "g", cost_day="2 h")
    (explanation,) = await rule_admin.explain("g", BOB, "cost day", {"9": "@artists"})
    assert (explanation.setting, explanation.value, explanation.used) == ("cost_day", "1 h", "0 s of 1 h")
    assert explanation.sentence == (
        "cost_day is 1 h: the role's rule for @artists decides, over the server's 30 min; this bot's operator allows "
        "at most 2 h here."
    )
    assert (await rule_admin.effective_rules(BOB)).cost_day == 3600
    assert (await rule_admin.effective_rules(replace(BOB, guild="elsewhere"))).cost_day == 1800
    await rule_admin.unset_rule(ANN, "role", "9", "cost_day")
    deciding_rule = (await rule_admin.effective_rules(BOB)).deciding_rules["cost_day"]
    assert deciding_rule is not None
    assert deciding_rule.scope == "guild"
    assert [change.action for change in await rule_admin.list_changes("g")] == ["unset", "budget", "set", "set"]
    assert await rule_admin.list_changes("elsewhere") == []


@pytest.mark.asyncio
async def test_every_setting_is_explained(store):
    explanations = await make_rule_admin(store).explain("g", BOB)
    assert all(one.sentence.startswith(f"{one.setting} is {one.value}: ") for one in explanations)
    assert {one.setting for one in explanations} == set(SETTINGS)


@pytest.mark.asyncio
async def test_of_several_limits_in_force_the_one_with_the_least_left_is_explained(store):
    rule_admin = make_rule_admin(store)
    await rule_admin.set_rule(ANN, "channel", "7", "together_cost_day", "1 h")
    await rule_admin.set_rule(ANN, "guild", "", "together_cost_day", "2 h")
    job_drafts = [replace(draft(replace(BOB, id=f"discord:{n}", channel="8")), cost=3595.0) for n in range(2)]
    await store.admit_jobs(job_drafts, None, lambda drafts, _ledger: drafts, NOW)
    (explanation,) = await rule_admin.explain("g", BOB, "together_cost_day")
    assert (explanation.value, explanation.used, explanation.frees_at) == ("2 h", "2 h of 2 h", NOW + DAY_SECONDS)
    assert explanation.sentence == (
        "together_cost_day is 2 h: the server's rule decides, as it has the least left; "
        "also in force is channel 7's 1 h."
    )
    await rule_admin.set_rule(ANN, "guild", "", "cost_day", "3 h")
    await rule_admin.set_rule(replace(OPERATOR, guild=EVERYWHERE), "operator", "", "cost_day", "2 h")
    (explanation,) = await rule_admin.explain("g", replace(BOB, id="discord:0"), "cost_day")
    assert (explanation.value, explanation.used) == ("2 h", "59 min 55 s of 2 h")
    assert explanation.sentence == (
        "cost_day is 2 h: this bot's operator decides, for all servers, as it has the least left; "
        "also in force is the server's 3 h."
    )


@pytest.mark.asyncio
async def test_the_explanation_names_a_members_own_ceiling_instead_of_the_general_one(store):
    rule_admin = make_rule_admin(store)
    operator_everywhere = replace(OPERATOR, guild=EVERYWHERE)
    await rule_admin.set_rule(operator_everywhere, "operator", "", "cost_day", "30 s")
    await rule_admin.set_rule(operator_everywhere, "user", "discord:5", "cost_day", "2 min")
    await rule_admin.set_rule(ANN, "guild", "", "cost_day", "1 min")
    (explanation,) = await rule_admin.explain("g", BOB, "cost_day")
    assert explanation.sentence == (
        "cost_day is 1 min: the server's rule decides; this bot's operator allows at most 2 min over all servers."
    )


@pytest.mark.asyncio
async def test_lists_that_add_up_are_explained_as_a_sum(store):
    rule_admin = make_rule_admin(store)
    bob = replace(BOB, roles=("1", "2"))
    await rule_admin.set_rule(ANN, "role", "1", "samplers", "ddpm")
    await rule_admin.set_rule(ANN, "role", "2", "samplers", "euler")
    await rule_admin.set_rule(ANN, "guild", "", "samplers", "ddim")
    await rule_admin.set_rule(ANN, "guild", "", "words", "a1")
    (single_explanation,) = await rule_admin.explain("g", bob, "words")
    assert single_explanation.sentence == "words is a1: the server's rule decides."
    await rule_admin.set_ceilings(OPERATOR, "g", words="b1")
    samplers, words = [(await rule_admin.explain("g", bob, name))[0] for name in ("samplers", "words")]
    assert samplers.sentence == (
        "samplers is ddpm, euler: the rules for role 1 and role 2 add up, over the server's ddim."
    )
    assert words.sentence == "words is a1, b1: the lists of this server and of this bot's operator add up."


@pytest.mark.asyncio
async def test_nobody_writes_settings_above_their_role(store):
    rule_admin = make_rule_admin(store)
    for member in (BOB, MOD):
        for awaitable in (
            rule_admin.set_rule(member, "guild", "", "running", "1"),
            rule_admin.unset_rule(member, "guild", "", "running"),
            rule_admin.apply_preset(member, "contest"),
            rule_admin.import_yaml(member, "server: {running: 1}"),
            rule_admin.close_guild(member, "x"),
            rule_admin.open_guild(member),
            rule_admin.set_ceilings(member, "g", running="1"),
        ):
            assert (await refusal(awaitable)).status == 403
    for awaitable in (
        rule_admin.set_rule(ANN, "operator", "", "running", "1"),
        rule_admin.set_ceilings(ANN, "g", running="1"),
        rule_admin.close_guild(ANN, "x"),
        rule_admin.open_guild(ANN),
        rule_admin.set_rule(replace(OWNER, guild=EVERYWHERE), "operator", "", "running", "1"),
        rule_admin.close_guild(replace(OWNER, guild=EVERYWHERE), "all"),
        rule_admin.set_ceilings(OWNER, "g", running="1"),
    ):
        assert (await refusal(awaitable)).status == 403
    assert await rule_admin.list_rules("g") == await rule_admin.list_rules(EVERYWHERE) == []
    assert await rule_admin.list_changes("g") == []


@pytest.mark.asyncio
async def test_a_wrong_value_writes_nothing(store):
    rule_admin = make_rule_admin(store)
    invalid_changes: list[tuple[Scope, str, str, str]] = [
        ("guild", "", "runing", "1"),
        ("guild", "", "running", "0"),
        ("user", "", "running", "1"),
        ("guild", "", "closed", "x"),
        ("guild", "7", "running", "1"),
        ("user", "u", "words", "x"),
    ]
    for scope, subject, name, text in invalid_changes:
        assert (await refusal(rule_admin.set_rule(ANN, scope, subject, name, text))).status == 422
    assert "is not set there" in (await refusal(rule_admin.unset_rule(ANN, "guild", "", "running"))).sentence
    await rule_admin.set_rule(ANN, "guild", "", "running", "2")
    assert (
        "running is 2 there already" in (await refusal(rule_admin.set_rule(ANN, "guild", "", "running", "2"))).sentence
    )
    assert len(await rule_admin.list_changes("g")) == 1


@pytest.mark.asyncio
async def test_undo_reverts_the_newest_change_and_then_the_one_before(store):
    rule_admin = make_rule_admin(store)
    await rule_admin.set_rule(ANN, "guild", "", "running", "1")
    await rule_admin.apply_preset(ANN, "large server")
    undone_change = await rule_admin.undo_change(ANN)
    assert (undone_change.action, undone_change.undone_change) == ("undo", 2)
    assert [(rule.setting, rule.value) for rule in await rule_admin.list_rules("g")] == [("running", 1)]
    await rule_admin.undo_change(ANN)
    assert await rule_admin.list_rules("g") == []
    assert "There is nothing to undo." in (await refusal(rule_admin.undo_change(ANN))).sentence
    assert "Change 2 is undone already, by change 3." in (await refusal(rule_admin.undo_change(ANN, 2))).sentence
    await rule_admin.undo_change(ANN, 3)  # an undo can be undone, by its number
    assert len(await rule_admin.list_rules("g")) == 9, "the preset found running at its own value already"


@pytest.mark.asyncio
async def test_a_change_is_not_undone_after_its_setting_changed_again(store):
    rule_admin = make_rule_admin(store)
    await rule_admin.set_rule(ANN, "guild", "", "running", "1")
    await rule_admin.set_rule(ANN, "guild", "", "running", "2")
    assert (await refusal(rule_admin.undo_change(ANN, 1))).sentence == (
        "Change 1 cannot be undone: running was changed again since by change 2. Undo that first, or set it by hand."
    )
    assert "There is no change 99 here." in (await refusal(rule_admin.undo_change(ANN, 99))).sentence
    assert (await refusal(rule_admin.undo_change(replace(ANN, guild="other"), 1))).status == 404


@pytest.mark.asyncio
async def test_undo_needs_the_permission_of_the_change(store):
    rule_admin = make_rule_admin(store)
    await rule_admin.set_rule(ANN, "guild", "", "running", "1")
    budget = await rule_admin.set_ceilings(OPERATOR, "g", running="5", cost_day="1h")
    await rule_admin.close_guild(OWNER, "holidays")
    assert (await refusal(rule_admin.undo_change(ANN, budget.number))).status == 403
    assert (await refusal(rule_admin.undo_change(ANN, budget.number + 1))).status == 403
    assert (await rule_admin.undo_change(ANN)).undone_change == 1, "the newest change that an admin may undo"
    await rule_admin.undo_change(OWNER)
    await rule_admin.undo_change(OPERATOR, budget.number)
    assert await rule_admin.list_rules("g") == []


@pytest.mark.asyncio
async def test_an_import_is_one_change_and_all_or_nothing(store):
    rule_admin = make_rule_admin(store)
    await rule_admin.set_rule(ANN, "user", "discord:5", "blocked", "on")
    await rule_admin.set_ceilings(OPERATOR, "g", cost_day="1 h")
    await rule_admin.close_guild(OWNER, "tea")
    text = await rule_admin.export_yaml("g")
    assert "tea" not in text
    assert "cost_day" not in text
    assert (
        await refusal(rule_admin.import_yaml(ANN, text))
    ).sentence == "The rules are the same already: nothing to import."
    await refusal(rule_admin.import_yaml(ANN, "server:\n  running: 3\n  steps: 0"))
    change = await rule_admin.import_yaml(ANN, "server:\n  running: 3\n  steps: 50\n")
    assert {step.setting for step in change.steps} == {"running", "steps", "blocked"}
    assert {rule.setting for rule in await rule_admin.list_rules("g")} == {"running", "steps", "closed", "cost_day"}
    await rule_admin.undo_change(ANN, change.number)
    assert await rule_admin.export_yaml("g") == text


@pytest.mark.asyncio
async def test_the_operator_sets_ceilings_and_rules_for_all_servers(store):
    rule_admin = make_rule_admin(store)
    operator_everywhere = replace(OPERATOR, guild=EVERYWHERE)
    await rule_admin.set_rule(operator_everywhere, "operator", "", "cost_day", "10 min")
    await rule_admin.set_rule(operator_everywhere, "user", "discord:5", "blocked", "on")
    await rule_admin.set_rule(ANN, "guild", "", "cost_day", "5 h")
    terms = await rule_admin.effective_rules(BOB)
    assert (terms.cost_day, terms.blocked) == (600, True)
    assert (await refusal(rule_admin.set_rule(operator_everywhere, "guild", "", "running", "1"))).status == 422
    assert (
        await refusal(rule_admin.set_ceilings(OPERATOR, "g", cost_day=None))
    ).sentence == "All of that is set already."
    await rule_admin.set_ceilings(OPERATOR, "g", together_cost_day="1 h")
    await rule_admin.set_ceilings(OPERATOR, "g", together_cost_day=None, running="1")
    assert [rule.setting for rule in await rule_admin.list_rules("g") if rule.scope == "operator"] == ["running"]


@pytest.mark.asyncio
async def test_ids_are_accepted_as_members_write_them(store):
    rule_admin = make_rule_admin(store)
    ann = replace(ANN, guild="discord:1")
    subjects: list[tuple[Scope, str, str]] = [
        ("user", "789", "running"),
        ("user", "<@!789>", "queued"),
        ("user", "discord:789", "steps"),
        ("role", "<@&5>", "running"),
        ("channel", " <#6> ", "running"),
    ]
    for scope, typed_subject, name in subjects:
        await rule_admin.set_rule(ann, scope, typed_subject, name, "7")
    stored_subjects = {(rule.scope, rule.subject) for rule in await rule_admin.list_rules("discord:1")}
    assert stored_subjects == {("user", "discord:789"), ("role", "5"), ("channel", "6")}
    await rule_admin.unset_rule(ann, "user", "789", "steps")
    await rule_admin.import_yaml(ann, "users: {789: {count: 1}}")
    assert [rule.key for rule in await rule_admin.list_rules("discord:1")] == [("user", "discord:789", "count")]
    await rule_admin.set_rule(replace(ANN, guild="local"), "user", "local:ann", "running", "1")


@pytest.mark.asyncio
async def test_a_server_closes_with_a_reason_and_opens_again(store):
    rule_admin = make_rule_admin(store)
    assert (await refusal(rule_admin.open_guild(OWNER))).sentence == "It is open already."
    assert await rule_admin.close_guild(OWNER, "too much\nnoise") == 0
    assert (await rule_admin.effective_rules(BOB)).closed == "too much noise (closed by Olga)"
    await rule_admin.open_guild(OWNER)
    assert (await rule_admin.effective_rules(BOB)).closed == ""
    await rule_admin.close_guild(OPERATOR, "abuse")
    assert "only they can open it" in (await refusal(rule_admin.open_guild(OWNER))).sentence
    await rule_admin.open_guild(OPERATOR)
    await rule_admin.close_guild(replace(OPERATOR, guild=EVERYWHERE), "moving")
    assert (await rule_admin.effective_rules(replace(BOB, guild="any"))).closed == "moving (closed by Hera)"


@pytest.mark.asyncio
async def test_an_interrupted_close_takes_effect_and_a_second_one_finishes_it(store):
    job_drafts = [draft(replace(BOB, id=f"discord:{n}")) for n in range(3)]
    await store.admit_jobs(job_drafts, None, lambda drafts, _ledger: drafts, NOW)
    is_broken = True

    async def cancel(job: str) -> str:
        if is_broken and job == job_drafts[1].id:
            raise DatabaseUnavailable("away")
        await store.request_cancel(job, NOW)
        return ""

    rule_admin = RuleAdmin(store, cancel, limits=Limits(), clock=lambda: NOW)
    with pytest.raises(DatabaseUnavailable):
        await rule_admin.close_guild(OWNER, "noise")
    assert (await rule_admin.effective_rules(BOB)).closed
    is_broken = False
    assert await rule_admin.close_guild(OWNER, "noise") == 2
    assert await store.query(queries.list_open_ids, "g") == []
    assert len(await rule_admin.list_changes("g")) == 1


@pytest.mark.asyncio
async def test_rules_also_hold_for_commands_that_make_no_job(store):
    rule_admin = make_rule_admin(store)
    await rule_admin.set_rule(ANN, "guild", "", "commands", "imagine, queue")
    await rule_admin.set_rule(ANN, "user", "discord:6", "blocked", "on")
    await rule_admin.close_guild(OWNER, "tea")
    await rule_admin.check_command(BOB, "queue")
    for always_allowed in ("cancel", "report", "delete", "help", "info", "mine", "prefer"):
        await rule_admin.check_command(replace(BOB, id="discord:6"), always_allowed)
    assert (await refusal(rule_admin.check_command(BOB, "film"))).sentence == (
        "You may not use film here; allowed: imagine, queue. This server's admins set that for everybody here."
    )
    assert (
        "You are blocked" in (await refusal(rule_admin.check_command(replace(BOB, id="discord:6"), "queue"))).sentence
    )


@pytest.mark.asyncio
async def test_only_old_changes_of_the_same_server_are_deleted(store):
    rule_admin = make_rule_admin(store)
    other = await rule_admin.set_rule(replace(ANN, guild="h"), "guild", "", "running", "5")
    for n in range(MAX_CHANGES + 3):
        await rule_admin.set_rule(ANN, "guild", "", "queued", str(n))
    assert len(await rule_admin.list_changes("g", 10_000)) == MAX_CHANGES
    assert [change.number for change in await rule_admin.list_changes("h")] == [other.number]


@pytest.mark.asyncio
async def test_concurrent_changes_by_admins_are_all_kept(store):
    rule_admin = make_rule_admin(store)
    await asyncio.gather(*(rule_admin.set_rule(ANN, "user", f"discord:{n}", "running", "2") for n in range(40)))
    assert len(await rule_admin.list_rules("g")) == 40
    assert len({change.number for change in await rule_admin.list_changes("g", 100)}) == 40


@pytest.mark.asyncio
async def test_the_kill_switch_cancels_open_jobs_refunds_them_and_admits_no_more(harness, wait_until, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    rule_admin = app.services.rule_admin
    services = app.services
    await rule_admin.set_rule(OWNER, "user", "discord:3", "running", "1")
    jobs: list[str] = []
    for n in (0, 1, 2, 3, 3):  # the second of user 3 waits for the first
        jobs.append((await services.jobs.imagine("a lamp", replace(BOB, id=f"discord:{n}"), destination))[0].job)
    (job_elsewhere,) = await services.jobs.imagine("a lamp", replace(BOB, guild="h"), destination)

    async def all_run() -> bool:
        """Waits until all jobs run. A job cancelled between dispatch and first step is charged nothing."""
        records = await app.store.query(queries.get_jobs, jobs)
        return all(records[job].state == "running" for job in jobs[:-1]) and records[jobs[-1]].state == "queued"

    await wait_until(all_run)
    assert await rule_admin.close_guild(OWNER, "enough") == 5
    error = await refusal(services.jobs.imagine("a lamp", BOB, destination))
    assert error.status == 403
    assert error.sentence == (
        "This server accepts no new jobs: enough (closed by Olga). It stays closed until the server's owner opens it."
    )

    async def all_cancelled() -> bool:
        records = await app.store.query(queries.get_jobs, jobs)
        return all(record.state == "cancelled" for record in records.values())

    await wait_until(all_cancelled)
    records = await app.store.query(queries.get_jobs, jobs)
    assert [records[job].charged for job in jobs] == [records[job].cost / 4 for job in jobs[:-1]] + [0.0]
    assert (await app.store.get_job(job_elsewhere.job)).state in ("queued", "sent", "running")
    await rule_admin.open_guild(OWNER)
    await services.jobs.imagine("a lamp", BOB, destination)


TEXTS = {"running": ("1", "2", "3"), "cost_day": ("10", "20", "unlimited"), "results": ("public", "private")}


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(sorted(TEXTS)), st.integers(0, 2), st.booleans()), max_size=12))
def test_undoing_every_change_in_turn_leaves_no_rules(plan: list[tuple[str, int, bool]]) -> None:
    async def run(folder: str) -> None:
        store = await Store.open(f"sqlite:///{Path(folder) / 'one.sqlite'}")
        rule_admin = make_rule_admin(store)
        history: list[tuple[RuleChange, list]] = []
        for name, choice, roles in plan:
            before = await rule_admin.list_rules("g")
            try:
                change = await rule_admin.set_rule(
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
            assert (await rule_admin.undo_change(ANN)).undone_change == change.number
            assert await rule_admin.list_rules("g") == before
        assert await rule_admin.list_rules("g") == []
        await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(folder))
