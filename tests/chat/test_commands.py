"""The command tree as it is registered, by Discord's rules that nobody else checks before Discord does."""

from __future__ import annotations

import re
from typing import Any, cast

import discord
import pytest

from bot.chat.commands import COMMANDS
from bot.chat.imagine import ADVICE, CHOICE
from bot.chat.tree import Tree
from bot.sentences import SAMPLERS

NAME = re.compile(r"^[-_'\w]{1,32}$")


@pytest.fixture
def registered() -> list[dict[str, Any]]:
    tree = Tree(cast(Any, discord.Client(intents=discord.Intents(guilds=True))))
    for command in COMMANDS:
        tree.add_command(command)
    return [dict(command.to_dict(tree)) for command in tree.get_commands()]


def test_names_descriptions_and_options_are_as_discord_wants_them(registered: list[dict[str, Any]]) -> None:
    assert {command["name"] for command in registered} == {"imagine", "queue", "cancel", "help"}
    for command in registered:
        options = command["options"]
        for each in (command, *options):
            assert NAME.match(each["name"])
            assert each["name"] == each["name"].lower()
            assert 1 <= len(each["description"]) <= 100
            assert not (each.get("autocomplete") and each.get("choices"))
        needed = [bool(option["required"]) for option in options]
        assert needed == sorted(needed, reverse=True), "what is required comes first"
        assert len(options) <= 25
        assert len(str(command)) < 8000


def test_only_where_the_bot_is_a_member(registered: list[dict[str, Any]]) -> None:
    for command in registered:
        assert command["integration_types"] == [0], "no user installs: pictures are messages of a channel"
        assert command["contexts"] == [0, 1], "servers, and the bot's own direct conversations"


def test_every_sampler_is_offered_with_advice() -> None:
    assert ADVICE.keys() == SAMPLERS.keys()
    assert all(len(f"{SAMPLERS[name]}: {advice}") <= CHOICE for name, advice in ADVICE.items())
