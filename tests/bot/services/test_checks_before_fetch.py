"""Checks before an init image is fetched: a request that would be refused anyway keeps no decoder busy."""

from __future__ import annotations

import asyncio

import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.images.uploads.image_links import FileUnavailable
from bot.services.init_images.request import InitImages, RemoteFile
from bot.store.moderation import incidents
from tests.bot.conftest import png
from tests.bot.services.test_edits import over

pytestmark = pytest.mark.asyncio
ADA = Member("local:ada", "Ada", "local", is_moderator=True, is_admin=True, is_owner=True)
BOB = Member("local:bob", "Bob", "local")
AT = "https://cdn.discordapp.com/a.png"


class DiscordFiles:
    """Discord's files: it records each fetch, which waits for `go`."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.running = self.most_at_once = 0

    async def __call__(self, url: str, most: int) -> bytes:
        self.urls.append(url)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        await self.go.wait()
        self.running -= 1
        if "gone" in url:
            raise FileUnavailable
        return png(32, 32)


@pytest.fixture
def outside() -> DiscordFiles:
    return DiscordFiles()


async def test_a_request_that_the_rules_refuse_fetches_nothing(
    workplace, until, ann, here, outside):  # fmt: skip
    house = await workplace.house(fetch_upload=outside)
    rules, bring = house.services.rule_admin, InitImages((RemoteFile(AT),), RemoteFile(AT + "?mask"))

    async def assert_refused(sentence: str, text: str = "a lamp") -> None:
        with pytest.raises(UserError, match=sentence):
            await house.services.jobs.imagine(text, ann, here, init_images=bring)

    for scope, whom, name, value, sentence in (
        ("user", ann.id, "blocked", "yes", "You are blocked"),
        ("guild", "", "commands", "blend", "may not use imagine"),
        ("guild", "", "cost_day", "0", "day's limit is reached: 0 s of 0 s"),
    ):
        await rules.set_rule(ADA, scope, whom, name, value)
        await assert_refused(sentence)
        await rules.undo_change(ADA)
    await house.services.preferences.set_preference(ann.id, "results", "private")
    await rules.set_rule(ADA, "guild", "", "results", "public")
    await assert_refused("you prefer private ones")
    await rules.undo_change(ADA)
    for name, value in (("running", "1"), ("queued", "1")):
        await rules.set_rule(ADA, "guild", "", name, value)
    await house.services.jobs.imagine("{a, b} lamp", ann, here)
    await assert_refused("Your queue is full")
    await assert_refused("3 jobs are too many", "{a, b, c} lamp")
    noted = await house.store.query(incidents.list_incidents, "local", 20, open_only=False)
    assert "blocked" in {one.kind for one in noted}, "moderators still see the attempt"
    await rules.close_guild(ADA, "holidays")
    await assert_refused("closed for new pictures")
    assert outside.urls == []


async def test_an_invalid_prompt_fetches_nothing(workplace, ann, here, outside):
    house = await workplace.house(fetch_upload=outside)
    for text in ("a lamp --steps 5000", "a lamp --nonsense", "{a, b} lamp --repeat 10 --count 4 {c, d, e, f}"):
        with pytest.raises(UserError):
            await house.services.jobs.imagine(text, ann, here, init_images=InitImages((RemoteFile(AT),)))
    assert outside.urls == []


async def test_a_repeated_request_is_neither_fetched_nor_refused_again(workplace, until, ann, here, outside):
    house = await workplace.house(fetch_upload=outside)
    bring = InitImages((RemoteFile(AT),))
    (one,) = await house.services.jobs.imagine("a lamp", ann, here, init_images=bring, key="wish")
    await house.services.rule_admin.set_rule(ADA, "guild", "", "queued", "0")
    (again,) = await house.services.jobs.imagine("a lamp", ann, here, init_images=bring, key="wish")
    assert (again.job, outside.urls) == (one.job, [AT])


async def test_each_member_fetches_one_image_at_a_time_and_delays_no_other(workplace, until, ann, here, outside):
    house = await workplace.house(fetch_upload=outside)
    outside.go.clear()

    def submit(who: Member, url: str):
        return asyncio.create_task(
            house.services.jobs.imagine("a lamp", who, here, init_images=InitImages((RemoteFile(url),)))
        )

    ann_tasks = [submit(ann, f"{AT}?{number}") for number in range(4)]
    await until(lambda: outside.urls)
    bob_task = submit(BOB, AT + "?bob")
    await until(lambda: len(outside.urls) == 2)
    with pytest.raises(UserError, match="under way already"):
        await submit(ann, AT)
    assert (len(outside.urls), outside.most_at_once) == (2, 2)
    outside.go.set()
    await asyncio.gather(*ann_tasks, bob_task)
    assert outside.most_at_once == 2
    assert house.services.jobs._init_image_loader._memory_limiter.reserved_bytes == 0


async def test_an_image_gone_at_discord_is_reported_and_frees_the_members_turn(workplace, until, ann, here, outside):
    house = await workplace.house(fetch_upload=outside)
    await workplace.worker()
    with pytest.raises(UserError, match="lost it") as refusal:
        await house.services.jobs.imagine(
            "", ann, here, init_images=InitImages((RemoteFile(AT + "?gone", missing_text="lost it"),))
        )
    assert refusal.value.status == 404
    (ticket,) = await house.services.jobs.imagine("", ann, here, init_images=InitImages((RemoteFile(AT),)))
    assert (await over(house, ticket.job, until)).state == "finished"


async def test_edits_zooms_pans_and_branches_check_the_rules_before_a_fetch(workplace, until, ann, here, outside):
    house = await workplace.house(fetch_upload=outside)
    await workplace.worker()
    (ticket,) = await house.services.jobs.imagine("a lamp --steps 40 --count 1", ann, here)
    first = await over(house, ticket.job, until)
    with pytest.raises(UserError, match="One job at a time"):
        await house.services.edits.edit(first.id, 0, RemoteFile(AT), BOB, here, text="{a, b}")
    await house.services.rule_admin.set_rule(ADA, "guild", "", "commands", "imagine")
    for ask in (
        house.services.edits.edit(first.id, 0, RemoteFile(AT), BOB, here),
        house.services.edits.zoom(first.id, 0, 2.0, BOB, here),
        house.services.edits.pan(first.id, 0, "up", BOB, here), house.services.edits.branch(first.id, 0, 20, BOB, here),
    ):  # fmt: skip
        with pytest.raises(UserError, match="You may not use"):
            await ask
    assert outside.urls == []
