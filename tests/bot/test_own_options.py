"""Flag aliases: how a prompt with them is parsed, what is refused, and where they hold."""

from __future__ import annotations

import asyncio

import pytest

from bot.cli import own_options
from bot.cli.terminal import Wish, _read
from bot.config import load
from bot.desk.options import MOST, Options
from bot.prompt import parse
from bot.prompt.own import LONGEST, foreign, name_of, spelt, value_of
from bot.refused import Refused
from bot.store import Store, export, forgetting
from bot.views import Member
from engine.job import Concept

ALIASES = {"mine": "--ar 3:2 --steps 200", "soft": ", in soft light --no fog", "warm": "warm"}
MODELS = ["embedded", "large"]


@pytest.mark.parametrize(
    ("typed", "read"),
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
def test_an_alias_adds_its_words_to_the_prompt_and_its_flags_to_the_flags(typed, read):
    assert spelt(typed, ALIASES)[0] == read


def test_what_an_alias_stands_for_is_said_once():
    assert spelt("a --warm --warm", ALIASES)[1] == ("--warm stands for “warm”.",)
    assert spelt("a --seed 7", ALIASES) == ("a --seed 7", ())


def test_aliases_do_not_nest_and_built_in_flags_win():
    assert spelt("a --x", {"x": "--mine", **ALIASES})[0] == "a --mine"
    assert spelt("a --ar 1:1", {"ar": "--steps 5"})[0] == "a --ar 1:1"


def test_an_alias_applies_to_every_job_of_a_permutation():
    requests = parse("{sun, moon --warm} --mine", None, own=ALIASES).requests
    assert [(one.words, one.ar, one.steps) for one in requests] == [("sun", (3, 2), 200), ("moon warm", (3, 2), 200)]


def test_an_alias_does_not_raise_the_length_limit_of_a_prompt():
    with pytest.raises(Refused, match="2000 characters"):
        parse("x" * 1990 + " --mine", None, own=ALIASES)


def test_only_unknown_flags_are_looked_up_as_aliases():
    assert foreign("a --mine --v 6 --ar 3:2 --c 5 --Mine") == ("mine",)
    assert foreign("a fox {--mine,--warm,--ar 3:2}") == ("mine", "warm")
    requests = parse("a fox {--mine,--warm}", None, own=ALIASES).requests
    assert [(one.words, one.steps) for one in requests] == [("a fox", 200), ("a fox warm", None)]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("--steps 9999", "--steps 9999 is not possible: it takes 1 to 1000."),
        ("--mine", "There is no flag --mine"),
        ("--model lrage", "There is no model lrage; the nearest is large."),
        ("{red, blue}", "braces belong into the prompt"),
        ("x" * (LONGEST + 1), f"at most {LONGEST} characters"),
        (" \u200b ", "say which"),
    ],
)
def test_an_invalid_value_of_an_alias_is_refused(value, why):
    with pytest.raises(Refused, match=why):
        value_of(value, MODELS)


@pytest.mark.parametrize("name", ["", "9x", "a b", "x" * 25, "ä", "ar", "c", "v", "niji", "--seed"])
def test_an_invalid_alias_name_is_refused(name):
    with pytest.raises(Refused):
        name_of(name)
    assert name_of(" --Mine ") == "mine"


@pytest.mark.asyncio
async def test_a_member_has_a_limited_number_of_aliases_of_their_own(store):
    options = Options(store, lambda: MODELS)
    await asyncio.gather(*(options.put("ann", f"o{n}", "red") for n in range(MOST)))
    with pytest.raises(Refused, match=f"You have {MOST} options"):
        await options.put("ann", "another", "red")
    assert await options.put("ann", "--O3", "--ar 3:2\n--fast") == "o3", "it replaces the older one"
    assert (await options.of("ann"))["o3"] == "--ar 3:2 --fast"
    assert await options.drop("ann", "o5") == "o5"
    with pytest.raises(Refused, match="You have no option --o5"):
        await options.drop("ann", "o5")
    assert await options.of("bob") == {}
    assert await options.meant("ann", "a --ar 3:2") == {}
    assert len(await options.meant("ann", "a --o1")) == MOST - 1


@pytest.mark.asyncio
async def test_aliases_are_exported_and_forgotten(store):
    options = Options(store, lambda: MODELS)
    for member in ("ann", "bob"):
        await options.put(member, "mine", "--ar 3:2")
    assert (await store.ask(export.chosen, "ann")).options == {"mine": "--ar 3:2"}
    await store.write(forgetting.forget, forgetting.Departure("ann", "discord:9", 1.0))
    assert await options.of("ann"), "leaving one server deletes none"
    await store.write(forgetting.forget, forgetting.Departure("ann", "", 1.0))
    assert (await options.of("ann"), await options.of("bob")) == ({}, {"mine": "--ar 3:2"})


@pytest.mark.asyncio
async def test_aliases_work_in_every_prompt_and_rules_check_what_they_stand_for(workplace, until, ann, here):
    app = await workplace.house()
    await workplace.worker()
    await until(lambda: app.studio.workers())
    studio, desk = app.studio, app.desk
    await desk.options.put(ann.id, "mine", "in fog --seed 5 --count 2 --steps 40")
    (ticket,) = await studio.imagine("a lamp --mine", ann, here)
    assert ticket.notes[0] == "--mine stands for “in fog --seed 5 --count 2 --steps 40”."

    async def is_finished():
        return (await studio.view(ticket.job)).state == "finished"

    await until(is_finished)
    view = await studio.view(ticket.job)
    assert view.prompt == "a lamp in fog --seed 5 --count 2 --steps 40"
    assert (view.recipe.concepts, view.recipe.seed) == ((Concept("a lamp in fog"),), 5)
    with pytest.raises(Refused, match="There is no flag --mine"):
        await studio.imagine("a lamp --mine", Member("local:bob", "Bob", "local"), here)
    (other,) = await studio.remix(view.id, None, "a tree --mine", ann, here)
    await desk.options.put(ann.id, "red", "red, in rain")
    near = await studio.branch(view.id, 0, 20, ann, here, text="a tree --red")
    assert "--red stands for “red, in rain”." in near.notes
    for job, words in ((other.job, "a tree in fog"), (near.job, "a tree red, in rain")):
        assert (await studio.view(job)).recipe.concepts == (Concept(words),)
    owner = Member("local:o", "O", "local", owner=True, admin=True)
    await desk.administration.set(owner, "guild", "", "words", "fog")
    await desk.administration.set(owner, "guild", "", "steps", "30")
    with pytest.raises(Refused, match="“fog” may not be in a prompt"):
        await studio.imagine("a lamp --mine", ann, here)
    await desk.options.put(ann.id, "mine", "--steps 40")
    with pytest.raises(Refused, match="at most 30"):
        await studio.imagine("a lamp --mine", ann, here)


def test_the_terminal_has_its_own_aliases(tmp_path, capsys):
    async def create_store() -> None:
        await (await Store.open(load(data=tmp_path).database)).close()

    asyncio.run(create_store())
    own_options.option("mine", "--ar 3:2 --count 2", data=tmp_path)
    own_options.option("warm", "warm", data=tmp_path)
    own_options.option(data=tmp_path)
    own_options.option("warm", delete=True, data=tmp_path)
    mine, warm = "--mine  --ar 3:2 --count 2", "--warm  warm"
    assert capsys.readouterr().out.splitlines() == [mine, warm, mine, warm, "--warm is deleted."]
    aliases = own_options.meant("{a fox} --mine", load(data=tmp_path))
    wish, count, notes = _read(Wish("{a fox} --mine", {}, tmp_path, False, False), aliases)
    assert (wish.prompt, count, notes) == ("a fox --ar 3:2 --count 2", 2, ["--mine stands for “--ar 3:2 --count 2”."])
    assert own_options.meant("a fox --mine", load(data=tmp_path / "nowhere")) == {}
    with pytest.raises(Refused, match="A name goes with"):
        own_options.option("mine", data=tmp_path)
