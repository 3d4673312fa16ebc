"""Held pictures in Discord: blurred in the grid, refused to buttons, decided by moderators on the card itself."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import discord
import pytest
from PIL import Image

from bot.discord.delivery import courier
from bot.domain.dto import Member
from bot.pictures.image_codec import blur_picture
from bot.policy.permissions import forbidden_reason, job_ref
from bot.services.moderation.picture_review import PictureReview
from shared.discord_jobs import create_moderator

pytestmark = pytest.mark.asyncio


async def enable_picture_check(world: Any) -> None:
    """Switch the server's picture check on, with a worker that can do it."""
    world.painter.has_picture_check = True
    admin = Member("discord:1", "ada", f"discord:{world.guild.id}", is_admin=True)
    await world.client.services.rule_admin.set_rule(admin, "guild", "", "check", "on")
    await world.wait_until(lambda: any(one.has_picture_check for one in world.services.live_workers().values()))


def open_pictures(world: Any, message: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(world.env.backend.cdn.get(one.url))).convert("RGB") for one in message.attachments]


def paint_quarters(recipe: Any, image: int, step: int, form: Any) -> bytes:
    """Paints four colours, so that a test can tell a blurred picture from a clear one."""
    picture = Image.new("RGB", (64, 64), "white")
    for corner, ink in zip(((0, 0), (32, 0), (0, 32)), ("red", "lime", "blue"), strict=True):
        picture.paste(ink, (*corner, corner[0] + 32, corner[1] + 32))
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def is_clear(tile: Any) -> bool:
    """Tells whether the picture has the four colours with an edge between them."""
    width, height = tile.size
    left, right = (tile.getpixel((width // 2 + offset, height // 4)) for offset in (-width // 10, width // 10))
    return all(abs(a - b) < 40 for a, b in zip((*left, *right), (255, 0, 0, 0, 255, 0), strict=True))


def split_grid(grid: Image.Image) -> list[Image.Image]:
    half = (grid.width // 2, grid.height // 2)
    return [grid.crop((x, y, x + half[0], y + half[1])) for y in (0, half[1]) for x in (0, half[0])]


async def imagine_held(world: Any, verdicts: dict[int, str], **options: Any) -> discord.Message:
    """Finish a job of alice's with these verdicts and return its message."""
    await enable_picture_check(world)
    world.painter.verdicts = verdicts
    world.painter.paint = paint_quarters
    return await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple", **options))


@pytest.mark.slow
async def test_a_grid_blurs_the_held_picture_and_shows_the_others(open_world: Any) -> None:
    async with open_world() as world:
        card = await imagine_held(world, {1: "flagged"})
        assert "Picture 2 is held by the picture check until a moderator has looked at it." in card.content
        assert "Picture 1" not in card.content
        (grid,) = open_pictures(world, card)
        assert [is_clear(tile) for tile in split_grid(grid)] == [True, False, True, True]
        assert world.labels(card)[-3:] == ["Look at held pictures", "Show 2", "Keep 2 hidden"]
        for label in ("U2", "V2"):
            refusal = await world.bob.click(card, label=label)
            assert refusal.ephemeral
            assert "Picture 2 is held by the picture check" in refusal.response.content
        upscale = await world.wait_for_end(await world.bob.click(card, label="U1"))
        assert is_clear(open_pictures(world, upscale)[0])


async def test_only_moderators_decide_on_held_pictures(open_world: Any) -> None:
    async with open_world() as world:
        card = await imagine_held(world, {1: "flagged"})
        for label in ("Look at held pictures", "Show 2", "Keep 2 hidden"):
            for member in (world.alice, world.bob):
                refusal = await member.click(card, label=label)
                assert refusal.ephemeral
                assert "moderators" in refusal.response.content
        (view,) = await world.services.job_views.load_recent()
        assert not any(picture.reviewed for picture in view.pictures)
        for action in ("approve", "deny"):
            assert forbidden_reason(action, Member(view.member_id, "alice", view.guild), job_ref(view))
        (grid,) = open_pictures(world, world.message(card.id))
        assert not is_clear(split_grid(grid)[1])


@pytest.mark.slow
async def test_a_moderator_looks_ephemerally_and_shows_the_picture_to_all(open_world: Any) -> None:
    async with open_world() as world:
        card = await imagine_held(world, {1: "flagged"})
        moderator = create_moderator(world)
        review = await moderator.click(card, label="Look at held pictures")
        assert review.ephemeral
        assert "Only you see this" in review.response.content
        assert [one.filename for one in review.response.attachments] == ["SPOILER_held-2.png"]
        assert is_clear(open_pictures(world, review.response)[0])
        assert world.labels(review.response) == ["Show 2", "Keep 2 hidden"]
        await moderator.click(card, label="Show 2")
        new_card = world.message(card.id)
        assert "held" not in new_card.content
        assert "Show 2" not in world.labels(new_card)
        assert all(is_clear(tile) for tile in split_grid(open_pictures(world, new_card)[0]))
        await world.wait_for_end(await world.bob.click(new_card, label="U2"))


@pytest.mark.slow
async def test_a_moderator_hides_a_picture_and_may_show_it_later(open_world: Any) -> None:
    async with open_world() as world:
        card = await imagine_held(world, {0: "unchecked", 3: "flagged"})
        moderator = create_moderator(world)
        assert "Picture 1 could not be checked" in card.content
        assert world.labels(card)[-5:] == [
            "Look at held pictures",
            "Show 1",
            "Keep 1 hidden",
            "Show 4",
            "Keep 4 hidden",
        ]
        film = (await world.bob.click(card, label="Film")).response
        assert film.id in {message.id for message in world.channel.history()}
        await moderator.click(card, label="Keep 4 hidden")
        assert film.id not in {message.id for message in world.channel.history()}, (
            "the film may be older than the decision"
        )
        hidden_card = world.message(card.id)
        assert "Picture 4 stays hidden: a moderator has looked at it." in hidden_card.content
        assert world.labels(hidden_card)[-4:] == ["Look at held pictures", "Show 1", "Keep 1 hidden", "Show 4"]
        await world.restart()
        await moderator.click(hidden_card, label="Show 4")
        await moderator.click(hidden_card, label="Show 1")
        assert all(is_clear(tile) for tile in split_grid(open_pictures(world, world.message(card.id))[0]))


@pytest.mark.slow
async def test_a_single_picture_and_an_upscale_are_blurred_whole(open_world: Any) -> None:
    async with open_world() as world:
        card = await imagine_held(world, {0: "flagged"}, count=1)
        moderator = create_moderator(world)
        assert not is_clear(open_pictures(world, card)[0])
        assert world.labels(card)[-3:] == ["Look at held pictures", "Show", "Keep hidden"]
        await moderator.click(card, label="Show")
        assert is_clear(open_pictures(world, world.message(card.id))[0])
        upscale = await world.wait_for_end(await world.alice.click(card, label="U1"))
        assert "Picture 1 is held" in upscale.content
        assert not is_clear(open_pictures(world, upscale)[0])
        await moderator.click(upscale, label="Show")
        assert is_clear(open_pictures(world, world.message(upscale.id))[0])


@pytest.mark.slow
async def test_previews_are_blurred_until_the_check_has_passed_them(open_world: Any) -> None:
    async with open_world() as world:
        await enable_picture_check(world)
        world.painter.preview_verdicts = {2: "flagged"}
        world.painter.paint = paint_quarters
        world.painter.pause_step = 6
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        identity = result.response.id
        early_message = await world.wait_until(lambda: (m := world.message(identity)) and m.attachments and m)
        assert not any(is_clear(tile) for tile in split_grid(open_pictures(world, early_message)[0]))
        world.painter.pause_step = 15
        world.painter.step_gate.set()
        late_message = await world.wait_until(lambda: (m := world.message(identity)) and "step 14" in m.content and m)
        assert [is_clear(tile) for tile in split_grid(open_pictures(world, late_message)[0])] == [
            True,
            True,
            False,
            True,
        ]
        world.painter.pause_step = None
        world.painter.step_gate.set()
        final_message = await world.wait_for_end(result)
        assert all(is_clear(tile) for tile in split_grid(open_pictures(world, final_message)[0])), (
            "the final picture has its own verdict"
        )
        assert not is_clear(Image.open(io.BytesIO(blur_picture(paint_quarters(None, 0, 0, "PNG")))))


@pytest.mark.slow
async def test_an_age_restricted_channel_skips_the_picture_check(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated Discord has no age-restricted channels, so a name marks one here."""
    monkeypatch.setattr(discord.TextChannel, "is_nsfw", lambda channel: channel.name == "adults")
    async with open_world() as world:
        await enable_picture_check(world)
        world.painter.verdicts = {0: "flagged"}
        world.painter.paint = paint_quarters
        world.channel = world.guild.create_text_channel("adults")
        card = await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        assert "held" not in card.content
        assert all(is_clear(tile) for tile in split_grid(open_pictures(world, card)[0]))


@pytest.mark.slow
async def test_moderators_list_held_pictures_and_decide_from_the_list(open_world: Any) -> None:
    async with open_world() as world:
        moderator = create_moderator(world)
        assert "No picture waits" in (await moderator.slash(world.channel, "moderation held")).response.content
        card = await imagine_held(world, {1: "flagged", 2: "unchecked"})
        listing = await moderator.slash(world.channel, "moderation held")
        assert listing.ephemeral
        assert "**red apple** · alice · 2 held" in listing.response.content
        review = await moderator.click(listing.response, label="Look at 1")
        assert world.labels(review.response) == ["Show 2", "Keep 2 hidden", "Show 3", "Keep 3 hidden"]
        await moderator.click(review.response, label="Show 2")
        assert [is_clear(tile) for tile in split_grid(open_pictures(world, world.message(card.id))[0])] == [
            True,
            True,
            False,
            True,
        ]
        assert "Picture 3 could not be checked" in world.message(card.id).content
        updated_review = next(one for one in world.channel.history(viewer=moderator) if one.id == review.response.id)
        assert world.labels(updated_review) == ["Show 3", "Keep 3 hidden"]
        await moderator.click(updated_review, label="Keep 3 hidden")
        assert "Picture 3 stays hidden" in world.message(card.id).content
        assert "No picture waits" in (await moderator.slash(world.channel, "moderation held")).response.content


@pytest.mark.slow
async def test_a_decision_also_updates_the_notice_of_a_long_job(open_world: Any) -> None:
    async with open_world() as world:
        await enable_picture_check(world)
        admin = Member("discord:1", "ada", f"discord:{world.guild.id}", is_admin=True)
        await world.client.services.rule_admin.set_rule(admin, "guild", "", "long_ping", "0")
        world.painter.verdicts = {1: "flagged"}
        world.painter.paint = paint_quarters
        moderator = create_moderator(world)
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        history = world.channel.history
        notice = await world.wait_until(lambda: next((m for m in history() if "Show 2" in world.labels(m)), None))
        assert "<@" in notice.content
        listing = await moderator.slash(world.channel, "moderation held")
        review = await moderator.click(listing.response, label="Look at 1")
        await moderator.click(review.response, label="Show 2")
        new_card = world.message(notice.id)
        assert "<@" in new_card.content
        assert all(is_clear(tile) for tile in split_grid(open_pictures(world, new_card)[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("long_ping", "role", "is_approved"), [("0", "notice", True), ("600", "answer", True), ("600", "answer", False)]
)
async def test_a_decision_while_a_message_is_sent_is_shown_in_it(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, long_ping: str, role: str, is_approved: bool
) -> None:
    async with open_world() as world:
        await enable_picture_check(world)
        admin = Member("discord:1", "ada", f"discord:{world.guild.id}", is_admin=True)
        await world.client.services.rule_admin.set_rule(admin, "guild", "", "long_ping", long_ping)
        world.painter.verdicts = {1: "flagged"}
        world.painter.paint = paint_quarters
        deliveries = world.client.services.deliveries
        mark_delivered = deliveries.mark_delivered
        marked_roles = list[str]()

        async def decide_and_mark(job: str, marked_role: str, reason: str = "") -> None:
            if marked_role == role:
                await world.client.services.get(PictureReview).decide(job, 1, admin, show=is_approved)
            await mark_delivered(job, marked_role, reason)
            marked_roles.append(marked_role)

        monkeypatch.setattr(deliveries, "mark_delivered", decide_and_mark)
        await world.alice.slash(world.channel, "imagine", prompt="red apple")

        def shows_decision() -> bool:
            messages = world.channel.history()
            if not is_approved:
                return any("Picture 2 stays hidden" in one.content for one in messages)
            grids = [grid for one in messages for grid in open_pictures(world, one)]
            return bool(grids) and all(map(is_clear, split_grid(grids[-1])))

        await world.wait_until(lambda: role in marked_roles)  # before, a preview may be clear
        await world.wait_until(shows_decision)


@pytest.mark.slow
async def test_the_author_of_a_private_job_gets_approved_pictures_by_direct_message(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "SWEEP_SECONDS", 0.1)
    async with open_world() as world:
        moderator = create_moderator(world)
        await enable_picture_check(world)
        world.painter.verdicts = {1: "flagged", 2: "unchecked"}
        world.painter.paint = paint_quarters
        await world.client.services.preferences.set_preference(f"discord:{world.alice.id}", "results", "private")
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.wait_until(lambda: world.painter.finished_jobs)
        await world.wait_until(lambda: "Cancel" not in world.labels(result.response))
        listing = await moderator.slash(world.channel, "moderation held")
        review = await moderator.click(listing.response, label="Look at 1")
        await moderator.click(review.response, label="Show 2")
        direct_messages = lambda: world.alice.user.dm_channel and list(world.alice.user.dm_channel.history())  # noqa: E731
        (direct_message,) = await world.wait_until(direct_messages)
        assert [is_clear(tile) for tile in split_grid(open_pictures(world, direct_message)[0])] == [
            True,
            True,
            False,
            True,
        ]
        (view,) = await world.services.job_views.load_recent()
        while (await world.deliveries.list_deliveries(view.id))["direct"].delivered_at is None:
            await asyncio.sleep(0.02)
        updated_review = next(one for one in world.channel.history(viewer=moderator) if one.id == review.response.id)
        await moderator.click(updated_review, label="Show 3")
        (direct_message,) = direct_messages()
        assert all(is_clear(tile) for tile in split_grid(open_pictures(world, direct_message)[0]))
        assert set(await world.deliveries.list_deliveries(view.id)) == {"answer", "direct"}
