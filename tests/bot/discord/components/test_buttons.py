"""Buttons under finished pictures: remix by form, film, favourite, delete, report."""

from __future__ import annotations

import io
from typing import Any

import discord
import pytest
from PIL import Image

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.variations import VARIATION_STRENGTHS
from shared.discord_jobs import create_moderator, imagine, newest_view, text

pytestmark = pytest.mark.asyncio


def form_values(result: Any) -> dict[str, Any]:
    """The values in the fields of a form."""
    nodes = [row["component"] for row in result.modal["components"]]
    return {node["custom_id"]: node.get("value") or "" for node in nodes}


def admin(world: Any) -> Member:
    return Member("discord:1", "ada", f"discord:{world.guild.id}", is_admin=True)


@pytest.mark.slow
async def test_v_varies_by_preference_and_an_upscale_offers_both_strengths(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7)
        await world.wait_for_end(await world.alice.click(grid, label="V2"))
        assert (await newest_view(world)).task.lineage[-1].strength == VARIATION_STRENGTHS["subtle"]
        await world.client.services.preferences.set_preference(f"discord:{world.alice.id}", "variation", "strong")
        await world.wait_for_end(await world.alice.click(grid, label="V3"))
        assert (await newest_view(world)).task.lineage[-1].strength == VARIATION_STRENGTHS["strong"]
        upscale = await world.wait_for_end(await world.alice.click(grid, label="U1"))
        for label, strength in (("Vary (Subtle)", "subtle"), ("Vary (Strong)", "strong")):
            await world.wait_for_end(await world.bob.click(upscale, label=label))
            view = await newest_view(world)
            assert (view.task.lineage[-1].strength, view.parent_image[1]) == (VARIATION_STRENGTHS[strength], 0)  # pyright: ignore[reportArgumentType] - of the two above


async def test_a_remix_form_survives_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, "a \\{red\\} apple --no fog --count 2", seed=7)
        first = await newest_view(world)
        form = await world.bob.click(grid, label="Remix")
        assert form_values(form) == {"prompt": "a \\{red\\} apple", "negative": "fog"}
        await world.restart()
        result = await world.bob.submit_modal(form, {"prompt": "a blue apple", "negative": "snow"})
        card = await world.wait_for_end(result)
        assert "a blue apple" in card.content
        assert "remixed" in card.content
        view = await newest_view(world)
        assert (view.task.seed, view.task.negative, view.task.count) == (7, "snow", 2)
        assert (view.action, view.parent_image, view.member_name) == ("remix", (first.id, 0), "bob")
        invalid_reply = await world.bob.submit_modal(
            await world.bob.click(grid, label="Remix"), {"prompt": "apple --stepps 3", "negative": ""}
        )
        assert invalid_reply.ephemeral
        assert "--steps" in text(invalid_reply).replace("\\", "")


async def test_with_the_remix_preference_a_button_asks_for_a_prompt_first(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7)
        await world.client.services.preferences.set_preference(f"discord:{world.alice.id}", "remix", "on")
        form = await world.alice.click(grid, label="V2")
        assert form.modal["title"] == "Vary subtly picture 2"
        await world.wait_for_end(await world.alice.submit_modal(form, {"prompt": "green apple", "negative": ""}))
        view = await newest_view(world)
        assert (view.task.lineage[-1].strength, view.parent_image[1]) == (VARIATION_STRENGTHS["subtle"], 1)
        form = await world.alice.click(grid, custom_id=f"reroll:{view.parent_image[0]}")
        await world.wait_for_end(await world.alice.submit_modal(form, {"prompt": "pink apple", "negative": ""}))
        view = await newest_view(world)
        assert (view.prompt, view.task.lineage) == ("pink apple", ())
        assert view.task.seed != 7
        assert (await world.alice.click(grid, label="U1")).modal is None, "an upscale has no prompt"


async def test_the_film_button_posts_a_public_film(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        result = await world.bob.click(grid, label="Film")
        (attachment,) = result.response.attachments
        film = Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url)))
        assert film.format == "WEBP"
        assert not result.ephemeral


async def test_the_favourite_button_toggles(open_world: Any) -> None:
    async with open_world() as world:
        single = await imagine(world, count=1)
        job = (await newest_view(world)).id
        first = await world.bob.click(single, custom_id=f"favour:{job}:0")
        assert first.ephemeral
        assert "favourite" in text(first)
        page = await world.client.services.history.load_page(f"discord:{world.bob.id}", "favourites", 1)
        assert [entry.view.id for entry in page.entries] == [job]
        assert "No favourite" in text(await world.bob.click(single, custom_id=f"favour:{job}:0"))


async def test_the_author_deletes_a_job_and_its_upscale_after_a_confirmation(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        job = (await newest_view(world)).id
        upscale = await world.wait_for_end(await world.bob.click(grid, label="U1"))
        refusal = await world.bob.click(grid, custom_id=f"delete:{job}")
        assert "Only alice and moderators (who may manage messages in the whole server) may delete" in text(refusal)
        question = await world.alice.click(grid, custom_id=f"delete:{job}")
        assert question.ephemeral
        assert "the 4 pictures of **red apple** for good" in text(question)
        await world.alice.click(question.response, label="Delete them")
        assert "gone for good" in text(question)
        assert world.labels(question.response) == []
        remaining_ids = {message.id for message in world.channel.history()}
        assert not {grid.id, upscale.id} & remaining_ids
        with pytest.raises(UserError):
            await world.services.gallery.read_picture(job, 0)
        with pytest.raises(UserError, match="deleted"):
            await world.services.variations.reroll(job, admin(world), await world.deliveries.answer_destination(job))


async def test_delete_removes_the_notice_and_the_answer_of_a_long_job(open_world: Any) -> None:
    async with open_world() as world:
        await world.client.services.rule_admin.set_rule(admin(world), "guild", "", "long_ping", "0")
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.wait_until(lambda: len(world.channel.history()) == 2)
        notice = await world.wait_until(
            lambda: next((one for one in world.channel.history() if "U1" in world.labels(one)), None)
        )
        assert notice.id != result.response.id
        job = (await newest_view(world)).id
        question = await world.alice.click(notice, custom_id=f"delete:{job}")
        await world.alice.click(question.response, label="Delete them")
        assert world.channel.history() == []


async def test_after_the_token_expires_delete_uses_the_channel_route(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        job = (await newest_view(world)).id
        await world.deliveries.update_address(job, token_until="0")
        question = await world.alice.click(grid, custom_id=f"delete:{job}")
        await world.alice.click(question.response, label="Delete them")
        assert world.channel.history() == []
        (request,) = [each for each in world.env.http_requests if each.method == "DELETE"]
        assert request.path.startswith("/channels/")


async def test_delete_reports_a_message_that_discord_keeps_and_deletes_the_pictures(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        job = (await newest_view(world)).id
        world.env.inject_error("DELETE", "*", status=403, code=50001, message="Missing Access", times=None)
        question = await world.alice.click(grid, custom_id=f"delete:{job}")
        second_question = await world.alice.click(grid, custom_id=f"delete:{job}")
        await world.alice.click(question.response, label="Delete them")
        assert "does not let me delete it" in text(question)
        with pytest.raises(UserError, match="deleted"):
            await world.services.gallery.read_picture(job, 0)
        late_click = await world.alice.click(second_question.response, label="Delete them")
        assert "Its pictures were deleted." in text(late_click)


async def test_a_moderator_deletes_another_members_job(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        moderator = create_moderator(world)
        job = (await newest_view(world)).id
        question = await moderator.click(grid, custom_id=f"delete:{job}")
        assert "** of alice for good" in text(question)
        await moderator.click(question.response, label="Delete them")
        assert grid.id not in {message.id for message in world.channel.history()}
        incidents = await world.client.services.moderation.list_incidents(admin(world))
        assert [one.kind for one in incidents] == ["deleted"]


async def test_a_report_reaches_the_moderators_channel_and_is_dismissed_there(open_world: Any) -> None:
    async with open_world() as world:
        channel = world.guild.create_text_channel("reports")
        await world.client.services.rule_admin.set_rule(admin(world), "guild", "", "reports", str(channel.id))
        grid = await imagine(world)
        moderator = create_moderator(world)
        job = (await newest_view(world)).id
        own_report = await world.alice.click(grid, custom_id=f"report:{job}")
        assert "This one is yours: delete it instead." in text(own_report)
        dialog = await world.bob.click(grid, custom_id=f"report:{job}")
        await world.restart()
        report_reply = await world.bob.submit_modal(dialog, {"reason": "It is **rude** @everyone"})
        assert report_reply.ephemeral
        assert "Thank you" in text(report_reply)
        (card,) = channel.history()
        assert "**bob** reported a picture of **alice**" in card.content
        assert "@everyone" not in card.content
        assert f"/{grid.id}" in card.content
        assert world.labels(card) == ["Show", "Delete", "Dismiss"]
        reply = await moderator.click(card, label="Show")
        assert reply.ephemeral
        assert reply.response.attachments[0].filename.startswith("SPOILER_")
        assert "Only moderators" in text(await world.bob.click(card, label="Dismiss"))
        dialog = await moderator.click(card, label="Delete")
        await moderator.click(dialog.response, label="Delete them")
        assert "Its pictures were deleted." in text(await moderator.click(card, label="Show"))
        await moderator.click(card, label="Dismiss")
        (card,) = channel.history()
        assert "Dismissed by mo" in card.content
        assert world.labels(card) == []


@pytest.mark.slow
async def test_without_a_reports_channel_a_report_goes_to_the_moderators_list(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        job = (await newest_view(world)).id
        form = await world.bob.click(grid, custom_id=f"report:{job}")
        assert "list of the moderators" in text(await world.bob.submit_modal(form, {"reason": "rude"}))


async def test_a_blocked_member_may_press_no_button_that_makes_or_shows_pictures(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world)
        rule_admin = world.client.services.rule_admin
        await rule_admin.set_rule(admin(world), "user", f"discord:{world.bob.id}", "blocked", "on")
        for label in ("U1", "V1", "Remix", "Film"):
            refusal = await world.bob.click(grid, label=label)
            assert refusal.ephemeral
            assert "You are blocked on this server" in text(refusal)
        await rule_admin.set_rule(admin(world), "user", f"discord:{world.bob.id}", "blocked", "off")
        await rule_admin.set_rule(admin(world), "user", f"discord:{world.bob.id}", "commands", "imagine, vary")
        assert "You may not use remix here" in text(await world.bob.click(grid, label="Remix"))
        assert not (await world.bob.click(grid, label="V1")).ephemeral


async def test_a_button_that_its_card_does_not_have_obeys_the_rules(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world, count=1)
        upscale = (
            await world.services.variations.upscale(
                (await newest_view(world)).id, 0, admin(world), await newest_destination(world)
            )
        ).job
        view = discord.ui.View(timeout=None)
        for custom_id in (f"vary:{upscale}:0", f"reroll:{upscale}"):
            view.add_item(discord.ui.Button(label=custom_id.split(":")[0], custom_id=custom_id))
        view.stop()
        await world.wait_until(lambda: upscale in world.painter.finished_jobs)
        channel = world.client.get_channel(world.channel.id)
        message = await channel.send("a message with other buttons", view=view)
        await world.wait_for_end(await world.bob.click(message, label="vary"))
        assert (await newest_view(world)).action == "vary"
        assert "cannot be rerolled" in text(await world.bob.click(message, label="reroll"))


async def newest_destination(world: Any) -> Any:
    return await world.deliveries.answer_destination((await newest_view(world)).id)
