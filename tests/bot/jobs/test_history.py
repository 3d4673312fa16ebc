"""A member's history: pages of jobs, favourites, jobs shown nowhere, and the lookup of a job by text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.jobs.history import PAGE_SIZE
from bot.store.members import preferences

pytestmark = pytest.mark.asyncio


async def imagine(app, member, text="a lamp", destination=None) -> str:
    (accepted,) = await app.services.jobs.imagine(text, member, destination or Destination("terminal", {}))
    return accepted.job


def job_ids(page) -> list[str]:
    return [entry.view.id for entry in page.entries]


async def test_pages_list_a_members_own_jobs_from_every_server_newest_first(harness, ann):
    app = await harness.open_app()
    ann_elsewhere = replace(ann, guild="another")
    history = app.services.history
    bob = replace(ann, id="local:bob", name="Bob")
    jobs = [await imagine(app, one) for one in [ann, ann_elsewhere] * 3]
    await imagine(app, bob)
    first = await history.load_page(ann.id, "all", 1)
    second = await history.load_page(ann.id, "all", 2)
    assert [*job_ids(first), *job_ids(second)] == jobs[::-1]
    assert (len(first.entries), first.number, first.page_count, first.job_count) == (PAGE_SIZE, 1, 2, 6)
    assert (await history.load_page(ann.id, "all", 99)).number == 2
    assert (await history.load_page(ann.id, "all", 0)).number == 1
    empty_page = await history.load_page("local:nobody", "all", 5)
    assert (job_ids(empty_page), empty_page.number, empty_page.page_count, empty_page.job_count) == ([], 1, 1, 0)


async def test_favourites_may_be_public_jobs_of_others_but_never_private_ones(harness, ann):
    app = await harness.open_app()
    bob = replace(ann, id="local:bob", name="Bob")
    await app.services.preferences.set_preference(bob.id, "results", "private")
    private_job = await imagine(app, bob)
    await app.services.preferences.set_preference(bob.id, "results", "public")
    public_job = await imagine(app, bob)
    ann_job = await imagine(app, ann)
    for time, (job, image) in enumerate(((private_job, 0), (public_job, 1), (ann_job, 0), (public_job, 3))):
        await app.store.write(preferences.toggle_favourite, ann.id, job, image, float(time))
    page = await app.services.history.load_page(ann.id, "favourites", 1)
    assert {entry.view.id: entry.favourites for entry in page.entries} == {public_job: (1, 3), ann_job: (0,)}


async def test_jobs_that_were_shown_nowhere_are_listed_with_their_reasons(harness, ann):
    app = await harness.open_app()
    history = app.services.history
    deliveries = app.services.deliveries
    job, other = [await imagine(app, ann, destination=Destination("discord", {"channel": "1"})) for _ in range(2)]
    await deliveries.mark_lost(job, "Its channel was deleted.")
    assert (await history.load_page(ann.id, "unshown", 1)).job_count == 0, "the job has not ended yet"
    for one in (job, other):
        await app.services.job_control.cancel(one, ann)
        await deliveries.mark_delivered(one, "answer", "Its channel was deleted.")
        await deliveries.add_destination(one, "direct", Destination("discord", {"channel": "2", "message": "3"}))
    await deliveries.mark_delivered(job, "direct", "Your direct messages are closed to me.")
    await deliveries.mark_delivered(other, "direct")
    (entry,) = (await history.load_page(ann.id, "unshown", 1)).entries
    assert entry.view.id == job
    assert entry.reason == "Its channel was deleted. Your direct messages are closed to me."
    entries_by_id = {one.view.id: one for one in (await history.load_page(ann.id, "all", 1)).entries}[other]
    assert entries_by_id.reason == ""
    assert entries_by_id.destination == Destination("discord", {"channel": "2", "message": "3"})


async def test_a_job_is_found_by_id_link_or_seed(harness, ann):
    app = await harness.open_app()
    job = await imagine(app, ann, "a lamp --seed 40 --steps 20", Destination("discord", {"guild": "1", "channel": "2"}))
    await app.services.deliveries.update_address(job, message="33")
    history = app.services.history
    bob = replace(ann, id="local:bob", name="Bob")
    for text in (
        job,
        f"the job {job.lower()}, please",
        "https://discord.com/channels/1/2/33",
        "https://discord.com/channels/@me/2/33",
        "40",
        " 40 ",
        "20 steps of DDPM · seed 40 · guidance 3",
        "Steps: 20, Seed: 40, Size: 64x64",
    ):
        assert (await history.find_job(text, bob)).id == job, text
    for text in ("a lamp", "", "20 steps", "4", "seed 4", "https://discord.com/channels/1/2/34", "7" * 26):
        with pytest.raises(UserError):
            await history.find_job(text, bob)
    with pytest.raises(UserError):
        await history.find_job("seed 40", replace(bob, guild="another"))


async def test_typed_prompts_are_suggested_once_each(harness, ann):
    app = await harness.open_app()
    for text in ("a lamp", "a chair", "a lamp"):
        await imagine(app, ann, text)
    job = (await app.services.history.load_page(ann.id, "all", 1)).entries[1].view.id
    await app.services.variations.reroll(job, ann, Destination("terminal", {}))
    assert await app.services.history.recent_prompts(ann.id) == ["a lamp", "a chair"]


async def test_open_jobs_are_those_that_have_not_ended(harness, ann):
    app = await harness.open_app()
    first = await imagine(app, ann)
    second = await imagine(app, ann)
    await app.services.job_control.cancel(first, ann)
    assert [view.id for view in await app.services.history.list_open(ann.id)] == [second]


async def test_nearby_jobs_are_ones_own_and_the_public_ones_of_the_channel(harness, ann):
    app = await harness.open_app()
    room = replace(ann, channel="1")
    other = replace(ann, channel="2")
    bob = replace(room, id="local:bob", name="Bob")
    room_job = await imagine(app, room)
    other_channel_job = await imagine(app, other)
    bob_job = await imagine(app, bob)
    await imagine(app, replace(bob, channel="2"))
    await app.services.preferences.set_preference(bob.id, "results", "private")
    await imagine(app, bob)
    assert [view.id for view in await app.services.history.list_nearby(room, 10)] == [
        bob_job,
        other_channel_job,
        room_job,
    ]
