"""Checks before an init image is fetched: a request that would be refused anyway keeps no decoder busy."""

from __future__ import annotations

import asyncio

import pytest

from bot.domain.concurrency import MAX_REQUESTS
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages, RemoteFile
from bot.pictures.uploads.image_links import FileUnavailable
from bot.store.moderation import incidents
from shared.app_harness import wait_for_end
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
ADA = Member("local:ada", "Ada", "local", is_moderator=True, is_admin=True, is_owner=True)
BOB = Member("local:bob", "Bob", "local")
AT = "https://cdn.discordapp.com/a.png"


class DiscordFiles:
    """Discord's files. It records each fetch; a fetch waits for `download_gate`."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.download_gate = asyncio.Event()
        self.download_gate.set()
        self.running_downloads = self.most_at_once = 0

    async def __call__(self, url: str, max_bytes: int) -> bytes:
        self.urls.append(url)
        self.running_downloads += 1
        self.most_at_once = max(self.most_at_once, self.running_downloads)
        await self.download_gate.wait()
        self.running_downloads -= 1
        if "gone" in url:
            raise FileUnavailable
        return make_png(32, 32)


@pytest.fixture
def outside() -> DiscordFiles:
    return DiscordFiles()


async def test_a_request_that_the_rules_refuse_fetches_nothing(harness, wait_until, ann, destination, outside):
    app = await harness.open_app(fetch_upload=outside)
    rules = app.services.rule_admin
    init_images = InitImages((RemoteFile(AT),), RemoteFile(AT + "?mask"))

    async def assert_refused(sentence: str, text: str = "a lamp") -> None:
        with pytest.raises(UserError, match=sentence):
            await app.services.jobs.imagine(text, ann, destination, init_images=init_images)

    for scope, subject, name, value, sentence in (
        ("user", ann.id, "blocked", "yes", "You are blocked"),
        ("guild", "", "commands", "blend", "may not use imagine"),
        ("guild", "", "cost_day", "0", "day's limit is reached: 0 s of 0 s"),
    ):
        await rules.set_rule(ADA, scope, subject, name, value)
        await assert_refused(sentence)
        await rules.undo_change(ADA)
    await app.services.preferences.set_preference(ann.id, "results", "private")
    await rules.set_rule(ADA, "guild", "", "results", "public")
    await assert_refused("you prefer private ones")
    await rules.undo_change(ADA)
    for name, value in (("running", "1"), ("queued", "1")):
        await rules.set_rule(ADA, "guild", "", name, value)
    await app.services.jobs.imagine("{a, b} lamp", ann, destination)
    await assert_refused("Your queue is full")
    await assert_refused("3 jobs are too many", "{a, b, c} lamp")
    open_incidents = await app.store.query(incidents.list_incidents, "local", 20, open_only=False)
    assert "blocked" in {one.kind for one in open_incidents}, "moderators still see the attempt"
    await rules.close_guild(ADA, "holidays")
    await assert_refused("accepts no new jobs")
    assert outside.urls == []


async def test_an_invalid_prompt_fetches_nothing(harness, ann, destination, outside):
    app = await harness.open_app(fetch_upload=outside)
    for text in ("a lamp --steps 5000", "a lamp --nonsense", "{a, b} lamp --repeat 10 --count 4 {c, d, e, f}"):
        with pytest.raises(UserError):
            await app.services.jobs.imagine(text, ann, destination, init_images=InitImages((RemoteFile(AT),)))
    assert outside.urls == []


async def test_a_repeated_request_is_neither_fetched_nor_refused_again(harness, wait_until, ann, destination, outside):
    app = await harness.open_app(fetch_upload=outside)
    init_images = InitImages((RemoteFile(AT),))
    (one,) = await app.services.jobs.imagine("a lamp", ann, destination, init_images=init_images, key="wish")
    await app.services.rule_admin.set_rule(ADA, "guild", "", "queued", "0")
    (retry,) = await app.services.jobs.imagine("a lamp", ann, destination, init_images=init_images, key="wish")
    assert (retry.job, outside.urls) == (one.job, [AT])


async def test_each_member_fetches_one_image_at_a_time_and_delays_no_other(
    harness, wait_until, ann, destination, outside
):
    app = await harness.open_app(fetch_upload=outside)
    outside.download_gate.clear()

    def submit(member: Member, url: str):
        return asyncio.create_task(
            app.services.jobs.imagine("a lamp", member, destination, init_images=InitImages((RemoteFile(url),)))
        )

    ann_tasks = [submit(ann, f"{AT}?{number}") for number in range(MAX_REQUESTS + 1)]
    ended_tasks, waiting_tasks = await asyncio.wait(ann_tasks, return_when=asyncio.FIRST_COMPLETED)
    assert len(ended_tasks) == 1, "whichever of them comes last is refused"
    with pytest.raises(UserError, match="under way already"):
        await ended_tasks.pop()
    bob_task = submit(BOB, AT + "?bob")
    await wait_until(lambda: len(outside.urls) == 2)
    assert outside.most_at_once == 2
    outside.download_gate.set()
    await asyncio.gather(*waiting_tasks, bob_task)
    assert (len(outside.urls), outside.most_at_once) == (MAX_REQUESTS + 1, 2)
    assert app.services.jobs.init_image_loader._memory_limiter.reserved_bytes == 0


async def test_an_image_gone_at_discord_is_reported_and_frees_the_members_turn(
    harness, wait_until, ann, destination, outside
):
    app = await harness.open_app(fetch_upload=outside)
    await harness.start_worker()
    with pytest.raises(UserError, match="lost it") as error:
        await app.services.jobs.imagine(
            "", ann, destination, init_images=InitImages((RemoteFile(AT + "?gone", missing_text="lost it"),))
        )
    assert error.value.status == 404
    (accepted,) = await app.services.jobs.imagine("", ann, destination, init_images=InitImages((RemoteFile(AT),)))
    assert (await wait_for_end(app, accepted.job, wait_until)).state == "finished"


async def test_edits_zooms_pans_and_branches_check_the_rules_before_a_fetch(
    harness, wait_until, ann, destination, outside
):
    app = await harness.open_app(fetch_upload=outside)
    await harness.start_worker()
    (accepted,) = await app.services.jobs.imagine("a lamp --steps 40 --count 1", ann, destination)
    first = await wait_for_end(app, accepted.job, wait_until)
    with pytest.raises(UserError, match="One job at a time"):
        await app.services.edits.edit(first.id, 0, RemoteFile(AT), BOB, destination, text="{a, b}")
    await app.services.rule_admin.set_rule(ADA, "guild", "", "commands", "imagine")
    for request in (
        app.services.edits.edit(first.id, 0, RemoteFile(AT), BOB, destination),
        app.services.edits.zoom(first.id, 0, 2.0, BOB, destination),
        app.services.edits.pan(first.id, 0, "up", BOB, destination),
        app.services.edits.branch(first.id, 0, 20, BOB, destination),
    ):
        with pytest.raises(UserError, match="You may not use"):
            await request
    assert outside.urls == []
