"""Steering in Discord: keep some images, say more, begin again; the message shows who said what."""

from __future__ import annotations

from typing import Any

import pytest
from simcord.builders import ChannelHandle

from bot.discord.components.steering import ENDED
from shared.discord_jobs import start_paused_job

pytestmark = pytest.mark.asyncio
BUTTONS = ["Cancel", "Keep…", "Say more…", "Again from here"]


async def load_recipe(world: Any, job: str) -> Any:
    return (await world.services.job_views.load_view(job)).task


async def say(member: Any, message: Any, words: str = "", weight: str = "", guidance: str = "same") -> Any:
    opening = await member.click(message, label="Say more…")
    return await submit(member, opening, words, weight, guidance)


async def submit(member: Any, opening: Any, words: str, weight: str = "", guidance: str = "same") -> Any:
    return await member.submit_modal(opening, {"words": words, "weight": weight, "guidance": [guidance]})


async def test_the_author_steers_a_picture_in_a_thread_also_after_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        world.channel = create_thread(world)
        job_message = await start_paused_job(world)
        message = world.message(job_message.response.id)
        (view,) = await world.services.job_views.load_recent()
        assert world.labels(message) == BUTTONS
        menu = await world.alice.click(message, label="Keep…")
        assert menu.ephemeral
        kept = await world.alice.select(menu.response, values=["1", "3"])
        assert "keeps images 2 and 4" in kept.response.content
        assert world.labels(kept.response) == []
        await world.wait_until(lambda: world.painter.recipes[view.id].amendments)
        await world.restart()
        reply = await say(world.alice, message, "@everyone **blue**", "0.5", "more")
        assert reply.ephemeral
        assert "@everyone" not in reply.response.content
        assert "guidance 4.5" in reply.response.content
        await world.wait_until(lambda: len(world.painter.recipes[view.id].amendments) == 3)
        world.painter.pause_step = 9
        world.painter.step_gate.set()
        shown = await world.wait_until(lambda: (m := world.message(message.id)) and "step 8 of 20" in m.content and m)
        assert "💬 **alice**: keeps images 2 and 4 · from step 5" in shown.content
        assert "@everyone" not in shown.content
        assert "**blue**" not in shown.content.replace("\\*\\*blue\\*\\*", "")
        again = await world.alice.click(shown, label="Again from here")
        assert again.acknowledged
        world.painter.pause_step = None
        world.painter.step_gate.set()
        ended = await world.wait_until(
            lambda: (m := world.message(message.id)) and "Cancel" not in world.labels(m) and m
        )
        labels = world.labels(ended)
        assert not set(BUTTONS) & set(labels)
        assert {"U2", "U4"} <= set(labels)
        assert not {"U1", "U3"} & set(labels)
        (second,) = [each for each in await world.services.job_views.load_recent() if each.id != view.id]
        assert second.task.amendments == (await load_recipe(world, view.id)).amendments


@pytest.mark.slow
async def test_others_and_late_presses_get_a_clear_sentence_and_change_nothing(open_world: Any) -> None:
    async with open_world() as world:
        job_message = await start_paused_job(world)
        message = world.message(job_message.response.id)
        (view,) = await world.services.job_views.load_recent()
        for label in ("Keep…", "Say more…"):
            refusal = await world.bob.click(message, label=label)
            assert refusal.ephemeral
            assert "Only alice may steer this picture" in refusal.response.content
        opening = await world.alice.click(message, label="Say more…")
        empty = await submit(world.alice, opening, " ")
        assert "Nothing to change" in empty.response.content
        menu = await world.alice.click(message, label="Keep…")
        late = await world.alice.click(message, label="Say more…")
        world.painter.step_gate.set()
        await world.wait_until(lambda: "Cancel" not in world.labels(world.message(message.id)))
        assert (await load_recipe(world, view.id)).amendments == ()
        refused = [await submit(world.alice, late, "blue"), await world.alice.select(menu.response, values=["0"])]
        for each in refused:
            assert ENDED[:10] in each.response.content or "Too late" in each.response.content
        assert (await load_recipe(world, view.id)).amendments == ()


def create_thread(world: Any) -> ChannelHandle:
    thread = world.env.backend.create_thread(world.channel.id, "apples", world.alice.id)
    return ChannelHandle(world.env, world.guild, thread)
