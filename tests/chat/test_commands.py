"""The command tree as it is registered, by Discord's rules that nobody else checks before Discord does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import discord
import msgspec
import pytest

from bot.access import ACTIONS
from bot.chat.channel import IN_THREADS, LATER
from bot.chat.commands import offered
from bot.chat.commands.counted import characters, rows
from bot.chat.commands.help import NAMES, told
from bot.chat.commands.languages import GERMAN
from bot.chat.commands.own import everything as listed
from bot.chat.commands.prefer import everything
from bot.chat.commands.registered import COMMANDS, registered
from bot.chat.permitted import COMMANDS as ASKED
from bot.chat.rows import SIGNS
from bot.chat.which import CHOICE, OFFERED
from bot.desk.options import MOST
from bot.desk.preferences import NAMES as PREFERENCES
from bot.desk.preferences import Preference
from bot.models import SHIPPED
from engine.job import SAMPLER_TITLES, Lora

ROOT = Path(__file__).resolve().parents[2]

MEMBERS = {
    "imagine", "blend", "mix", "walk", "shorten", "describe", "queue", "cancel", "mine", "info", "prefer", "reproduce",
    "film",
    "help", "fast", "relax", "turbo", "stealth", "public", "my-data", "forget-me",
}  # fmt: skip
SHORT = {"fast", "relax", "turbo", "stealth", "public"}  # ways to /prefer
MENUS = {"Reproduce", "Use as prompt", "Details", "Report"}
STRING = 3
LONG = [{"name": "x" * 100, "value": "y" * 100} for _ in range(10)]


@pytest.mark.asyncio
async def test_the_tree_is_within_discords_limits() -> None:
    tree = await registered()
    assert [row.plain() for row in rows(tree) if not row.passed] == []
    assert {command["name"] for command in tree if command["type"] == 1} >= {*MEMBERS, "settings"}
    assert {command["name"] for command in tree if command["type"] == 3} >= MENUS


@pytest.mark.asyncio
async def test_only_where_the_bot_is_a_member() -> None:
    for command in await registered():
        assert command["integration_types"] == [0], "no user installs: pictures are messages of a channel"
        assert command["contexts"] in ([0], [0, 1]), "servers, and the bot's own direct conversations"
        if command["name"] in MEMBERS | MENUS:
            assert command["contexts"] == [0, 1]


def a_command(**changes: Any) -> dict[str, Any]:
    return {"type": 1, "name": "one", "description": "What it does", "options": [], **changes}


def an_option(**changes: Any) -> dict[str, Any]:
    return {"type": STRING, "name": "word", "description": "Which", "required": False, **changes}


@pytest.mark.parametrize(
    ("tree", "missed"),
    [
        ([a_command(name="One")], "names that Discord refuses"),
        ([a_command(name="two words")], "names that Discord refuses"),
        ([a_command(name_localizations={"de": "Eins"})], "names that Discord refuses"),
        ([a_command(description="")], "missing descriptions"),
        ([a_command(description="x" * 101)], "longest description"),
        ([a_command(description_localizations={"de": "x" * 101})], "longest description"),
        ([a_command(name="x" * 33)], "longest name"),
        ([a_command(), a_command()], "names that are there twice"),
        ([a_command(options=[an_option(), an_option(name="other", required=True)])], "required after optional"),
        ([a_command(options=[an_option(autocomplete=True, choices=[{"name": "a", "value": "a"}])])], "suggestions"),
        ([a_command(options=[an_option(name=f"o{n}") for n in range(26)])], "options of a command"),
        ([a_command(options=[an_option(choices=[{"name": f"{n}", "value": n} for n in range(26)])])], "choices of an"),
        ([a_command(options=[an_option(choices=[{"name": "x" * 101, "value": "a"}])])], "longest choice"),
        ([a_command(options=[an_option(description="x" * 100, choices=LONG)] * 4)], "largest command"),
        ([{"type": 3, "name": f"Menu {n}"} for n in range(16)], "menus of a message"),
        ([a_command(name=f"c{n}") for n in range(101)], "slash commands"),
    ],
)
def test_what_discord_refuses_is_counted(tree: list[dict[str, Any]], missed: str) -> None:
    assert any(row.name.startswith(missed) for row in rows(tree) if not row.passed)


def test_a_menu_may_have_capitals_and_spaces_and_says_nothing() -> None:
    assert all(row.passed for row in rows([{"type": 3, "name": "Use as prompt"}]))


def test_characters_are_counted_in_the_longest_language() -> None:
    choice = {"name": "ab", "value": "xyz"}
    command = a_command(
        name="one",
        description="four",
        description_localizations={"de": "sieben?"},
        options=[an_option(choices=[choice])],
    )
    assert characters(command) == len("one") + len("sieben?") + len("word") + len("Which") + len("ab") + len("xyz")


def test_the_command_line_prints_the_tree_and_the_rows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bot", "commands", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {command["name"] for command in found["commands"]} >= MEMBERS | MENUS
    assert all(row["pass"] for row in found["rows"])
    assert {"name", "figure", "goal", "unit", "pass"} == set(found["rows"][0])


def test_every_command_asks_the_table_of_who_may_do_what() -> None:
    asked = {command.name for command in COMMANDS} - {"settings", "moderation", "Report"}  # these ask by themselves
    assert asked == set(ASKED)
    assert set(ASKED.values()) <= set(ACTIONS)


def test_every_sampler_is_offered_with_advice() -> None:
    assert offered.ADVICE.keys() == SAMPLER_TITLES.keys()
    for german in (False, True):
        choices = offered.samplers(None, "", german=german)
        assert [one.value for one in choices] == list(SAMPLER_TITLES)
        assert all(len(one.name) <= CHOICE for one in choices)
        assert len({one.name for one in choices}) == len(choices) <= OFFERED
    assert [one.value for one in offered.samplers(SHIPPED, "", german=False)] == list(SHIPPED.samplers)
    assert [one.value for one in offered.samplers(None, "rauschen", german=True)] == ["euler_ancestral", "dpmpp_2m_sde"]


def test_loras_are_offered_one_behind_the_other() -> None:
    warm = msgspec.structs.replace(SHIPPED, loras=(Lora("style", 0.8), Lora("detail")))
    assert [one.value for one in offered.loras(warm, "")] == ["style:0.8", "detail:1"]
    assert [one.value for one in offered.loras(warm, "style:0.5, d")] == ["style:0.5, detail:1"]
    assert offered.loras(SHIPPED, "") == offered.loras(None, "") == []


def test_a_model_that_lies_on_a_disk_only_is_offered_as_such() -> None:
    cold = msgspec.structs.replace(SHIPPED, name="large", loaded=False)
    choices = offered.models([SHIPPED, cold], "")
    assert [one.value for one in choices] == ["embedded", "large"]
    assert [one.name for one in choices] == ["embedded", "large (loaded on demand)"]


@pytest.mark.asyncio
async def test_what_members_read_is_translated_and_nothing_else_is() -> None:
    theirs = [command for command in await registered() if command["name"] in MEMBERS | MENUS]
    said: set[str] = set()

    def visit(part: dict[str, Any]) -> None:
        if part.get("description"):
            assert part.get("description_localizations", {}).get("de"), part["description"]
            said.add(part["description"])
        for inner in (*part.get("options", ()), *part.get("choices", ())):
            visit(inner)
        said.add(part["name"])

    for command in theirs:
        visit(command)
        if command["type"] == 3:
            assert command["name_localizations"]["de"]
        else:
            assert command["name_localizations"] == {}, "people tell each other the names of commands"
    assert set(GERMAN) <= said, "a translation of something that is not said any more"


def test_help_names_each_command_and_opens_it_where_its_id_is_known() -> None:
    plain = told(lambda name: f"`/{name}`", staff=True)
    assert all(f"`/{name}`" in plain for name in NAMES)
    assert {name.partition(" ")[0] for name in NAMES} == MEMBERS - {"help"} - SHORT
    assert len(told(lambda name: f"</{name}:1234567890123456789>", staff=True)) <= 2000
    assert "settings" not in told(lambda name: name, staff=False)
    assert all(sign in plain for sign in (*SIGNS.values(), "**U**", "**V**", "✉️", "❌"))


def test_the_preferences_say_how_to_change_one() -> None:
    said = everything(Preference(), lambda name: f"</{name}:17>").split("\n")
    assert len(said) == len(PREFERENCES) + 2
    assert said[-1].startswith("-# </prefer set:17> with a name and a value changes one")


def test_however_many_flags_of_ones_own_there_are_they_are_one_message() -> None:
    many = {f"{'x' * 22}{n:02}": "*" * 500 for n in range(MOST)}
    said = listed(many, "</prefer option set:1234567890123456789>")
    assert len(said) <= 2000
    assert said.count("`--") == MOST


def test_every_preference_is_explained() -> None:
    group = next(command for command in COMMANDS if command.name == "prefer")
    assert isinstance(group, discord.app_commands.Group)
    prefer = group.get_command("set")
    assert isinstance(prefer, discord.app_commands.Command)
    (name,) = [parameter for parameter in prefer.parameters if parameter.name == "name"]
    assert [choice.value for choice in name.choices] == list(PREFERENCES)


def test_the_readme_asks_for_every_permission_that_the_bot_needs_and_for_no_other() -> None:
    """In a thread that is locked one more is needed; nobody should give that to a bot just in case."""
    (said,) = re.findall(r"the permissions\s+(\*[^;]+);", (ROOT / "README.md").read_text())
    needed = {*LATER.values(), IN_THREADS, "Attach Files"}
    assert {name.removesuffix("s") for name in re.findall(r"\*([^*]+)\*", said)} == {
        name.removesuffix("s") for name in needed
    }
