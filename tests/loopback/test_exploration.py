"""Everything that the bot offers can be typed, pressed, chosen and filled in; each act is answered by Discord's rules.

Other tests check the meaning. Here no act may stay without an answer, and the log may contain no error.
"""

from __future__ import annotations

import io
from typing import Any

import discord
import pytest
from PIL import Image

from loopback.exploration import Walker
from loopback.server import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


async def test_every_command_and_component_a_moderator_can_reach_is_answered(scene: Any) -> None:
    street = scene.street
    role = street.guild.create_role("all", permissions=discord.Permissions.all())
    who = scene.person("mod", roles=[role])
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(out, "PNG")
    scene.alice = who
    act = await scene.imagine("terrier")
    await scene.shown(act)
    walker = Walker(who, scene.channel, role, out.getvalue(), {"prompt": "terrier"})
    answered = [act, *await walker.menus(act.message), *await walker.commands()]
    await walker.follow(answered)
    await until(lambda: street.loopback.clock() - street.loopback.asked[-1].at > 1.0)  # deferred work is done
    print("\n".join(walker.said))
    assert walker.silent == []
    assert "Traceback" not in street.bot.printed()
    for name in ("/imagine", "/queue", "/help", "form", "press up", "press vary"):
        assert any(step.startswith(name) for step in walker.said), name
