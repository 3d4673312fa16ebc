"""Flag aliases: parsing, refusals, and the places where they work."""

from __future__ import annotations

import asyncio

import pytest

from bot.app.settings import load_settings
from bot.cli import flag_aliases
from bot.cli.imagine.runner import ImagineRequest, _resolve_request
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.prompt import parse
from bot.prompt.flag_aliases import (
    MAX_ALIAS_LENGTH,
    expand_flag_aliases,
    find_unknown_flags,
    parse_alias_name,
    parse_alias_value,
)
from bot.services.flag_aliases import MAX_ALIASES, FlagAliases
from bot.store import Store
from bot.store.deletion import erasure
from bot.store.members import export
from engine.contract import Concept

ALIASES = {"mine": "--ar 3:2 --steps 200", "soft": ", in soft light --no fog", "warm": "warm"}
MODELS = ["embedded", "large"]


@pytest.mark.parametrize(
    ("typed_prompt", "read"),
    [
        ("terrier --mine", "terrier --ar 3:2 --steps 200"),
        ("terrier —Mine", "terrier --ar 3:2 --steps 200"),
        ("terrier --mine cute", "terrier cute --ar 3:2 --steps 200"),
        ("terrier --seed 7 --soft --count 1", "terrier, in soft light --seed 7 --no fog --count 1"),
        ("terrier --no cat --warm", "terrier warm --no cat"),
        ("red:: --warm blue::-0.5", "red:: warm blue::-0.5"),
        ("terrier --warm --warm", "terrier warm warm"),
        ("terrier --other", "terrier --other"),
        ("terrier, 3--warm", "terrier, 3--warm"),
    ],
)
def test_an_alias_adds_its_words_to_the_prompt_and_its_flags_to_the_flags(typed_prompt, read):
    assert expand_flag_aliases(typed_prompt, ALIASES)[0] == read


def test_what_an_alias_stands_for_is_said_once():
    assert expand_flag_aliases("a --warm --warm", ALIASES)[1] == ("--warm stands for “warm”.",)
    assert expand_flag_aliases("a --seed 7", ALIASES) == ("a --seed 7", ())


def test_aliases_do_not_nest_and_built_in_flags_win():
    assert expand_flag_aliases("a --x", {"x": "--mine", **ALIASES})[0] == "a --mine"
    assert expand_flag_aliases("a --ar 1:1", {"ar": "--steps 5"})[0] == "a --ar 1:1"


def test_an_alias_applies_to_every_job_of_a_permutation():
    requests = parse("{sun, moon --warm} --mine", None, aliases=ALIASES).prompts
    assert [(one.words, one.ar, one.steps) for one in requests] == [("sun", (3, 2), 200), ("moon warm", (3, 2), 200)]


def test_an_alias_does_not_raise_the_length_limit_of_a_prompt():
    with pytest.raises(UserError, match="2000 characters"):
        parse("x" * 1990 + " --mine", None, aliases=ALIASES)


def test_only_unknown_flags_are_looked_up_as_aliases():
    assert find_unknown_flags("a --mine --v 6 --ar 3:2 --c 5 --Mine") == ("mine",)
    assert find_unknown_flags("a fox {--mine,--warm,--ar 3:2}") == ("mine", "warm")
    requests = parse("a fox {--mine,--warm}", None, aliases=ALIASES).prompts
    assert [(one.words, one.steps) for one in requests] == [("a fox", 200), ("a fox warm", None)]


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
    assert await options.aliases_for("ann", "a --ar 3:2") == {}
    assert len(await options.aliases_for("ann", "a --o1")) == MAX_ALIASES - 1


@pytest.mark.asyncio
async def test_aliases_are_exported_and_forgotten(store):
    options = FlagAliases(store, lambda: MODELS)
    for member in ("ann", "bob"):
        await options.set_alias(member, "mine", "--ar 3:2")
    assert (await store.query(export.read_choices, "ann")).flag_aliases == {"mine": "--ar 3:2"}
    await store.write(erasure.erase_member_data, erasure.ErasureRequest("ann", "discord:9", 1.0))
    assert await options.list_aliases("ann"), "leaving one server deletes none"
    await store.write(erasure.erase_member_data, erasure.ErasureRequest("ann", "", 1.0))
    assert (await options.list_aliases("ann"), await options.list_aliases("bob")) == ({}, {"mine": "--ar 3:2"})


@pytest.mark.asyncio
async def test_aliases_work_in_every_prompt_and_rules_check_what_they_stand_for(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    services = app.services
    await services.flag_aliases.set_alias(ann.id, "mine", "in fog --seed 5 --count 2 --steps 40")
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
    await services.flag_aliases.set_alias(ann.id, "red", "red, in rain")
    near_branch = await services.edits.branch(view.id, 0, 20, ann, destination, text="a tree --red")
    assert "--red stands for “red, in rain”." in near_branch.notes
    for job, words in ((other.job, "a tree in fog"), (near_branch.job, "a tree red, in rain")):
        assert (await services.job_views.load_view(job)).task.concepts == (Concept(words),)
    owner = Member("local:o", "O", "local", is_owner=True, is_admin=True)
    await services.rule_admin.set_rule(owner, "guild", "", "words", "fog")
    await services.rule_admin.set_rule(owner, "guild", "", "steps", "30")
    with pytest.raises(UserError, match="“fog” may not be in a prompt"):
        await services.jobs.imagine("a lamp --mine", ann, destination)
    await services.flag_aliases.set_alias(ann.id, "mine", "--steps 40")
    with pytest.raises(UserError, match="at most 30"):
        await services.jobs.imagine("a lamp --mine", ann, destination)


def test_the_terminal_has_its_own_aliases(tmp_path, capsys):
    async def create_store() -> None:
        await (await Store.open(load_settings(data=tmp_path).database)).close()

    asyncio.run(create_store())
    flag_aliases.flag_alias("mine", "--ar 3:2 --count 2", data=tmp_path)
    flag_aliases.flag_alias("warm", "warm", data=tmp_path)
    flag_aliases.flag_alias(data=tmp_path)
    flag_aliases.flag_alias("warm", delete=True, data=tmp_path)
    first_alias = "--mine  --ar 3:2 --count 2"
    second_alias = "--warm  warm"
    assert capsys.readouterr().out.splitlines() == [
        first_alias,
        second_alias,
        first_alias,
        second_alias,
        "--warm is deleted.",
    ]
    aliases = flag_aliases.load_aliases("{a fox} --mine", load_settings(data=tmp_path))
    request, count, notes = _resolve_request(ImagineRequest("{a fox} --mine", {}, tmp_path, False, False), aliases)
    assert (request.prompt, count, notes) == (
        "a fox --ar 3:2 --count 2",
        2,
        ["--mine stands for “--ar 3:2 --count 2”."],
    )
    assert flag_aliases.load_aliases("a fox --mine", load_settings(data=tmp_path / "nowhere")) == {}
    with pytest.raises(UserError, match="A name goes with"):
        flag_aliases.flag_alias("mine", data=tmp_path)
