"""The studio from a prompt to a picture, over a real broker and a real store."""

from __future__ import annotations

import pytest

from bot.feed import Developing, Settled
from bot.refused import Refused
from bot.views import Member

BOB = Member("local:bob", "Bob", "local")


async def _done(studio, job, until):
    async def over():
        return (await studio.view(job)).state in ("finished", "failed", "cancelled")

    await until(over)
    return await studio.view(job)


@pytest.mark.asyncio
async def test_a_prompt_becomes_pictures_and_a_film(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    (ticket,) = await house.studio.imagine("terrier, looking up --seed 7", ann, here)
    assert ticket.worker
    assert (ticket.seed, ticket.steps, ticket.sampler, ticket.count) == (7, 40, "ddim", 4)
    view = await _done(house.studio, ticket.job, until)
    assert (view.state, view.seconds, view.ms_per_step) == ("finished", 1.5, 2.0)
    assert [shot.index for shot in view.pictures] == [0, 1, 2, 3]
    assert view.ladders == (0, 1, 2, 3)
    assert view.cost == pytest.approx(ticket.cost / 2)
    assert (await house.studio.picture(ticket.job, 3)).startswith(b"\x89PNG")
    assert (await house.studio.film(ticket.job))[8:12] == b"WEBP"
    assert await house.studio.rungs(ticket.job) == [0, 10, 20]
    assert (await house.studio.rung(ticket.job, 2))[8:12] == b"WEBP"
    with pytest.raises(Refused):
        await house.studio.rung(ticket.job, 3)


@pytest.mark.asyncio
async def test_the_feed_shows_it_develop_and_end(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    await until(lambda: house.studio.workers())
    async with house.feed.subscribe() as moments:
        (ticket,) = await house.studio.imagine("a lamp --count 1", ann, here)
        seen = []
        async for moment in moments:
            seen.append(moment)
            apprentice.go.set()
            if isinstance(moment, Settled):
                break
    assert moment == Settled(ticket.job, "finished", "")
    frames = [one.frames for one in seen if isinstance(one, Developing)]
    assert frames
