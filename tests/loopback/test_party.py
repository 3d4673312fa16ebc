"""A party of five over the wire: they say and vote, the bot is killed midway; film and credits come at the end."""

from __future__ import annotations

from typing import Any

import pytest

from tools.loopback.server import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.slow
async def test_a_party_of_five_goes_on_after_a_kill_and_causes_no_429(scene: Any) -> None:
    refused_before = scene.loopback.rates.refused_count
    painter = scene.harness.painter
    painter.pause_step = 12
    act = await scene.alice.slash(scene.channel, "party", prompt="red apple --steps 20 --count 2", minutes=1)
    message = await act.wait_for_message()
    await wait_until(lambda: "A party" in message.content)
    people = [scene.alice, *(scene.person(name) for name in ("bob", "cid", "dan", "eve"))]
    words = ("blue", "snow", "a hat", "at night", "fog")
    for person, phrase in zip(people[:4], words, strict=False):
        await (await person.slash(scene.channel, "say", words=phrase)).wait_for_message()
    await wait_until(lambda: any(recipe.amendments for recipe in painter.recipes.values()))
    await scene.harness.bot.kill()
    await scene.harness.bot.start()
    await (await people[4].slash(scene.channel, "say", words=words[4])).wait_for_message()
    await wait_until(lambda: "fog" in str(list(painter.recipes.values())))
    scene.resume_jobs()
    (final,) = await scene.wait_for_finals(act)
    assert all(name in final.content for name in ("🎉", "bob “snow”", "eve “fog”"))
    assert [each["filename"][-9:] for each in final.attachments][-1] == "film.webp"
    assert scene.loopback.rates.refused_count == refused_before, "the bot caused a 429"
