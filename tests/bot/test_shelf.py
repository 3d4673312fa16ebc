"""The shelf: pages of one member's own, favourites, what could not be shown; and which job somebody means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.desk.shelf import PAGE
from bot.refused import Refused
from bot.store import members
from bot.views import Place

pytestmark = pytest.mark.asyncio


async def ask(house, member, text="a lamp", place=None) -> str:
    (ticket,) = await house.studio.imagine(text, member, place or Place("terminal", {}))
    return ticket.job


def ids(page) -> list[str]:
    return [kept.view.id for kept in page.kept]


async def test_pages_are_ones_own_the_newest_first_from_every_server(workplace, ann):
    house, elsewhere = await workplace.house(), replace(ann, guild="another")
    shelf, bob = house.desk.shelf, replace(ann, id="local:bob", name="Bob")
    jobs = [await ask(house, one) for one in [ann, elsewhere] * 3]
    await ask(house, bob)
    first, second = await shelf.page(ann.id, "all", 1), await shelf.page(ann.id, "all", 2)
    assert [*ids(first), *ids(second)] == jobs[::-1]
    assert (len(first.kept), first.number, first.of, first.total) == (PAGE, 1, 2, 6)
    assert (await shelf.page(ann.id, "all", 99)).number == 2
    assert (await shelf.page(ann.id, "all", 0)).number == 1
    nobody = await shelf.page("local:nobody", "all", 5)
    assert (ids(nobody), nobody.number, nobody.of, nobody.total) == ([], 1, 1, 0)


async def test_favourites_may_be_others_public_ones_but_never_their_private_ones(workplace, ann):
    house, bob = await workplace.house(), replace(ann, id="local:bob", name="Bob")
    await house.desk.preferences.prefer(bob.id, "results", "private")
    hidden = await ask(house, bob)
    await house.desk.preferences.prefer(bob.id, "results", "public")
    shown, own = await ask(house, bob), await ask(house, ann)
    for at, (job, image) in enumerate(((hidden, 0), (shown, 1), (own, 0), (shown, 3))):
        await house.store.write(members.favour, ann.id, job, image, float(at))
    page = await house.desk.shelf.page(ann.id, "favourites", 1)
    assert {kept.view.id: kept.liked for kept in page.kept} == {shown: (1, 3), own: (0,)}


async def test_what_was_shown_nowhere_stands_with_its_reasons(workplace, ann):
    house = await workplace.house()
    shelf, book = house.desk.shelf, house.desk.deliveries
    job, other = [await ask(house, ann, place=Place("discord", {"channel": "1"})) for _ in range(2)]
    await book.lost(job, "Its channel was deleted.")
    assert (await shelf.page(ann.id, "unshown", 1)).total == 0, "it is not over yet"
    for one in (job, other):
        await house.studio.cancel(one, ann)
        await book.delivered(one, "answer", "Its channel was deleted.")
        await book.add(one, "direct", Place("discord", {"channel": "2", "message": "3"}))
    await book.delivered(job, "direct", "Your direct messages are closed to me.")
    await book.delivered(other, "direct")
    (kept,) = (await shelf.page(ann.id, "unshown", 1)).kept
    assert kept.view.id == job
    assert kept.reason == "Its channel was deleted. Your direct messages are closed to me."
    elsewhere = {one.view.id: one for one in (await shelf.page(ann.id, "all", 1)).kept}[other]
    assert elsewhere.reason == ""
    assert elsewhere.place == Place("discord", {"channel": "2", "message": "3"})


async def test_a_job_is_meant_by_id_link_or_seed(workplace, ann):
    house = await workplace.house()
    job = await ask(house, ann, "a lamp --seed 40 --steps 20", Place("discord", {"guild": "1", "channel": "2"}))
    await house.desk.deliveries.moved(job, message="33")
    shelf, bob = house.desk.shelf, replace(ann, id="local:bob", name="Bob")
    for text in (
        job, f"the job {job.lower()}, please", "https://discord.com/channels/1/2/33",
        "https://discord.com/channels/@me/2/33", "40", " 40 ",
        "20 steps of DDPM · seed 40 · guidance 3", "Steps: 20, Seed: 40, Size: 64x64",
    ):  # fmt: skip
        assert (await shelf.meant(text, bob)).id == job, text
    for text in ("a lamp", "", "20 steps", "4", "seed 4", "https://discord.com/channels/1/2/34", "7" * 26):
        with pytest.raises(Refused):
            await shelf.meant(text, bob)
    with pytest.raises(Refused):
        await shelf.meant("seed 40", replace(bob, guild="another"))


async def test_prompts_are_offered_once_each_and_only_those_that_were_typed(workplace, ann):
    house = await workplace.house()
    for text in ("a lamp", "a chair", "a lamp"):
        await ask(house, ann, text)
    job = (await house.desk.shelf.page(ann.id, "all", 1)).kept[1].view.id
    await house.studio.reroll(job, ann, Place("terminal", {}))
    assert await house.desk.shelf.prompts(ann.id) == ["a lamp", "a chair"]


async def test_open_jobs_are_those_that_are_not_over(workplace, ann):
    house = await workplace.house()
    first, second = await ask(house, ann), await ask(house, ann)
    await house.studio.cancel(first, ann)
    assert [view.id for view in await house.desk.shelf.open_of(ann.id)] == [second]


async def test_near_are_ones_own_and_the_public_ones_of_the_channel(workplace, ann):
    house = await workplace.house()
    room, other = replace(ann, channel="1"), replace(ann, channel="2")
    bob = replace(room, id="local:bob", name="Bob")
    mine, away = await ask(house, room), await ask(house, other)
    theirs = await ask(house, bob)
    await ask(house, replace(bob, channel="2"))
    await house.desk.preferences.prefer(bob.id, "results", "private")
    await ask(house, bob)
    assert [view.id for view in await house.desk.shelf.near(room, 10)] == [theirs, away, mine]
