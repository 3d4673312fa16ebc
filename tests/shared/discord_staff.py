"""Members with roles for the settings tests, and helpers that read the cards they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import discord
import simcord
from simcord.components import walk_components

BUTTON = 2


@dataclass
class Staff:
    """A second server with its owner, an admin, a moderator and a plain member, who sees every command.

    `keeper` is the bot's operator, and a plain member here.
    """

    world: Any
    guild: Any
    channel: Any
    owner: Any
    admin: Any
    moderator: Any
    member: Any
    keeper: Any
    crew: Any  # a role that the member has

    async def slash(self, who: Any, command: str, /, **options: Any) -> Any:
        return await who.slash(self.channel, command, **options)


async def hired(world: Any) -> Staff:
    """Create the staff, after the bot has registered its commands."""
    env: simcord.Env = world.env
    boss = env.create_user("olga")
    guild = env.create_guild("Pictures & co", owner=boss)
    channel = guild.create_text_channel("studio")
    manager = guild.create_role("manager", permissions=discord.Permissions(manage_guild=True, manage_messages=True))
    janitor = guild.create_role("janitor", permissions=discord.Permissions(manage_messages=True))
    crew = guild.create_role("crew")
    found = {"admin": [manager], "moderator": [janitor], "member": [crew]}
    people = {name: guild.add_member(env.create_user(name), roles=roles) for name, roles in found.items()}
    keeper = guild.add_member(env.create_user("keeper"))
    world.client.operator_ids = frozenset({keeper.id})
    world.guild, world.channel = guild, channel  # where `world.ended` looks
    owner = _member_actor(world, guild, boss)
    everybody: dict[Any, bool] = dict.fromkeys((janitor, crew, keeper), True)
    for command in await world.client.tree.fetch_commands():
        guild.set_command_permissions(command, everybody)  # an admin let them see every command
    return Staff(world, guild, channel, owner, **people, keeper=keeper, crew=crew)


def _member_actor(world: Any, guild: Any, user: Any) -> Any:
    from simcord.actors import MemberActor

    return MemberActor(world.env, guild, user)


def text(result: Any) -> str:
    """All text of a card or an answer; a late answer is a message of its own."""
    message = result.response if hasattr(result, "response") else result
    if message is None and result.followups:
        return said(result)
    assert message is not None, "there was an answer"
    parts = [message.content or ""]
    parts += [each["content"] for each in walk_components(message.components) if each["type"] == 10]
    return "\n".join(parts)


def said(result: Any) -> str:
    """The text of the followups: a late answer, or a message beside the card."""
    return "\n".join(text(each) for each in result.followups)


def buttons(result: Any) -> list[str]:
    response = result.response
    return [each.get("label", "") for each in walk_components(response.components) if each["type"] == BUTTON]


def ids(result: Any) -> list[str]:
    """The custom ids of all buttons and menus."""
    return [each["custom_id"] for each in walk_components(result.response.components) if "custom_id" in each]


def fields(result: Any) -> dict[str, Any]:
    """The fields of a form by their ids."""
    assert result.modal is not None, "a form was opened"
    return {each["custom_id"]: each for each in walk_components(result.modal["components"]) if "custom_id" in each}
