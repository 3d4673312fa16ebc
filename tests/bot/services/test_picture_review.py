"""Held pictures: blurred for everyone, refused for further use, and decided by moderators."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from sqlalchemy import select

from bot.app.wiring import App
from bot.domain.dto import Destination, JobView, Member
from bot.domain.errors import UserError
from bot.domain.events import JobEnded, JobProgress
from bot.pictures.image_codec import MAX_SIDE, UnreadableImage, blur_picture, decode_image
from bot.pictures.moderation_status import NO_CHECK, held_images, hold_reasons, is_held, unchecked_notes
from bot.services.moderation.picture_review import PictureReview
from bot.store.jobs.records import StoredPicture
from bot.store.schema.tables import incidents
from engine.contract import Presence
from tools.painter import PaintingWorker, cancel_task

MODERATOR = Member("local:mo", "Mo", "local", is_moderator=True)
BOB = Member("local:bob", "Bob", "local")


def draw_face(form: str = "PNG", size: tuple[int, int] = (256, 192)) -> bytes:
    """Eyes and a mouth on a chequered ground."""
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for x in range(0, size[0], 16):
        draw.rectangle((x, 0, x + 7, size[1]), fill="#ccc")
    for x in (80, 150):
        draw.ellipse((x, 60, x + 30, 90), fill="black")
    draw.arc((80, 90, 180, 150), 0, 180, fill="red", width=6)
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def detail(picture: Image.Image) -> float:
    """Measures fine detail: the mean difference between a picture and its smoothed copy."""
    smooth_picture = picture.resize((8, 8), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
    difference = ImageChops.difference(picture.convert("L"), smooth_picture.convert("L"))
    return sum(difference.tobytes()) / len(difference.tobytes())


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_blurred_picture_cannot_be_recognised_or_sharpened(form: Any) -> None:
    source = draw_face(form)
    blurred_picture = decode_image(blur_picture(source, form))
    assert blurred_picture.size == (256, 192)
    assert detail(decode_image(source)) > 20
    assert detail(blurred_picture) < 2
    assert detail(blurred_picture.filter(ImageFilter.UnsharpMask(40, 500, 0))) < 8
    assert blur_picture(source, form) == blur_picture(source, form)


def test_a_blurred_picture_keeps_its_shape_and_loses_its_metadata() -> None:
    large = decode_image(blur_picture(draw_face(size=(3000, 1000))))
    assert large.size == (MAX_SIDE, round(MAX_SIDE / 3))
    entries = io.BytesIO()
    Image.new("RGB", (64, 64)).save(entries, "PNG", comment="a secret")
    assert not Image.open(io.BytesIO(blur_picture(entries.getvalue()))).info
    assert decode_image(blur_picture(draw_face(size=(1, 900)))).size == (1, MAX_SIDE)
    with pytest.raises(UnreadableImage):
        blur_picture(b"no picture")
    with pytest.raises(UnreadableImage):
        blur_picture(draw_face(size=(100, 100)), max_pixels=99)


@pytest.mark.parametrize(
    ("has_check", "verdict", "reviewed_status", "expected"),
    [
        (True, "passed", "", False),
        (True, "flagged", "", True),
        (True, "unchecked", "", True),
        (True, "flagged", "shown", False),
        (True, "unchecked", "shown", False),
        (True, "flagged", "hidden", True),
        (True, "passed", "hidden", True),
        (False, "unchecked", "", False),
        (False, "flagged", "", False),
        (False, "unchecked", "hidden", True),
    ],
)
def test_the_verdict_and_the_review_decide_what_is_held(
    has_check: bool, verdict: str, reviewed_status: str, expected: bool
) -> None:
    assert is_held(has_check, StoredPicture("J", 0, "image", "a" * 64, 1, 64, 64, verdict, reviewed_status)) is expected


def test_a_job_that_no_worker_can_check_says_so() -> None:
    presence = Presence(worker="one", pools=("default",), models=(), device="", rows=1, free=1, software_build="")
    other_presence = presence_with_check(presence, "two")
    assert unchecked_notes(True, "default", {}) == unchecked_notes(True, "default", {"one": presence}) == (NO_CHECK,)
    assert unchecked_notes(True, "other", {"two": other_presence}) == (NO_CHECK,)
    assert unchecked_notes(True, "default", {"one": presence, "two": other_presence}) == ()
    assert unchecked_notes(False, "default", {}) == ()


def presence_with_check(one: Presence, name: str) -> Presence:
    return Presence(
        worker=name, pools=one.pools, models=(), device="", rows=1, free=1, software_build="", has_picture_check=True
    )


@dataclass
class CheckedApp:
    """An app with the picture check on, and a worker whose verdicts a test chooses."""

    app: App
    painter: PaintingWorker
    wait_until: Any

    async def imagine(self, text: str, member: Member = BOB) -> str:
        (accepted,) = await self.app.services.jobs.imagine(text, member, Destination("web", {}))
        return accepted.job

    async def wait_for_end(self, job: str) -> JobView:
        async def is_over() -> bool:
            return (await self.app.services.job_views.load_view(job)).state == "finished"

        await self.wait_until(is_over)
        return await self.app.services.job_views.load_view(job)

    async def incidents(self) -> list[tuple[str, str, str]]:
        query = select(incidents).order_by(incidents.c.id)
        rows = await self.app.store.query(lambda connection: connection.execute(query).mappings().all())
        return [(row["kind"], row["actor"], row["said"]) for row in rows]


@pytest_asyncio.fixture
async def checked_app(harness: Any, wait_until: Any) -> AsyncIterator[CheckedApp]:
    app = await harness.open_app()
    painter = PaintingWorker(await harness.connect())
    painter.has_picture_check = True
    await check_all(app)
    task = asyncio.create_task(painter.run())
    await wait_until(lambda: app.services.live_workers())
    yield CheckedApp(app, painter, wait_until)
    await cancel_task(task)


ADMIN = Member("local:ada", "Ada", "local", is_admin=True)


async def check_all(app: App, value: str = "on") -> None:
    """Sets the guild's rule that its pictures are checked."""
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "check", value)


@pytest.mark.asyncio
async def test_one_held_picture_does_not_hold_the_others(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {1: "flagged", 2: "unchecked"}
    job = await checked_app.imagine("a lamp --seed 3")
    view = await checked_app.wait_for_end(job)
    assert view.needs_check
    assert [picture.verdict for picture in view.pictures] == ["passed", "flagged", "unchecked", "passed"]
    assert held_images(view) == (1, 2)
    assert hold_reasons(view) == [
        "Picture 2 is held by the picture check until a moderator has looked at it.",
        "Picture 3 could not be checked, so it is held until a moderator has looked at it.",
    ]
    services = checked_app.app.services
    for index in (0, 3):
        assert await services.gallery.read_picture(job, index) == await services.gallery.read_for_members(job, index)
    for index in (1, 2):
        with pytest.raises(UserError, match=f"Picture {index + 1} ") as error:
            await services.gallery.read_picture(job, index)
        assert error.value.status == 403
        assert await services.gallery.read_for_members(job, index) == blur_picture(
            await checked_app.app.services.get(PictureReview)._gallery.read_unblurred(job, index)
        )


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_held_picture_cannot_be_used_until_it_is_shown(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {1: "flagged"}
    job = await checked_app.imagine("a lamp --seed 3")
    await checked_app.wait_for_end(job)
    services = checked_app.app.services
    destination = Destination("web", {})
    for request in (services.variations.vary, services.variations.upscale):
        with pytest.raises(UserError, match="Picture 2 is held by the picture check"):
            await request(job, 1, BOB, destination)
    with pytest.raises(UserError, match="Picture 2 is held by the picture check"):
        await services.variations.interpolate_pictures(job, BOB, destination)
    await services.variations.upscale(job, 0, BOB, destination)
    view = await checked_app.app.services.get(PictureReview).decide(job, 1, MODERATOR, show=True)
    assert held_images(view) == ()
    assert await services.gallery.read_picture(job, 1)
    checked_app.painter.verdicts = {0: "flagged"}
    upscale = (await services.variations.upscale(job, 1, BOB, destination)).job
    assert held_images(await checked_app.wait_for_end(upscale)) == (0,), "an upscaled picture has a check of its own"


@pytest.mark.asyncio
async def test_the_film_leaves_out_held_pictures(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {0: "flagged"}
    job = await checked_app.imagine("a lamp --count 2")
    services = checked_app.app.services
    await checked_app.wait_for_end(job)
    without_it = decode_image(await services.gallery.render_keyframe_grid(job, 0))
    await checked_app.app.services.get(PictureReview).decide(job, 0, MODERATOR, show=True)
    with_it = decode_image(await services.gallery.render_keyframe_grid(job, 0))
    assert with_it.width > 1.5 * without_it.width
    single = await checked_app.imagine("a lamp --count 1")
    await checked_app.wait_for_end(single)
    for request in (
        services.gallery.render_film(single),
        services.gallery.keyframe_steps(single),
        services.gallery.render_keyframe_grid(single, 0),
    ):
        with pytest.raises(UserError, match="held by the picture check, so there is no film"):
            await request


@pytest.mark.asyncio
async def test_moderators_decide_and_every_decision_is_recorded(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {0: "flagged", 1: "unchecked"}
    job = await checked_app.imagine("a lamp --count 3")
    review = checked_app.app.services.get(PictureReview)
    await checked_app.wait_for_end(job)
    entries = [
        ("held", BOB.id, "Picture 1 was flagged by the picture check."),
        ("held", BOB.id, "Picture 2 could not be checked."),
    ]
    assert await checked_app.incidents() == entries
    pictures = await review.load_held_pictures(job, MODERATOR)
    assert [index for index, _ in pictures] == [0, 1]
    assert decode_image(pictures[1][1]).getpixel((5, 5)) == (
        90,
        20 + 10 * ((await seed_of(checked_app, job)) % 20),
        128,
    )
    assert held_images(await review.decide(job, 0, MODERATOR, show=False)) == (0, 1)
    assert held_images(await review.decide(job, 1, MODERATOR, show=True)) == (0,)
    assert held_images(await review.decide(job, 1, MODERATOR, show=True)) == (0,)  # a second time changes nothing
    with pytest.raises(UserError, match="Picture 1 stays hidden: a moderator has looked at it"):
        await checked_app.app.services.gallery.read_picture(job, 0)
    entries += [
        ("denied", MODERATOR.id, "Picture 1 is kept hidden."),
        ("approved", MODERATOR.id, "Picture 2 is shown."),
    ]
    assert await checked_app.incidents() == entries
    assert held_images(await review.decide(job, 0, MODERATOR, show=True)) == ()
    assert (await checked_app.incidents())[-1] == ("approved", MODERATOR.id, "Picture 1 is shown.")


async def seed_of(checked_app: CheckedApp, job: str) -> int:
    task: Any = (await checked_app.app.services.job_views.load_view(job)).task
    return int(task.seed)


@pytest.mark.asyncio
async def test_invalid_decisions_are_refused(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {0: "flagged"}
    review = checked_app.app.services.get(PictureReview)
    checked_app.painter.step_gate.clear()
    job = await checked_app.imagine("a lamp --count 2")
    with pytest.raises(UserError, match="not finished"):
        await review.decide(job, 0, MODERATOR, show=True)
    checked_app.painter.step_gate.set()
    await checked_app.wait_for_end(job)
    for member in (BOB, Member("local:eve", "Eve", "elsewhere", is_moderator=True)):
        for request in (review.load_held_pictures(job, member), review.decide(job, 0, member, show=True)):
            with pytest.raises(UserError) as error:
                await request
            assert error.value.status == 403
    with pytest.raises(UserError, match="Picture 2 is not held"):
        await review.decide(job, 1, MODERATOR, show=False)
    with pytest.raises(UserError, match="no such picture"):
        await review.decide(job, 3, MODERATOR, show=True)
    with pytest.raises(UserError, match="no such job"):
        await review.decide("0" * 26, 0, MODERATOR, show=True)
    await review.decide(job, 0, MODERATOR, show=True)
    with pytest.raises(UserError, match="No picture of this job is held"):
        await review.load_held_pictures(job, MODERATOR)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_previews_are_blurred_until_the_check_has_passed_their_image(checked_app: CheckedApp) -> None:
    checked_app.painter.preview_verdicts = {1: "flagged"}
    checked_app.painter.paint = draw_chequered
    checked_app.painter.speed = 0.05
    frames: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    async with checked_app.app.feed.subscribe() as events:
        await checked_app.imagine("a lamp --count 2")
        async for event in events:
            if isinstance(event, JobProgress):
                for image, jpeg in event.frames.items():
                    frames[image].append((event.step, jpeg))
            if isinstance(event, JobEnded):
                break
    clear_steps = {
        image: [step for step, jpeg in previews if detail(decode_image(jpeg)) > 5] for image, previews in frames.items()
    }
    assert clear_steps[1] == []
    assert clear_steps[0]
    assert min(clear_steps[0]) >= 8, "40 % of 20 steps"
    assert [step for step, jpeg in frames[0] if detail(decode_image(jpeg)) <= 5]


def draw_chequered(recipe: Any, image: int, step: int, form: Any) -> bytes:
    return draw_face(form, (recipe.width, recipe.height))


@pytest.mark.asyncio
async def test_without_a_worker_that_checks_every_picture_is_held(checked_app: CheckedApp) -> None:
    checked_app.painter.has_picture_check = False
    await checked_app.wait_until(
        lambda: not any(one.has_picture_check for one in checked_app.app.services.live_workers().values())
    )
    (accepted,) = await checked_app.app.services.jobs.imagine("a lamp", BOB, Destination("web", {}))
    assert NO_CHECK in accepted.notes
    view = await checked_app.wait_for_end(accepted.job)
    assert held_images(view) == (0, 1, 2, 3)
    assert NO_CHECK in view.notes
    assert [kind for kind, _, _ in await checked_app.incidents()] == ["held"] * 4


@pytest.mark.asyncio
async def test_nothing_is_held_without_the_rule_or_in_age_restricted_channels(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {0: "flagged"}
    member_in_adult_channel = replace(BOB, age_restricted=True)
    unchecked_view = await checked_app.wait_for_end(
        await checked_app.imagine("a lamp --count 1", member_in_adult_channel)
    )
    await check_all(checked_app.app, "off")
    presence = await checked_app.wait_for_end(await checked_app.imagine("a lamp --count 1"))
    for view in (unchecked_view, presence):
        assert not view.needs_check
        assert held_images(view) == ()
        assert await checked_app.app.services.gallery.read_picture(view.id, 0)
    assert await checked_app.incidents() == []


@pytest.mark.asyncio
async def test_moderators_see_the_pictures_that_wait_for_them(checked_app: CheckedApp) -> None:
    checked_app.painter.verdicts = {0: "flagged"}
    first = await checked_app.imagine("a lamp --count 1")
    await checked_app.wait_for_end(first)
    second = await checked_app.imagine("a lamp --count 2")
    await checked_app.wait_for_end(second)
    checked_app.painter.verdicts = {}
    await checked_app.wait_for_end(await checked_app.imagine("a chair"))
    review = checked_app.app.services.get(PictureReview)
    assert [view.id for view in await review.list_waiting(MODERATOR, 10)] == [first, second]
    assert [view.id for view in await review.list_waiting(MODERATOR, 1)] == [first]
    await review.decide(first, 0, MODERATOR, show=False)
    assert [view.id for view in await review.list_waiting(MODERATOR, 10)] == [second]
    assert await review.list_waiting(Member("local:eve", "Eve", "elsewhere", is_moderator=True), 10) == []
    with pytest.raises(UserError, match="Only moderators"):
        await review.list_waiting(BOB, 10)
