"""Discord's rates: every command, menu, press, choice, form and suggestion is charged to its member, once."""

from __future__ import annotations

from typing import Any

import discord
import pytest

from bot.discord.components.forms import form_id
from bot.discord.declarations import list_command_rates, list_commands, list_dynamic_items
from bot.policy.limits import PRICES, TokenBuckets
from shared.feature_rows import read_feature_rows

pytestmark = pytest.mark.asyncio

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
PRESSES = {  # a custom id of each button that outlives a restart, and of a settings card
    "JobButton": "dismiss:" + JOB + ":999",
    "PageButton": "mine:all:0:f",
    "settings": "settings:show",
    **dict(row.split() for row in read_feature_rows("presses")),
}
MENUS = {
    "PictureMenu",
    "KeyframeMenu",
    "KeepSelect",
    "JobSelect",
}  # they load their job first, and are checked as it is


class Refusing(TokenBuckets):
    """Empty buckets. `asked`: what was charged."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def take(self, payer: str, action: Any) -> float:
        self.asked.append((payer, action))
        return 3.0


async def test_every_command_and_menu_has_its_rate() -> None:
    rates = list_command_rates()
    assert {command.name for command in list_commands()} == set(rates)
    assert set(rates.values()) <= set(PRICES)
    assert {item.__name__ for item in list_dynamic_items()} == (set(PRESSES) - {"settings"}) | MENUS


async def test_a_member_who_asks_too_often_is_refused_everywhere(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        answer = await world.alice.slash(world.channel, "help")
        assert "too much at once" not in answer.response.content
        opening = await world.alice.context_menu(world.channel, "Use as prompt", await send(world, "a red apple"))
        buckets = world.client.token_buckets = Refusing()
        answers = [await world.alice.slash(world.channel, name) for name in ("help", "info", "queue")]
        answers.append(await world.alice.slash(world.channel, "imagine", prompt="a cat"))
        card = await send(world, "everything at once", *PRESSES.values())
        answers += [await world.alice.click(card, custom_id=custom_id) for custom_id in PRESSES.values()]
        assert opening.modal["custom_id"].startswith(form_id("prompt", "0" * 26))
        answers.append(await world.alice.submit_modal(opening, {"prompt": "a red apple"}))
        for answer in answers:
            assert "That is too much at once: try again in about 3 s." in answer.response.content
            assert answer.response.ephemeral
        assert {payer for payer, _ in buckets.asked} == {f"discord:{world.alice.id}"}
        assert len(buckets.asked) == len(answers), "each is charged once"
        assert await world.services.job_views.load_recent() == []


async def send(world: Any, text: str, *custom_ids: str) -> discord.Message:
    view = discord.ui.View(timeout=None)
    for custom_id in custom_ids:
        view.add_item(discord.ui.Button(label=custom_id[:40], custom_id=custom_id))
    view.stop()
    channel = world.client.get_partial_messageable(world.channel.id, guild_id=world.guild.id)
    return await channel.send(text, **({"view": view} if custom_ids else {}))
