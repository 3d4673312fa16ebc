"""What members do with finished pictures, pressed: remixes by form, films, favourites, deletions, reports."""

from __future__ import annotations

import io
from typing import Any

import discord
import pytest
from PIL import Image

from bot.desk.further import STRENGTHS
from bot.refused import Refused
from bot.views import Member
from chat.jobs import made, moderator

pytestmark = pytest.mark.asyncio


def text(result: Any) -> str:
    assert result.response
    return result.response.content


def fields(result: Any) -> dict[str, Any]:
    """The fields of a form: what stands in them."""
    nodes = [row["component"] for row in result.modal["components"]]
    return {node["custom_id"]: node.get("value") or "" for node in nodes}


def admin(world: Any) -> Member:
    return Member("discord:1", "ada", f"discord:{world.guild.id}", admin=True)


async def newest(world: Any) -> Any:
    return (await world.studio.recent())[0]


async def test_v_varies_as_the_member_likes_and_under_an_enlargement_one_chooses(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, seed=7)
        await world.ended(await world.alice.click(grid, label="V2"))
        assert (await newest(world)).recipe.lineage[-1].strength == STRENGTHS["subtle"]
        await world.client.desk.preferences.prefer(f"discord:{world.alice.id}", "variation", "strong")
        await world.ended(await world.alice.click(grid, label="V3"))
        assert (await newest(world)).recipe.lineage[-1].strength == STRENGTHS["strong"]
        enlarged = await world.ended(await world.alice.click(grid, label="U1"))
        for label, strength in (("Vary (Subtle)", "subtle"), ("Vary (Strong)", "strong")):
            await world.ended(await world.bob.click(enlarged, label=label))
            view = await newest(world)
            assert (view.recipe.lineage[-1].strength, view.parent[1]) == (STRENGTHS[strength], 0)  # pyright: ignore[reportArgumentType] - of the two above


async def test_a_remix_is_typed_into_a_form_that_outlives_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, "a \\{red\\} apple --no fog --count 2", seed=7)
        first = await newest(world)
        asked = await world.bob.click(grid, label="Remix")
        assert fields(asked) == {"prompt": "a \\{red\\} apple", "negative": "fog"}
        await world.restart()
        result = await world.bob.submit_modal(asked, {"prompt": "a blue apple", "negative": "snow"})
        card = await world.ended(result)
        assert "a blue apple" in card.content
        assert "remixed" in card.content
        view = await newest(world)
        assert (view.recipe.seed, view.recipe.negative, view.recipe.count) == (7, "snow", 2)
        assert (view.action, view.parent, view.member_name) == ("remix", (first.id, 0), "bob")
        wrong = await world.bob.submit_modal(
            await world.bob.click(grid, label="Remix"), {"prompt": "apple --stepps 3", "negative": ""}
        )
        assert wrong.ephemeral
        assert "--steps" in text(wrong).replace("\\", "")


async def test_whoever_likes_remixing_is_asked_for_words_first(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, seed=7)
        await world.client.desk.preferences.prefer(f"discord:{world.alice.id}", "remix", "on")
        asked = await world.alice.click(grid, label="V2")
        assert asked.modal["title"] == "Vary subtly picture 2"
        await world.ended(await world.alice.submit_modal(asked, {"prompt": "green apple", "negative": ""}))
        view = await newest(world)
        assert (view.recipe.lineage[-1].strength, view.parent[1]) == (STRENGTHS["subtle"], 1)
        asked = await world.alice.click(grid, custom_id=f"reroll:{view.parent[0]}")
        await world.ended(await world.alice.submit_modal(asked, {"prompt": "pink apple", "negative": ""}))
        view = await newest(world)
        assert (view.prompt, view.recipe.lineage) == ("pink apple", ())
        assert view.recipe.seed != 7
        assert (await world.alice.click(grid, label="U1")).modal is None, "an enlargement has no words"


async def test_a_film_is_posted_where_it_was_asked_for(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world)
        result = await world.bob.click(grid, label="Film")
        (attachment,) = result.response.attachments
        film = Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url)))
        assert film.format == "WEBP"
        assert not result.ephemeral


async def test_one_picture_is_a_favourite_and_then_is_none(open_world: Any) -> None:
    async with open_world() as world:
        single = await made(world, count=1)
        job = (await newest(world)).id
        first = await world.bob.click(single, custom_id=f"favour:{job}:0")
        assert first.ephemeral
        assert "favourite" in text(first)
        page = await world.client.desk.shelf.page(f"discord:{world.bob.id}", "favourites", 1)
        assert [kept.view.id for kept in page.kept] == [job]
        assert "No favourite" in text(await world.bob.click(single, custom_id=f"favour:{job}:0"))


async def test_the_author_deletes_after_a_question_and_nothing_is_left(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world)
        job = (await newest(world)).id
        enlarged = await world.ended(await world.bob.click(grid, label="U1"))
        refused = await world.bob.click(grid, custom_id=f"delete:{job}")
        assert "Only alice and moderators (who may manage messages in the whole server) may delete" in text(refused)
        asked = await world.alice.click(grid, custom_id=f"delete:{job}")
        assert asked.ephemeral
        assert "the 4 pictures of **red apple** for good" in text(asked)
        await world.alice.click(asked.response, label="Delete them")
        assert "gone for good" in text(asked)
        assert world.labels(asked.response) == []
        left = {message.id for message in world.channel.history()}
        assert not {grid.id, enlarged.id} & left
        with pytest.raises(Refused):
            await world.studio.picture(job, 0)
        with pytest.raises(Refused, match="deleted"):
            await world.studio.reroll(job, admin(world), await world.deliveries.place_of(job))


async def test_the_notice_of_a_long_job_goes_with_its_answer(open_world: Any) -> None:
    async with open_world() as world:
        await world.client.desk.administration.set(admin(world), "guild", "", "long_ping", "0")
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.until(lambda: len(world.channel.history()) == 2)
        notice = await world.until(
            lambda: next((one for one in world.channel.history() if "U1" in world.labels(one)), None)
        )
        assert notice.id != result.response.id
        job = (await newest(world)).id
        asked = await world.alice.click(notice, custom_id=f"delete:{job}")
        await world.alice.click(asked.response, label="Delete them")
        assert world.channel.history() == []


async def test_after_a_quarter_of_an_hour_it_is_deleted_as_a_message_of_its_channel(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world)
        job = (await newest(world)).id
        await world.deliveries.moved(job, token_until="0")
        asked = await world.alice.click(grid, custom_id=f"delete:{job}")
        await world.alice.click(asked.response, label="Delete them")
        assert world.channel.history() == []
        (request,) = [each for each in world.env.http_requests if each.method == "DELETE"]
        assert request.path.startswith("/channels/")


async def test_a_message_that_discord_keeps_is_told_and_its_pictures_are_gone(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world)
        job = (await newest(world)).id
        world.env.inject_error("DELETE", "*", status=403, code=50001, message="Missing Access", times=None)
        asked = await world.alice.click(grid, custom_id=f"delete:{job}")
        again = await world.alice.click(grid, custom_id=f"delete:{job}")
        await world.alice.click(asked.response, label="Delete them")
        assert "does not let me delete it" in text(asked)
        with pytest.raises(Refused, match="deleted"):
            await world.studio.picture(job, 0)
        late = await world.alice.click(again.response, label="Delete them")
        assert "Its pictures were deleted." in text(late)


async def test_a_moderator_deletes_what_is_not_theirs(open_world: Any) -> None:
    async with open_world() as world:
        grid, mo = await made(world), moderator(world)
        job = (await newest(world)).id
        asked = await mo.click(grid, custom_id=f"delete:{job}")
        assert "** of alice for good" in text(asked)
        await mo.click(asked.response, label="Delete them")
        assert grid.id not in {message.id for message in world.channel.history()}
        incidents = await world.client.desk.moderation.incidents(admin(world))
        assert [one.kind for one in incidents] == ["deleted"]


async def test_a_report_reaches_the_moderators_channel_and_is_dismissed_there(open_world: Any) -> None:
    async with open_world() as world:
        channel = world.guild.create_text_channel("reports")
        await world.client.desk.administration.set(admin(world), "guild", "", "reports", str(channel.id))
        grid, mo = await made(world), moderator(world)
        job = (await newest(world)).id
        own = await world.alice.click(grid, custom_id=f"report:{job}")
        assert "This one is yours: delete it instead." in text(own)
        asked = await world.bob.click(grid, custom_id=f"report:{job}")
        await world.restart()
        thanks = await world.bob.submit_modal(asked, {"reason": "It is **rude** @everyone"})
        assert thanks.ephemeral
        assert "Thank you" in text(thanks)
        (card,) = channel.history()
        assert "**bob** reported a picture of **alice**" in card.content
        assert "@everyone" not in card.content
        assert f"/{grid.id}" in card.content
        assert world.labels(card) == ["Show", "Delete", "Dismiss"]
        shown = await mo.click(card, label="Show")
        assert shown.ephemeral
        assert shown.response.attachments[0].filename.startswith("SPOILER_")
        assert "Only moderators" in text(await world.bob.click(card, label="Dismiss"))
        asked = await mo.click(card, label="Delete")
        await mo.click(asked.response, label="Delete them")
        assert "Its pictures were deleted." in text(await mo.click(card, label="Show"))
        await mo.click(card, label="Dismiss")
        (card,) = channel.history()
        assert "Dismissed by mo" in card.content
        assert world.labels(card) == []


async def test_a_report_without_a_channel_stands_in_the_list(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world)
        job = (await newest(world)).id
        asked = await world.bob.click(grid, custom_id=f"report:{job}")
        assert "list of the moderators" in text(await world.bob.submit_modal(asked, {"reason": "rude"}))


async def test_who_is_blocked_may_press_nothing_that_makes_or_shows(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world)
        administration = world.client.desk.administration
        await administration.set(admin(world), "user", f"discord:{world.bob.id}", "blocked", "on")
        for label in ("U1", "V1", "Remix", "Film"):
            refused = await world.bob.click(grid, label=label)
            assert refused.ephemeral
            assert "You are blocked on this server" in text(refused)
        await administration.set(admin(world), "user", f"discord:{world.bob.id}", "blocked", "off")
        await administration.set(admin(world), "user", f"discord:{world.bob.id}", "commands", "imagine, vary")
        assert "You may not use remix here" in text(await world.bob.click(grid, label="Remix"))
        assert not (await world.bob.click(grid, label="V1")).ephemeral


async def test_buttons_of_older_messages_still_work(open_world: Any) -> None:
    async with open_world() as world:
        await made(world, count=1)
        enlarged = (await world.studio.upscale((await newest(world)).id, 0, admin(world), await somewhere(world))).job
        view = discord.ui.View(timeout=None)
        for custom_id in (f"vary:{enlarged}:0", f"reroll:{enlarged}"):
            view.add_item(discord.ui.Button(label=custom_id.split(":")[0], custom_id=custom_id))
        view.stop()
        await world.until(lambda: enlarged in world.painter.done)
        channel = world.client.get_channel(world.channel.id)
        old = await channel.send("an older version's message", view=view)
        await world.ended(await world.bob.click(old, label="vary"))
        assert (await newest(world)).action == "vary"
        assert "cannot be rolled again" in text(await world.bob.click(old, label="reroll"))


async def somewhere(world: Any) -> Any:
    return await world.deliveries.place_of((await newest(world)).id)
