"""Flag aliases: refusals, and the places where they work."""

from __future__ import annotations

import asyncio

import pytest

from bot.app.settings import load_settings
from bot.cli.imagine.job_inputs import ImagineRequest
from bot.cli.imagine.runner import _load_aliases, _resolve_request
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.features.flag_aliases import cli
from bot.features.flag_aliases import store as stored
from bot.features.flag_aliases.rules import MAX_ALIAS_LENGTH, MAX_ALIASES, parse_alias_name, parse_alias_value
from bot.features.flag_aliases.service import FlagAliases
from bot.jobs.preferences import Preferences
from bot.store import Store
from engine.contract import Concept

MODELS = ["embedded", "large"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("--steps 9999", "--steps 9999 is not possible: it takes 1 to 1000."),
        ("--mine", "There is no flag --mine"),
        ("--model lrage", "There is no model lrage; the nearest is large."),
        ("{red, blue}", "braces belong into the prompt"),
        ("x" * (MAX_ALIAS_LENGTH + 1), f"at most {MAX_ALIAS_LENGTH} characters"),
        (" \u200b ", "say which"),
    ],
)
def test_an_invalid_value_of_an_alias_is_refused(value, reason):
    with pytest.raises(UserError, match=reason):
        parse_alias_value(value, MODELS)


@pytest.mark.parametrize("name", ["", "9x", "a b", "x" * 25, "ä", "ar", "c", "v", "niji", "--seed"])
def test_an_invalid_alias_name_is_refused(name):
    with pytest.raises(UserError):
        parse_alias_name(name)
    assert parse_alias_name(" --Mine ") == "mine"


@pytest.mark.asyncio
async def test_a_member_has_a_limited_number_of_aliases_of_their_own(store):
    options = FlagAliases(store, lambda: MODELS)
    await asyncio.gather(*(options.set_alias("ann", f"o{n}", "red") for n in range(MAX_ALIASES)))
    with pytest.raises(UserError, match=f"You have {MAX_ALIASES} options"):
        await options.set_alias("ann", "another", "red")
    assert await options.set_alias("ann", "--O3", "--ar 3:2\n--fast") == "o3", "it replaces the older one"
    assert (await options.list_aliases("ann"))["o3"] == "--ar 3:2 --fast"
    assert await options.delete_alias("ann", "o5") == "o5"
    with pytest.raises(UserError, match="You have no option --o5"):
        await options.delete_alias("ann", "o5")
    assert await options.list_aliases("bob") == {}
    assert await Preferences(store).load_flag_aliases("ann", "a --ar 3:2") == {}
    assert len(await Preferences(store).load_flag_aliases("ann", "a --o1")) == MAX_ALIASES - 1


@pytest.mark.asyncio
async def test_aliases_are_exported_and_forgotten(store):
    options = FlagAliases(store, lambda: MODELS)
    for member in ("ann", "bob"):
        await options.set_alias(member, "mine", "--ar 3:2")
    assert await store.query(stored.export_member, "ann") == {"options": {"mine": "--ar 3:2"}}
    await store.write(stored.erase_member, "ann", "discord:9", 1.0)
    assert await options.list_aliases("ann"), "leaving one server deletes none"
    await store.write(stored.erase_member, "ann", "", 1.0)
    assert (await options.list_aliases("ann"), await options.list_aliases("bob")) == ({}, {"mine": "--ar 3:2"})


@pytest.mark.asyncio
async def test_aliases_work_in_every_prompt_and_rules_check_what_they_stand_for(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    services = app.services
    await services.get(FlagAliases).set_alias(ann.id, "mine", "in fog --seed 5 --count 2 --steps 40")
    (accepted,) = await services.jobs.imagine("a lamp --mine", ann, destination)
    assert accepted.notes[0] == "--mine stands for “in fog --seed 5 --count 2 --steps 40”."

    async def is_finished():
        return (await services.job_views.load_view(accepted.job)).state == "finished"

    await wait_until(is_finished)
    view = await services.job_views.load_view(accepted.job)
    assert view.prompt == "a lamp in fog --seed 5 --count 2 --steps 40"
    assert (view.task.concepts, view.task.seed) == ((Concept("a lamp in fog"),), 5)
    with pytest.raises(UserError, match="There is no flag --mine"):
        await services.jobs.imagine("a lamp --mine", Member("local:bob", "Bob", "local"), destination)
    (other,) = await services.variations.remix(view.id, None, "a tree --mine", ann, destination)
    await services.get(FlagAliases).set_alias(ann.id, "red", "red, in rain")
    near_branch = await services.edits.branch(view.id, 0, 20, ann, destination, text="a tree --red")
    assert "--red stands for “red, in rain”." in near_branch.notes
    for job, words in ((other.job, "a tree in fog"), (near_branch.job, "a tree red, in rain")):
        assert (await services.job_views.load_view(job)).task.concepts == (Concept(words),)
    owner = Member("local:o", "O", "local", is_owner=True, is_admin=True)
    await services.rule_admin.set_rule(owner, "guild", "", "words", "fog")
    await services.rule_admin.set_rule(owner, "guild", "", "steps", "30")
    with pytest.raises(UserError, match="“fog” may not be in a prompt"):
        await services.jobs.imagine("a lamp --mine", ann, destination)
    await services.get(FlagAliases).set_alias(ann.id, "mine", "--steps 40")
    with pytest.raises(UserError, match="at most 30"):
        await services.jobs.imagine("a lamp --mine", ann, destination)


def test_the_terminal_has_its_own_aliases(tmp_path, capsys):
    async def create_store() -> None:
        await (await Store.open(load_settings(data=tmp_path).database)).close()

    asyncio.run(create_store())
    cli.flag_alias("mine", "--ar 3:2 --count 2", data=tmp_path)
    cli.flag_alias("warm", "warm", data=tmp_path)
    cli.flag_alias(data=tmp_path)
    cli.flag_alias("warm", delete=True, data=tmp_path)
    first_alias = "--mine  --ar 3:2 --count 2"
    second_alias = "--warm  warm"
    assert capsys.readouterr().out.splitlines() == [
        first_alias,
        second_alias,
        first_alias,
        second_alias,
        "--warm is deleted.",
    ]
    aliases = _load_aliases("{a fox} --mine", load_settings(data=tmp_path))
    request, count, notes = _resolve_request(ImagineRequest("{a fox} --mine", {}, tmp_path, False, False), aliases)
    assert (request.prompt, count, notes) == (
        "a fox --ar 3:2 --count 2",
        2,
        ["--mine stands for “--ar 3:2 --count 2”."],
    )
    assert _load_aliases("a fox --mine", load_settings(data=tmp_path / "nowhere")) == {}
    with pytest.raises(UserError, match="A name goes with"):
        cli.flag_alias("mine", data=tmp_path)
