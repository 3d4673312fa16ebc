"""A member tries every command, button, menu and form of the bot; each act gets an answer by Discord's rules.

Other tests check the meaning. Here no act may stay without an answer, and the log may contain no error.
"""

from __future__ import annotations

import io
from typing import Any

import discord
import pytest
from PIL import Image

from tools.loopback.exploration import Explorer
from tools.loopback.server import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest.mark.slow
async def test_every_command_and_component_a_moderator_can_reach_is_answered(scene: Any) -> None:
    harness = scene.harness
    role = harness.guild.create_role("all", permissions=discord.Permissions.all())
    moderator = scene.person("mod", roles=[role])
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(buffer, "PNG")
    scene.alice = moderator
    act = await scene.imagine("terrier")
    await scene.wait_for_finals(act)
    explorer = Explorer(moderator, scene.channel, role, buffer.getvalue(), {"prompt": "terrier"})
    answered_acts = [act, *await explorer.try_menus(act.message), *await explorer.try_commands()]
    await explorer.follow_answers(answered_acts)
    await wait_until(
        lambda: harness.loopback.clock() - harness.loopback.requests[-1].received_at > 1.0
    )  # deferred work is done
    print("\n".join(explorer.steps))
    assert explorer.unanswered_steps == []
    assert "Traceback" not in harness.bot.read_output()
    for name in ("/imagine", "/queue", "/help", "form", "press up", "press vary"):
        assert any(step.startswith(name) for step in explorer.steps), name
