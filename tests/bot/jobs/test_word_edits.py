"""Edits of a picture by words, over a real broker and store: which model edits, and what it gets."""

from __future__ import annotations

import msgspec
import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages
from shared import app_harness
from shared.app_harness import open_app_and_worker, wait_for_end
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
OWNER = Member("local:o", "O", "local", is_owner=True, is_admin=True)
PICTURE = InitImages((make_png(64, 64),))


def announce(monkeypatch, **fields):
    """The fake worker's model gets these fields."""
    make_profile = app_harness.make_profile
    monkeypatch.setattr(
        app_harness, "make_profile", lambda *arguments: msgspec.structs.replace(make_profile(*arguments), **fields)
    )


async def test_an_edit_sends_one_picture_at_full_strength(harness, wait_until, ann, destination, monkeypatch):
    announce(monkeypatch, edits=True, required="picture", max_edit_pictures=2)
    app, worker = await open_app_and_worker(harness, wait_until)
    jobs = app.services.jobs
    for options in ({"edit": True}, {}):  # a model that does nothing else needs no flag
        (accepted,) = await jobs.imagine("make it red", ann, destination, init_images=PICTURE, **options)
        view = await wait_for_end(app, accepted.job, wait_until)
        start = view.task.start
        assert (view.state, view.action) == ("finished", "imagine")
        assert (start.strength, start.mask, len(start.pictures)) == (1.0, None, 1)
        assert start.pictures[0].sha256 in worker.fetched_blobs
    two, three = (InitImages(tuple(make_png(64, 64, level) for level in range(count))) for count in (2, 3))
    (accepted,) = await jobs.imagine("the lamp of the second --edit", ann, destination, init_images=two)
    view = await wait_for_end(app, accepted.job, wait_until)
    assert (view.state, view.action, len(view.task.start.pictures)) == ("finished", "imagine", 2), "it is no blend"
    assert {picture.sha256 for picture in view.task.start.pictures} <= set(worker.fetched_blobs)
    with pytest.raises(UserError, match="changes up to 2 pictures at once, and these are 3"):
        await jobs.imagine("a lamp --edit", ann, destination, init_images=three)
    with pytest.raises(UserError, match="only changes a picture: add one"):
        await jobs.imagine("a lamp", ann, destination)
    with pytest.raises(UserError, match="add that picture, and no mask"):
        await jobs.imagine("a lamp --edit", ann, destination)
    masked = InitImages(PICTURE.pictures, make_png(64, 64, 255))
    with pytest.raises(UserError, match="changes a picture as a whole: leave out the mask"):
        await jobs.imagine("a lamp", ann, destination, init_images=masked)
    with pytest.raises(UserError, match="add that picture, and no mask"):
        await jobs.imagine("a lamp --edit", ann, destination, init_images=masked)


async def test_without_an_editing_model_one_sentence_says_so(harness, wait_until, ann, destination):
    app, _ = await open_app_and_worker(harness, wait_until)
    name = app.services.catalog.find_entry(None).profile.name
    for text, words in (
        ("make it red --edit", "No worker has a model that edits"),
        (f"red --edit --model {name}", "edits no pictures"),
    ):
        with pytest.raises(UserError, match=words):
            await app.services.jobs.imagine(text, ann, destination, init_images=PICTURE)


async def test_a_model_that_draws_too_starts_from_a_picture_unless_it_edits(
    harness, wait_until, ann, destination, monkeypatch
):
    announce(monkeypatch, edits=True)
    app, _ = await open_app_and_worker(harness, wait_until)
    strengths = []
    for text in ("make it red --edit", "make it red"):
        (accepted,) = await app.services.jobs.imagine(text, ann, destination, init_images=PICTURE)
        strengths.append((await wait_for_end(app, accepted.job, wait_until)).task.start.strength)
    assert strengths == [1.0, 0.6]
    await app.services.jobs.imagine("a lamp", ann, destination)


async def test_who_may_not_edit_has_no_picture_edited_by_words(harness, wait_until, ann, destination, monkeypatch):
    announce(monkeypatch, edits=True)
    app, _ = await open_app_and_worker(harness, wait_until)
    services = app.services
    await services.rule_admin.set_rule(OWNER, "guild", "", "commands", "imagine")
    with pytest.raises(UserError, match="You may not use edit here") as refusal:
        await services.jobs.imagine("red --edit", ann, destination, init_images=PICTURE)
    assert refusal.value.status == 403
    await services.jobs.imagine("red", ann, destination, init_images=PICTURE)


async def test_a_remix_keeps_the_edit_and_a_branch_is_refused(harness, wait_until, ann, destination, monkeypatch):
    announce(monkeypatch, edits=True)
    app, _ = await open_app_and_worker(harness, wait_until)
    services = app.services
    views = []
    for text in ("red --edit --steps 40", "red --steps 40"):
        (accepted,) = await services.jobs.imagine(text, ann, destination, init_images=PICTURE)
        views.append(await wait_for_end(app, accepted.job, wait_until))
    remixes = [await services.variations.remix(view.id, 0, "blue --edit", ann, destination) for view in views]
    assert [any("--edit is for a new prompt" in note for note in made[0].notes) for made in remixes] == [False, True]
    with pytest.raises(UserError, match="a branch does not keep that picture"):
        await services.edits.branch(views[0].id, 0, 20, ann, destination)
    await services.edits.branch(views[1].id, 0, 30, ann, destination)
