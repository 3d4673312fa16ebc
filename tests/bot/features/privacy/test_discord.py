"""`/my-data` and `/forget-me`, used by members."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import discord
import pytest

from bot.discord.cards.job_cards import render_refusal
from bot.features.privacy import discord as commands
from bot.jobs.views import REMOVAL_SENTENCES
from bot.services.data_deletion import DataDeletion
from shared.discord_jobs import text

pytestmark = pytest.mark.asyncio


async def imagine(world: Any, member: Any, prompt: str) -> Any:
    return await world.wait_for_end(
        await member.slash(world.channel, "imagine", prompt=f"{prompt} --count 1 --steps 2")
    )


async def wait_until_forgotten(world: Any, member: Any) -> None:
    data_deletion = world.app.services.get(DataDeletion)
    member_id = f"discord:{member.id}"
    await world.wait_until(lambda: True)
    while await data_deletion.is_under_way(member_id):
        await world.wait_until(lambda: True)


async def test_my_data_packs_only_the_members_own_jobs_and_pictures(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        await imagine(world, world.alice, "red apple")
        await imagine(world, world.bob, "green pear")
        result = await world.alice.slash(world.channel, "my-data")
        assert result.ephemeral
        assert "1 job, in `jobs.json`, and 1 picture" in text(result)
        (attachment,) = result.response.attachments
        with zipfile.ZipFile(io.BytesIO(world.env.backend.cdn.get(attachment.url))) as archive:
            exported_jobs = archive.read("jobs.json").decode()
            (picture,) = [name for name in archive.namelist() if name != "jobs.json"]
            assert archive.read(picture).startswith(b"\x89PNG")
        assert [one["prompt"].partition(" --")[0] for one in json.loads(exported_jobs)["jobs"]] == ["red apple"]
        assert "pear" not in exported_jobs
        assert "token" not in exported_jobs
        monkeypatch.setattr(commands, "MAX_EXPORT_BYTES", 1500)
        small = await world.alice.slash(world.channel, "my-data")
        assert "too large to be sent here" in text(small) or text(small).startswith(render_refusal("")[:1])


@pytest.mark.slow
async def test_forget_me_deletes_everything_of_the_member_after_a_confirmation(open_world: Any) -> None:
    async with open_world() as world:
        alice_message = await imagine(world, world.alice, "red apple")
        other = await imagine(world, world.bob, "green pear")
        job = next(view for view in await world.services.job_views.load_recent() if "red apple" in view.prompt).id
        question = await world.alice.slash(world.channel, "forget-me")
        assert question.ephemeral
        assert "That is 1 job with their pictures" in text(question)
        assert "Blocks and moderators' decisions stay." in text(question)
        assert "red apple" in alice_message.content, "nothing is deleted yet"
        await world.restart()
        await world.alice.click(question.response, label="Remove everything")
        assert "under way: 1 job" in text(question)
        assert not question.response.components
        await wait_until_forgotten(world, world.alice)
        message_ids = [message.id for message in world.channel.history()]
        assert alice_message.id not in message_ids
        assert other.id in message_ids
        assert await world.app.store.get_job(job) is None
        old_message = await world.client.get_partial_messageable(world.channel.id, guild_id=world.guild.id).send(
            "left", view=make_button_view(f"reroll:{job}")
        )
        reply = await world.bob.click(old_message, custom_id=f"reroll:{job}")
        assert text(reply) == render_refusal(REMOVAL_SENTENCES["forgotten"])
        second_request = await world.alice.slash(world.channel, "forget-me")
        assert "That is 0 jobs" in text(second_request)


def make_button_view(custom_id: str) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    view.add_item(discord.ui.Button(label="again", custom_id=custom_id))
    view.stop()
    return view


@pytest.mark.slow
async def test_forget_me_cancels_running_jobs_and_passes_over_a_message_it_cannot_delete(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 1
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple --count 1")
        await world.wait_until(lambda: not world.painter.step_gate.is_set())
        identity = result.response.id
        await world.app.services.deliveries.update_address(
            (await world.services.job_views.load_queue(None))[0].id, channel="1", token=""
        )
        question = await world.alice.slash(world.channel, "forget-me")
        await world.alice.click(question.response, label="Remove everything")
        await wait_until_forgotten(world, world.alice)
        assert await world.services.job_views.load_queue(None) == []
        assert identity in [message.id for message in world.channel.history()], "the bot cannot find it to delete it"
