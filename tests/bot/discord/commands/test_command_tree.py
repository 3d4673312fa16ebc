"""The registered command tree against Discord's limits. Without these tests only Discord would check them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import discord
import msgspec
import pytest

from bot.discord.cards.button_layout import BUTTON_EMOJI
from bot.discord.commands import help, imagine
from bot.discord.commands.command_limits import check_limits, count_characters
from bot.discord.commands.command_tree import build_payload
from bot.discord.commands.help import render_help
from bot.discord.commands.preferences import render_preferences
from bot.discord.declarations import list_command_actions, list_commands, list_help
from bot.discord.job_choice import MAX_CHOICE_CHARS, MAX_CHOICES
from bot.discord.responses import PERMISSIONS_AFTER_TOKEN, SEND_IN_THREADS
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.jobs.preferences import NAMES as PREFERENCES
from bot.jobs.preferences import Preference
from bot.policy.permissions import PERMISSIONS
from bot.prompt import format_default_cost
from engine.contract import SAMPLER_TITLES, Lora

ROOT = Path(__file__).resolve().parents[4]

STAFF = {"settings", "moderation"}  # for a server's staff: only in servers, and in English
MENUS = {command.name for command in list_commands() if isinstance(command, discord.app_commands.ContextMenu)}
MEMBERS = {command.name for command in list_commands()} - MENUS - STAFF
SHORTCUTS = {"fast", "relax", "turbo", "stealth", "public"}  # shortcuts to /prefer
STRING = 3
LONG_CHOICES = [{"name": "x" * 100, "value": "y" * 100} for _ in range(10)]


@pytest.mark.asyncio
async def test_the_tree_is_within_discords_limits() -> None:
    tree = await build_payload()
    assert [row.to_json() for row in check_limits(tree) if not row.is_within] == []
    assert {command["name"] for command in tree if command["type"] == 1} == MEMBERS | STAFF
    assert {command["name"] for command in tree if command["type"] == 3} == MENUS
    assert {"imagine", "cancel", "help"} < MEMBERS
    assert {"Details", "Report"} < MENUS


@pytest.mark.asyncio
async def test_commands_work_only_where_the_bot_is_a_member() -> None:
    for command in await build_payload():
        assert command["integration_types"] == [0], "no user installs: pictures are messages of a channel"
        assert command["contexts"] in ([0], [0, 1]), "servers, and direct messages with the bot"
        if command["name"] in MEMBERS | MENUS:
            assert command["contexts"] == [0, 1]


def make_command(**changes: Any) -> dict[str, Any]:
    return {"type": 1, "name": "one", "description": "What it does", "options": [], **changes}


def make_option(**changes: Any) -> dict[str, Any]:
    return {"type": STRING, "name": "word", "description": "Which", "required": False, **changes}


@pytest.mark.parametrize(
    ("tree", "missing_fields"),
    [
        ([make_command(name="One")], "names that Discord refuses"),
        ([make_command(name="two words")], "names that Discord refuses"),
        ([make_command(name_localizations={"de": "Eins"})], "names that Discord refuses"),
        ([make_command(description="")], "missing descriptions"),
        ([make_command(description="x" * 101)], "longest description"),
        ([make_command(description_localizations={"de": "x" * 101})], "longest description"),
        ([make_command(name="x" * 33)], "longest name"),
        ([make_command(), make_command()], "names that are there twice"),
        (
            [make_command(options=[make_option(name="a", name_localizations={"de": "b"}), make_option(name="b")])],
            "names that are there twice",
        ),
        (
            [make_command(options=[make_option(choices=[{"name": "same", "value": n} for n in range(2)])])],
            "names that are there twice",
        ),
        ([make_command(options=[make_option(), make_option(name="other", required=True)])], "required after optional"),
        (
            [make_command(options=[make_option(autocomplete=True, choices=[{"name": "a", "value": "a"}])])],
            "suggestions",
        ),
        ([make_command(options=[make_option(name=f"o{n}") for n in range(26)])], "options of a command"),
        (
            [make_command(options=[make_option(choices=[{"name": f"{n}", "value": n} for n in range(26)])])],
            "choices of an",
        ),
        ([make_command(options=[make_option(choices=[{"name": "x" * 101, "value": "a"}])])], "longest choice"),
        ([make_command(options=[make_option(description="x" * 100, choices=LONG_CHOICES)] * 4)], "largest command"),
        ([{"type": 3, "name": f"Menu {n}"} for n in range(16)], "menus of a message"),
        ([make_command(name=f"c{n}") for n in range(101)], "slash commands"),
    ],
)
def test_the_rows_catch_what_discord_refuses(tree: list[dict[str, Any]], missing_fields: str) -> None:
    assert any(row.name.startswith(missing_fields) for row in check_limits(tree) if not row.is_within)


def test_a_menu_may_have_capitals_and_spaces_and_needs_no_description() -> None:
    assert all(row.is_within for row in check_limits([{"type": 3, "name": "Use as prompt"}]))


def test_characters_are_counted_in_the_longest_language() -> None:
    choice = {"name": "ab", "value": "xyz"}
    command = make_command(
        name="one",
        description="four",
        description_localizations={"de": "sieben?"},
        options=[make_option(choices=[choice])],
    )
    assert count_characters(command) == len("one") + len("sieben?") + len("word") + len("Which") + len("ab") + len(
        "xyz"
    )


def test_the_command_line_prints_the_tree_and_the_rows() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "bot", "commands", "--json"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    refused_names = json.loads(process.stdout)
    assert {command["name"] for command in refused_names["commands"]} >= MEMBERS | MENUS
    assert all(row["pass"] for row in refused_names["rows"])
    assert {"name", "figure", "goal", "unit", "pass"} == set(refused_names["rows"][0])


def test_every_command_has_an_action_of_the_permission_table() -> None:
    names = {command.name for command in list_commands()} - {
        "settings",
        "moderation",
        "Report",
    }  # these commands check permissions themselves
    actions = list_command_actions()
    assert names == set(actions)
    assert set(actions.values()) <= set(PERMISSIONS)


def test_every_sampler_is_offered_with_advice() -> None:
    assert imagine.SAMPLER_ADVICE.keys() == SAMPLER_TITLES.keys()
    choices = imagine.sampler_choices(None, "")
    assert [one.value for one in choices] == list(SAMPLER_TITLES)
    assert all(len(one.name) <= MAX_CHOICE_CHARS for one in choices)
    assert len({one.name for one in choices}) == len(choices) <= MAX_CHOICES
    assert [one.value for one in imagine.sampler_choices(SHIPPED_MODEL, "")] == list(SHIPPED_MODEL.samplers)


def test_loras_are_completed_one_after_another() -> None:
    profile = msgspec.structs.replace(SHIPPED_MODEL, loras=(Lora("style", 0.8), Lora("detail")))
    assert [one.value for one in imagine.lora_choices(profile, "")] == ["style:0.8", "detail:1"]
    assert [one.value for one in imagine.lora_choices(profile, "style:0.5, d")] == ["style:0.5, detail:1"]
    assert imagine.lora_choices(SHIPPED_MODEL, "") == imagine.lora_choices(None, "") == []


def test_a_model_not_in_memory_is_offered_as_loaded_on_demand() -> None:
    cold = msgspec.structs.replace(SHIPPED_MODEL, name="large", loaded=False)
    choices = imagine.model_choices([SHIPPED_MODEL, cold], "")
    assert [one.value for one in choices] == ["embedded", "large"]
    cost = format_default_cost(SHIPPED_MODEL)
    assert re.fullmatch(r"about [\d.]+ s a picture", cost)
    assert [one.name for one in choices] == [f"embedded ({cost})", f"large ({cost}, loaded on demand)"]


def test_help_names_each_command_and_links_those_with_a_known_id() -> None:
    (help_text,) = render_help(lambda name: f"`/{name}`", is_staff=True)
    mentioned = {*re.findall(r"`/([a-z-]+)[ `]", help_text)}
    assert mentioned - SHORTCUTS == MEMBERS - {"help"} - SHORTCUTS | {"settings"}
    assert all(f"`/{name}`" in help_text for name in list_help())
    assert "settings" not in "".join(render_help(lambda name: name, is_staff=False))
    assert all(symbol in help_text for symbol in (*BUTTON_EMOJI.values(), "**U**", "**V**", "✉️", "❌"))


@pytest.mark.parametrize(("command_count", "text_count"), [(5, 1), (26, 2)])
def test_help_is_within_a_messages_limit(command_count: int, text_count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"command-{letter}": "does a thing" for letter in ascii_lowercase[:command_count]}
    monkeypatch.setattr(help, "list_help", lambda: many)
    texts = help.render_help(lambda name: f"</{name}:1234567890123456789>", is_staff=True)
    assert len(texts) == text_count
    assert all(len(text) <= 2000 for text in texts)
    assert all(f"</{name}:" in texts[-1] for name in many)


def test_the_list_of_preferences_says_how_to_change_one() -> None:
    lines = render_preferences(Preference(), lambda name: f"</{name}:17>").split("\n")
    assert len(lines) == len(PREFERENCES) + 2
    assert lines[-1].startswith("-# </prefer set:17> with a name and a value changes one")


def test_prefer_set_offers_every_preference() -> None:
    group = next(command for command in list_commands() if command.name == "prefer")
    assert isinstance(group, discord.app_commands.Group)
    set_command = group.get_command("set")
    assert isinstance(set_command, discord.app_commands.Command)
    (name,) = [parameter for parameter in set_command.parameters if parameter.name == "name"]
    assert [choice.value for choice in name.choices] == list(PREFERENCES)


def test_the_readme_asks_for_exactly_the_permissions_that_the_bot_needs() -> None:
    """A locked thread needs one more permission, which the invitation does not ask for."""
    (permissions,) = re.findall(r"the permissions\s+(\*[^;]+);", (ROOT / "README.md").read_text())
    needed_permissions = {*PERMISSIONS_AFTER_TOKEN.values(), SEND_IN_THREADS, "Attach Files"}
    assert {name.removesuffix("s") for name in re.findall(r"\*([^*]+)\*", permissions)} == {
        name.removesuffix("s") for name in needed_permissions
    }
