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

    `operator` is the bot's operator, and a plain member here.
    """

    world: Any
    guild: Any
    channel: Any
    owner: Any
    admin: Any
    moderator: Any
    member: Any
    operator: Any
    member_role: Any  # a role that the member has

    async def slash(self, actor: Any, command: str, /, **options: Any) -> Any:
        return await actor.slash(self.channel, command, **options)


async def create_staff(world: Any) -> Staff:
    """Create the staff, after the bot has registered its commands."""
    env: simcord.Env = world.env
    owner_user = env.create_user("olga")
    guild = env.create_guild("Pictures & co", owner=owner_user)
    channel = guild.create_text_channel("studio")
    admin_role = guild.create_role("manager", permissions=discord.Permissions(manage_guild=True, manage_messages=True))
    moderator_role = guild.create_role("janitor", permissions=discord.Permissions(manage_messages=True))
    member_role = guild.create_role("crew")
    roles_by_name = {"admin": [admin_role], "moderator": [moderator_role], "member": [member_role]}
    people = {name: guild.add_member(env.create_user(name), roles=roles) for name, roles in roles_by_name.items()}
    operator = guild.add_member(env.create_user("keeper"))
    world.client.operator_ids = frozenset({operator.id})
    # `world.wait_for_end` reads this channel
    world.guild = guild
    world.channel = channel
    owner = _member_actor(world, guild, owner_user)
    role_permissions: dict[Any, bool] = dict.fromkeys((moderator_role, member_role, operator), True)
    for command in await world.client.tree.fetch_commands():
        guild.set_command_permissions(command, role_permissions)  # an admin allows them every command
    return Staff(world, guild, channel, owner, **people, operator=operator, member_role=member_role)


def _member_actor(world: Any, guild: Any, user: Any) -> Any:
    from simcord.actors import MemberActor

    return MemberActor(world.env, guild, user)


def read_text(result: Any) -> str:
    """All text of a card or an answer; a late answer is a message of its own."""
    message = result.response if hasattr(result, "response") else result
    if message is None and result.followups:
        return read_followups(result)
    assert message is not None, "there was an answer"
    parts = [message.content or ""]
    parts += [component["content"] for component in walk_components(message.components) if component["type"] == 10]
    return "\n".join(parts)


def read_followups(result: Any) -> str:
    """The text of the followups: a late answer, or a message beside the card."""
    return "\n".join(read_text(component) for component in result.followups)


def list_button_labels(result: Any) -> list[str]:
    response = result.response
    return [
        component.get("label", "") for component in walk_components(response.components) if component["type"] == BUTTON
    ]


def list_custom_ids(result: Any) -> list[str]:
    """The custom ids of all buttons and menus."""
    return [
        component["custom_id"] for component in walk_components(result.response.components) if "custom_id" in component
    ]


def read_form_fields(result: Any) -> dict[str, Any]:
    """The fields of a form by their ids."""
    assert result.modal is not None, "a form was opened"
    return {
        component["custom_id"]: component
        for component in walk_components(result.modal["components"])
        if "custom_id" in component
    }
