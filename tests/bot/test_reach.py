"""What leads from a job that a member may use to one that they may not: asked about where it is used, by the studio."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.access import ELSEWHERE, PRIVATE
from bot.cli import own
from bot.cli.bringing import Rung
from bot.desk.reach import ORIGINAL
from bot.refused import Refused
from bot.views import Member
from tests.bot.conftest import png
from tests.bot.test_onward import finished, over

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


def going_on(studio, job, who, here):
    """Every way that leads to what was enlarged."""
    return {
        "vary": lambda: studio.vary(job, 0, who, here),
        "remix": lambda: studio.remix(job, 0, "a red lamp", who, here),
        "edit": lambda: studio.edit(job, 0, png(64, 64, 255), who, here),
        "zoom": lambda: studio.zoom(job, 0, 2.0, who, here),
        "pan": lambda: studio.pan(job, 0, "left", who, here),
        "steps": lambda: studio.steps(job, 0, who),
        "branch": lambda: studio.branch(job, 0, 20, who, here),
    }


async def test_a_public_enlargement_does_not_open_its_private_original(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    await house.desk.preferences.prefer(ann.id, "results", "private")
    (ticket,) = await house.studio.imagine("a lamp --steps 40 --count 1", ann, here)
    first = await over(house, ticket.job, until)
    await house.desk.preferences.prefer(ann.id, "results", "public")
    once = await over(house, (await house.studio.upscale(first.id, 0, ann, here)).job, until)
    twice = await over(house, (await house.studio.upscale(once.id, 0, ann, here)).job, until)
    assert (first.private, once.private, twice.private) == (True, False, False)
    before = len(await house.studio.recent())
    for enlarged in (once, twice):
        for name, ask in going_on(house.studio, enlarged.id, BOB, here).items():
            with pytest.raises(Refused) as said:
                await ask()
            assert (said.value.sentence, said.value.status) == (ORIGINAL.format(PRIVATE), 403), name
    assert len(await house.studio.recent()) == before
    assert await house.studio.steps(twice.id, 0, ann) == (10, 20), "its author's it is"


async def test_nor_one_of_a_channel_or_a_server_that_is_closed_to_them(workplace, until, ann, here):
    seen = replace(ann, channel="7")
    house, _, first = await finished(workplace, until, seen, here)
    enlarged = await over(house, (await house.studio.upscale(first.id, 0, replace(ann, channel="8"), here)).job, until)
    blind = replace(BOB, sees=lambda channel: channel != "7")
    with pytest.raises(Refused, match="not yours to go on from"):
        await house.studio.steps(enlarged.id, 0, blind)
    assert await house.studio.steps(enlarged.id, 0, BOB) == (10, 20)
    with pytest.raises(Refused, match=ELSEWHERE):
        await house.studio.vary(enlarged.id, 0, replace(BOB, guild="other"), here)


async def test_the_terminal_asks_the_same_at_the_store(workplace, until, ann, here):
    house, _, first = await finished(workplace, until, ann, here)
    rung = Rung(first.id, 0, 20)
    record, ladder = await own._branching(house.store, workplace.settings, rung)
    assert (record.id, bool(ladder)) == (first.id, True)
    await house.desk.preferences.prefer(ann.id, "results", "private")
    (ticket,) = await house.studio.imagine("a lamp --steps 40 --count 1", ann, here)
    hidden = await over(house, ticket.job, until)
    with pytest.raises(Refused, match=PRIVATE):
        await own._branching(house.store, workplace.settings, Rung(hidden.id, 0, 20))
