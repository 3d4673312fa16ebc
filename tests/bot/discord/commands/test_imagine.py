"""`/imagine` and its buttons, used by members, over real services, store and broker."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import discord
import msgspec
import pytest
from PIL import Image

from bot.discord.client import DOUBLE_CLICK_SECONDS, IdempotencyKeys
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.policy.permissions import forbidden_reason, job_ref
from engine.contract import Lora
from shared.discord_jobs import text

pytestmark = pytest.mark.asyncio


def open_picture(world: Any, message: discord.Message) -> Any:
    """Decodes the one picture of a message."""
    (attachment,) = message.attachments
    payload = world.env.backend.cdn.get(attachment.url)
    return Image.open(io.BytesIO(payload)).convert("RGB")


def read_step(picture: Any) -> int:
    """Reads the step that the worker painted into the grid's first cell."""
    return round((picture.getpixel((5, 5))[1] - 20) / 10)


async def test_a_prompt_becomes_a_picture(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 7
        result = await world.alice.slash(world.channel, "imagine", prompt="terrier, looking up", seed=3)
        assert result.acknowledged
        assert not result.ephemeral
        assert "terrier, looking up" in text(result)
        assert "Next in line" in text(result)
        assert world.labels(result.response) == ["Cancel"]

        identity = result.response.id
        live = await world.wait_until(lambda: (m := world.message(identity)) and "step 6 of 20" in m.content and m)
        assert "30 %" in live.content
        assert "<t:" in live.content
        assert read_step(open_picture(world, live)) == 6, "the newest frame"
        world.painter.pause_step = None
        world.painter.step_gate.set()

        final_message = await world.wait_for_end(result)
        assert world.labels(final_message) == [
            "U1",
            "U2",
            "U3",
            "U4",
            "🔄",
            "V1",
            "V2",
            "V3",
            "V4",
            "More…",
            "Remix",
            "Film",
            "Walk",
            "🚩",
            "🗑️",
        ]
        assert "seed 3" in final_message.content
        grid = open_picture(world, final_message)
        assert grid.width > 256
        assert [grid.getpixel(position)[0] for position in ((5, 5), (grid.width - 5, 5), (5, grid.height - 5))] == [
            30,
            90,
            150,
        ]
        assert final_message.attachments[0].filename.endswith(".png")
        assert final_message.attachments[0].description == "terrier, looking up"
        assert len(world.channel.history()) == 1, "one message for one job"


async def test_buttons_survive_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        first = await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        await world.restart()

        upscale = await world.wait_for_end(await world.bob.click(first, label="U2"))
        assert "nlarged ×4" in upscale.content
        assert "by Lanczos" in upscale.content
        assert open_picture(world, upscale).size == (256, 256)
        assert open_picture(world, upscale).getpixel((9, 9))[0] == 90

        assert world.labels(upscale) == [
            "Vary (Subtle)",
            "Vary (Strong)",
            "Zoom out 1.5×",
            "Zoom out 2×",
            "Branch…",
            "← Pan",
            "Pan →",
            "↑ Pan",
            "↓ Pan",
            "Edit…",
            "Compare",
            "Remix",
            "❤️",
            "🚩",
            "🗑️",
        ]
        await world.wait_for_end(await world.bob.click(upscale, label="Vary (Strong)"))
        (variation_view,) = [view for view in await world.services.job_views.load_recent() if view.action == "vary"]
        assert variation_view.parent_image == (job_of(first), 1)

        variation = await world.wait_for_end(await world.alice.click(first, label="V3"))
        reroll = await world.wait_for_end(await world.alice.click(first, custom_id=f"reroll:{job_of(first)}"))
        views = {view.action: view for view in reversed(await world.services.job_views.load_recent())}
        assert views["vary"].parent_image == (job_of(first), 2)
        assert views["vary"].task.lineage
        assert views["reroll"].task.seed != views["imagine"].task.seed
        assert views["upscale"].member_name == "bob"
        assert len({first.id, upscale.id, variation.id, reroll.id}) == 4


def job_of(message: Any) -> str:
    return message.components[0].children[0].custom_id.split(":")[1]


@pytest.mark.slow
async def test_two_quick_presses_make_one_job(open_world: Any) -> None:
    async with open_world() as world:
        first = await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        one = await world.alice.click(first, label="V1")
        second_click = await world.alice.click(first, label="V1")
        assert second_click.ephemeral
        assert str(one.response.id) in text(second_click)
        other = await world.bob.click(first, label="V1")
        assert not other.ephemeral
        await world.wait_for_end(one)
        await world.wait_for_end(other)
        assert [view.action for view in await world.services.job_views.load_recent()].count("vary") == 2


async def test_a_refused_press_does_not_count_as_the_first(open_world: Any, monkeypatch: Any) -> None:
    async with open_world() as world:
        first = await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        original_vary = world.services.variations.vary

        async def refuse_queue_full(*_: object, **__: object) -> None:
            monkeypatch.setattr(world.services.variations, "vary", original_vary)
            raise UserError("Your queue is full.", 429)

        monkeypatch.setattr(world.services.variations, "vary", refuse_queue_full)
        refusal = await world.alice.click(first, label="V1")
        assert "Your queue is full." in text(refusal)
        accepted = await world.alice.click(first, label="V1")
        assert not accepted.ephemeral, "a job needs a card"
        await world.wait_for_end(accepted)


async def test_repeated_presses_count_as_one_for_a_short_time_only() -> None:
    now = [0.0]
    idempotency_keys = IdempotencyKeys(lambda: now[0])
    assert idempotency_keys.key_for("vary:A:0", "alice", "1") == ("press:1", True)
    assert idempotency_keys.key_for("vary:A:0", "alice", "2") == ("press:1", False)
    assert idempotency_keys.key_for("vary:A:1", "alice", "3") == ("press:3", True)
    assert idempotency_keys.key_for("vary:A:0", "bob", "4") == ("press:4", True)
    now[0] = DOUBLE_CLICK_SECONDS + 0.1
    assert idempotency_keys.key_for("vary:A:0", "alice", "5") == ("press:5", True), "a later press is deliberate"


async def test_cancel_is_for_the_author_and_moderators(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 3
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        refusal = await world.bob.click(result.response, label="Cancel")
        assert refusal.ephemeral
        assert "Only alice and moderators" in text(refusal)
        reply = await world.alice.click(result.response, label="Cancel")
        assert reply.ephemeral
        message = await world.wait_for_end(result)
        assert "ancelled" in message.content
        assert world.labels(message) == ["🔄"]
        late_click = await world.alice.click(message, custom_id=f"reroll:{job_of(message)}")
        moderator = world.guild.add_member(
            world.env.create_user("carol"),
            roles=[world.guild.create_role("mod", permissions=discord.Permissions(manage_messages=True))],
        )
        assert not (await moderator.click(late_click.response, label="Cancel")).response.content.startswith("🚫")
        assert "ancelled" in (await world.wait_for_end(late_click)).content


async def test_refusals_are_ephemeral_and_give_a_reason(open_world: Any) -> None:
    async with open_world() as world:
        invalid_reply = await world.alice.slash(world.channel, "imagine", prompt="apple --stepps 5")
        assert invalid_reply.ephemeral
        assert "steps" in text(invalid_reply)
        assert "🚫" in text(invalid_reply)
        world.painter.pause_step = 1
        for _ in range(10):
            assert not (await world.alice.slash(world.channel, "imagine", prompt="apple")).ephemeral
        queue_full_reply = await world.alice.slash(world.channel, "imagine", prompt="apple")
        assert queue_full_reply.ephemeral
        assert "queue is full" in text(queue_full_reply)
        assert "You can submit again" in text(queue_full_reply)
        assert len(await world.services.job_views.load_recent()) == 10

        queue = await world.bob.slash(world.channel, "queue")
        assert queue.ephemeral
        assert "alice" in text(queue)
        assert "apple" in text(queue)


async def test_a_prompt_pings_nobody_and_breaks_nothing(open_world: Any) -> None:
    async with open_world() as world:
        hostile_text = f"@everyone **bold** <@{world.bob.id}> [a](http://b.c) `x"
        result = await world.alice.slash(world.channel, "imagine", prompt=hostile_text)
        for message in (world.message(result.response.id), await world.wait_for_end(result)):
            assert not message.mention_everyone
            assert message.mentions == []
            assert "@everyone" not in message.content
            assert f"<@{world.bob.id}>" not in message.content
            assert "**bold**" not in message.content


async def test_the_answer_says_at_once_that_no_worker_is_online(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert "o worker is online" in text(result)


@pytest.mark.slow
async def test_imagine_suggests_models_samplers_and_prompts(open_world: Any) -> None:
    async with open_world() as world:
        models = await world.alice.autocomplete(world.channel, "imagine", "model", "emb")
        assert [choice["value"] for choice in models] == ["embedded"]
        samplers = await world.alice.autocomplete(world.channel, "imagine", "sampler", "")
        assert {choice["value"] for choice in samplers} == {"ddpm", "ddim", "euler", "dpmpp_2m"}
        await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        own_suggestions = await world.alice.autocomplete(world.channel, "imagine", "prompt", "red")
        assert [choice["value"] for choice in own_suggestions] == ["red apple"]
        assert await world.bob.autocomplete(world.channel, "imagine", "prompt", "red") == []


async def test_options_reach_the_recipe(open_world: Any) -> None:
    async with open_world() as world:
        options = {
            "steps": 5,
            "seed": 9,
            "guidance": 2.5,
            "sampler": "euler",
            "count": 1,
            "aspect": "2:1",
            "negative": "fog",
        }
        result = await world.alice.slash(
            world.channel, "imagine", prompt="red apple --steps 9", model="embedded", **options
        )
        final_message = await world.wait_for_end(result)
        assert world.labels(final_message) == ["U1", "🔄", "V1", "More…", "Remix", "Film", "❤️", "🚩", "🗑️"]
        (view,) = await world.services.job_views.load_recent()
        recipe = view.task
        assert (recipe.steps, recipe.seed, recipe.guidance, recipe.sampler) == (5, 9, 2.5, "euler")
        assert (recipe.count, recipe.negative) == (1, "fog")
        assert recipe.width == 2 * recipe.height


async def test_sampler_interval_and_lora_reach_the_recipe(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.model = msgspec.structs.replace(
            world.painter.model, samplers=("ddpm", "euler_ancestral"), loras=(Lora("style", 0.7, "abc"),)
        )
        await world.wait_until(lambda: world.services.catalog.find_profile(None).loras)
        suggestions = await world.alice.autocomplete(world.channel, "imagine", "sampler", "")
        assert [choice["value"] for choice in suggestions] == ["ddpm", "euler_ancestral"]
        suggestions = await world.alice.autocomplete(world.channel, "imagine", "lora", "sty")
        assert [choice["value"] for choice in suggestions] == ["style:0.7"]
        options = {"sampler": "Euler a", "interval": "0.2-0.8", "lora": "style:0.5", "relax": True}
        result = await world.alice.slash(world.channel, "imagine", prompt="(red:1.2) apple", **options)
        final_message = await world.wait_for_end(result)
        assert "guidance 3 from 0.2 to 0.8" in final_message.content
        assert "**red apple**" in final_message.content
        (view,) = await world.services.job_views.load_recent()
        assert (view.task.sampler, view.task.guidance_start) == ("euler_ancestral", 0.2)
        assert view.task.loras == (Lora("style", 0.5, "abc"),)
        assert view.task.concepts[0].text == "(red:1.2) apple"
        await world.wait_for_end(await world.alice.slash(world.channel, "reproduce", job=view.id))
        newest_recipe = (await world.services.job_views.load_recent())[0].task
        assert newest_recipe == msgspec.structs.replace(view.task, bucket=newest_recipe.bucket)


async def test_the_waiting_card_shows_the_loading_model_until_the_job_runs(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.loading_progress = (0.1, 0.404)
        world.painter.pause_step = 0
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert "loading" not in text(result)
        identity = result.response.id
        message = await world.wait_until(lambda: (m := world.message(identity)) and "40 %" in m.content and m)
        assert message.content.splitlines()[1] == "⏳ loading embedded, 40 %"
        assert world.labels(message) == ["Cancel"]
        world.painter.step_gate.set()
        final_message = await world.wait_for_end(result)
        assert "loading" not in final_message.content
        assert world.labels(final_message)[0] == "U1"


async def test_permutations_get_a_message_each(open_world: Any) -> None:
    async with open_world() as world:
        result = await world.alice.slash(world.channel, "imagine", prompt="{red, green} apple")
        assert len(result.followups) == 1
        await world.wait_for_end(result)
        other = result.followups[0].id
        final_message = await world.wait_until(
            lambda: (m := world.message(other)) and "Cancel" not in world.labels(m) and m
        )
        assert "green apple" in final_message.content
        assert len(world.channel.history()) == 2


async def test_help_is_short_and_private(open_world: Any) -> None:
    async with open_world() as world:
        result = await world.alice.slash(world.channel, "help")
        assert result.ephemeral
        assert "/imagine" in text(result)


async def test_a_waiting_job_runs_when_a_worker_comes(open_world: Any) -> None:
    async with open_world() as world:
        await world.painter.leave_pool()
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert "No worker is online" in text(result)
        await world.painter.rejoin_pool()
        assert world.labels(await world.wait_for_end(result))[0] == "U1"


@pytest.mark.slow
async def test_slow_services_still_answer_in_time(open_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world() as world:
        original_imagine = world.services.jobs.imagine

        async def imagine_slowly(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(2.0)
            return await original_imagine(*args, **kwargs)

        monkeypatch.setattr(world.services.jobs, "imagine", imagine_slowly)
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert [each.json["type"] for each in world.env.http_requests if each.path.endswith("/callback")] == [5]
        assert world.labels(await world.wait_for_end(result))[0] == "U1"
        refusal = await world.alice.slash(world.channel, "imagine", prompt="red apple --stepps 3")
        assert refusal.response is None, "the public spinner is gone"
        (followup,) = refusal.followups
        assert followup.ephemeral
        assert "🚫" in followup.content


async def test_without_permission_to_attach_files_imagine_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        everyone_role = world.guild.default_role
        silent_channel = world.guild.create_text_channel(
            "silent", overwrites={everyone_role: discord.PermissionOverwrite(attach_files=False)}
        )
        result = await world.alice.slash(silent_channel, "imagine", prompt="red apple")
        assert result.ephemeral
        assert "Attach Files" in text(result)
        assert await world.services.job_views.load_recent() == []


async def test_imagine_works_in_a_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        user = world.alice.user
        result = await user.slash("imagine", prompt="red apple")
        assert "red apple" in text(result)
        await world.wait_until(lambda: world.painter.finished_jobs)
        final_message = await world.wait_until(lambda: (m := user.dm_channel.history()[-1]).attachments and m)
        await world.wait_until(lambda: "Cancel" not in world.labels(user.dm_channel.history()[-1]))
        assert final_message.id == result.response.id
        assert "red apple" not in text(await world.bob.slash(world.channel, "queue"))


async def test_another_servers_jobs_are_out_of_reach(open_world: Any) -> None:
    async with open_world() as world:
        message = await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        other_guild = world.env.create_guild("Elsewhere")
        other_member = other_guild.add_member(world.env.create_user("dora"))
        view = await world.services.job_views.load_view(job_of(message))
        asker = Member("discord:1", "dora", f"discord:{other_guild.id}")
        assert forbidden_reason("vary", asker, job_ref(view))
        assert forbidden_reason("upscale", asker, job_ref(view))
        queue = await other_member.slash(other_guild.create_text_channel("pictures"), "queue")
        assert "apple" not in text(queue)


async def test_the_token_delivers_to_a_channel_that_the_bot_cannot_see(open_world: Any) -> None:
    async with open_world() as world:
        hidden_channel = world.guild.create_text_channel(
            "hidden", overwrites={world.client.user: discord.PermissionOverwrite(view_channel=False)}
        )
        result = await world.alice.slash(hidden_channel, "imagine", prompt="red apple")
        assert not result.ephemeral
        await world.wait_until(lambda: "Cancel" not in world.labels(result.response))
        assert world.labels(result.response)[0] == "U1"
