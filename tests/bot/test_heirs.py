"""What becomes of edits, zooms, branches and variations when what they began with is deleted, forgotten or held."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from PIL import Image

from bot.desk.bringing import Bring, Finished
from bot.refused import Refused
from bot.sentences import GONE
from bot.store import deleting, keeping, reads, reviews
from bot.store.ledger import look
from bot.views import Member
from tests.bot.conftest import png
from tests.bot.test_onward import kept, opened, over

__all__ = ["kept"]
pytestmark = pytest.mark.asyncio
BOB, EVE = Member("local:bob", "Bob", "local"), Member("local:eve", "Eve", "local")
MOD = Member("local:mo", "Mo", "local", moderator=True)
BEGUN = ("input", "mask", "branch")


async def finished(workplace, until, ann, here):
    """A job of Ann's, by a worker whose pictures are all different."""
    house, apprentice = await opened(workplace, until)

    async def picture(job, epoch, image):
        out, noise = io.BytesIO(), random.Random(f"{job.id} {image}").randbytes(64 * 64 * 3)
        Image.frombytes("RGB", (64, 64), noise).save(out, "PNG")
        await apprentice.keep(job, epoch, image, "image", out.getvalue(), 64)

    apprentice.picture = picture
    (ticket,) = await house.studio.imagine("a lamp --seed 7 --count 2 --steps 40 --ar 1:1", ann, here)
    return house, apprentice, await over(house, ticket.job, until)


async def derived(house, first, until, here):
    """A job of each kind from the second picture of Ann's, and another roll of the zoom."""
    studio, white = house.studio, png(64, 64, 255)
    made = {
        "edit": await studio.edit(first.id, 1, white, BOB, here),
        "zoom": await studio.zoom(first.id, 1, 2.0, BOB, here),
        "pan": await studio.pan(first.id, 1, "left", BOB, here),
        "branch": await studio.branch(first.id, 1, 20, EVE, here),
        "shots": (await studio.imagine("a cat", EVE, here, bring=Bring((Finished(first.id, 1),))))[0],
    }
    views = {name: await over(house, ticket.job, until) for name, ticket in made.items()}
    again = await studio.reroll(views["zoom"].id, EVE, here)
    return {**views, "again": await over(house, again.job, until)}


async def contents(house, job, *kinds):
    return {one.sha256 for one in await house.store.ask(reads.stored, [job]) if one.kind in kinds}


async def all_say(house, views, here, said, status):
    for name, view in views.items():
        for ask in (
            house.studio.reroll(view.id, BOB, here), house.studio.reproduce(view.id, BOB, here),
            house.studio.vary(view.id, 0, BOB, here), house.studio.remix(view.id, 0, "a dog", BOB, here),
        ):  # fmt: skip
            with pytest.raises(Refused, match=said) as refused:
                await ask
            assert refused.value.status == status, name


@pytest.mark.parametrize("way", ["deleted", "forgotten"])
async def test_what_it_began_with_goes_with_its_source_and_what_was_made_stays(
    workplace, until, ann, here, kept, way
):  # fmt: skip
    house, _, first = await finished(workplace, until, ann, here)
    views = await derived(house, first, until, here)
    alone = await house.studio.zoom(views["edit"].id, 0, 2.0, EVE, here)
    alone = await over(house, alone.job, until)
    theirs = await contents(house, first.id, "image", "ladder")
    for view in views.values():
        theirs |= await contents(house, view.id, "input", "branch")
    assert len(theirs) == 6, "two pictures and ladders, two canvases"
    assert theirs <= kept()
    if way == "deleted":
        await house.desk.moderation.delete(first.id, ann)
    else:
        await house.desk.forgetting.ask(ann.id)
        await until(lambda: not theirs & kept())
    assert not theirs & kept()
    await all_say(house, views, here, GONE, 404)
    for view in (*views.values(), alone):
        assert len(await house.studio.all_shown(view.id)) == view.recipe.count
    assert await house.studio.reroll(alone.id, BOB, here), "the edit is a picture of its own"
    await house.studio.edit(views["edit"].id, 0, png(64, 64, 255), BOB, here)


async def test_a_canvas_goes_with_the_zoom_that_it_was_made_for_and_not_only_with_its_source(
    workplace, until, ann, here, kept
):  # fmt: skip
    house, _, first = await finished(workplace, until, ann, here)
    zoom = await over(house, (await house.studio.zoom(first.id, 1, 2.0, BOB, here)).job, until)
    again = await over(house, (await house.studio.reroll(zoom.id, EVE, here)).job, until)
    canvas = await contents(house, again.id, "input")
    assert canvas == await contents(house, zoom.id, "input")
    await house.desk.moderation.delete(zoom.id, BOB)
    assert not await contents(house, again.id, "input")
    await house.desk.moderation.delete(first.id, ann)
    await until(lambda: not canvas & kept())
    assert len(await house.studio.all_shown(again.id)) == again.recipe.count


async def test_what_goes_by_age_leaves_what_came_of_it_whole(workplace, until, ann, here, kept):
    house, _, first = await finished(workplace, until, ann, here)
    ticket = await house.studio.edit(first.id, 1, png(64, 64, 255), BOB, here)
    edited = await over(house, ticket.job, until)
    begun = await contents(house, edited.id, *BEGUN)
    assert await house.store.write(keeping.let_go, [first.id], "age", 5.0) == [first.id]
    await house.retention.sweep()
    assert await house.store.record(first.id) is None
    assert begun <= kept()
    again = await house.studio.reroll(edited.id, BOB, here)
    assert (await over(house, again.job, until)).state == "finished"


async def test_a_picture_that_somebody_brought_by_themselves_is_theirs(workplace, until, ann, here, kept):
    house, _, _ = await finished(workplace, until, ann, here)
    studio, bring = house.studio, Bring((png(32, 32),))
    (mine,) = await studio.imagine("", ann, here, bring=bring)
    (hers,) = await studio.imagine("", EVE, here, bring=bring)
    views = [await over(house, ticket.job, until) for ticket in (mine, hers)]
    varied = [(await studio.vary(view.id, 0, BOB, here)).job for view in views]
    for job in varied:
        await over(house, job, until)
    (content,) = await contents(house, hers.job, "input")
    await house.desk.moderation.delete(mine.job, ann)
    assert content in kept()
    assert [await contents(house, job, "input") for job in varied] == [set(), {content}]
    await house.desk.moderation.delete(hers.job, EVE)
    assert content not in kept()


async def test_nobody_begins_again_from_what_is_held(workplace, until, ann, here):
    house, _, first = await finished(workplace, until, ann, here)
    views = await derived(house, first, until, here)
    await house.store.write(reviews.review, first.id, 1, "hidden", MOD, 1.0)
    await all_say(house, views, here, "stays hidden: a moderator has looked at it", 403)
    await house.store.write(reviews.review, first.id, 1, "shown", MOD, 2.0)
    for view in views.values():
        await over(house, (await house.studio.reroll(view.id, BOB, here)).job, until)


async def test_what_still_waits_with_it_ends_and_says_so(workplace, until, ann, here):
    house, apprentice, first = await finished(workplace, until, ann, here)
    await house.desk.administration.set(replace(ann, admin=True), "guild", "", "running", "1")
    apprentice.go.clear()
    held = await house.studio.imagine("a cat", BOB, here)
    ticket = await house.studio.edit(first.id, 0, png(64, 64, 255), BOB, here)
    await until(lambda: held[0].job in apprentice.begun)
    await house.desk.moderation.delete(first.id, ann)
    apprentice.go.set()
    view = await over(house, ticket.job, until)
    assert (view.state, view.reason) == ("failed", GONE)
    assert view.cost == 0


@pytest.mark.parametrize("way", ["zoom", "shots"])
async def test_a_deletion_while_it_is_asked_for_wins(workplace, until, ann, here, way):
    house, _, first = await finished(workplace, until, ann, here)
    take = house.studio._take

    async def late(*args, **more):
        await house.desk.moderation.delete(first.id, ann)
        return await take(*args, **more)

    house.studio._take = late
    ask = house.studio.zoom(first.id, 0, 2.0, BOB, here)
    if way == "shots":
        ask.close()
        ask = house.studio.imagine("a cat", BOB, here, bring=Bring((Finished(first.id, 0),)))
    with pytest.raises(Refused, match=GONE):
        await ask


async def test_its_row_says_so_even_while_the_file_is_still_there(workplace, until, ann, here):
    house, _, first = await finished(workplace, until, ann, here)
    other = await contents(house, first.id, "image")
    assert await house.store.ask(look, ann, 1.0, lambda ledger: ledger.gone(None, sorted(other))) is False
    await house.store.write(deleting.mark, [first.id], (ann.id, "Ann"), 1.0)
    for parent, names in ((None, sorted(other)), (first.id, ["0" * 64])):
        assert await house.store.ask(look, ann, 1.0, lambda ledger, p=parent, n=names: ledger.gone(p, n))
    assert not await house.store.ask(look, ann, 1.0, lambda ledger: ledger.gone(None, ["0" * 64]))
