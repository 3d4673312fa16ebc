"""What is asked before a picture is looked at: nobody who would be refused anyway keeps the readers busy."""

from __future__ import annotations

import asyncio

import pytest

from bot.desk.bringing import Bring, Remote
from bot.images.links import Gone
from bot.refused import Refused
from bot.store import incidents
from bot.views import Member
from tests.bot.conftest import png
from tests.bot.test_onward import over

pytestmark = pytest.mark.asyncio
ADA = Member("local:ada", "Ada", "local", moderator=True, admin=True, owner=True)
BOB = Member("local:bob", "Bob", "local")
AT = "https://cdn.discordapp.com/a.png"


class Outside:
    """Discord's files, each with what it waits for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.now = self.most = 0

    async def __call__(self, url: str, most: int) -> bytes:
        self.asked.append(url)
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        if "gone" in url:
            raise Gone
        return png(32, 32)


@pytest.fixture
def outside() -> Outside:
    return Outside()


async def test_who_would_be_refused_anyway_is_refused_before_anything_is_fetched(
    workplace, until, ann, here, outside
):  # fmt: skip
    house = await workplace.house(outside=outside)
    rules, bring = house.desk.administration, Bring((Remote(AT),), Remote(AT + "?mask"))

    async def refused(said: str, text: str = "a lamp") -> None:
        with pytest.raises(Refused, match=said):
            await house.studio.imagine(text, ann, here, bring=bring)

    for scope, whom, name, value, said in (
        ("user", ann.id, "blocked", "yes", "You are blocked"),
        ("guild", "", "commands", "blend", "may not use imagine"),
        ("guild", "", "cost_day", "0", "day's limit is reached: 0 s of 0 s"),
    ):
        await rules.set(ADA, scope, whom, name, value)
        await refused(said)
        await rules.undo(ADA)
    await house.desk.preferences.prefer(ann.id, "results", "private")
    await rules.set(ADA, "guild", "", "results", "public")
    await refused("you prefer private ones")
    await rules.undo(ADA)
    for name, value in (("running", "1"), ("queued", "1")):
        await rules.set(ADA, "guild", "", name, value)
    await house.studio.imagine("{a, b} lamp", ann, here)
    await refused("Your queue is full")
    await refused("3 jobs are too many", "{a, b, c} lamp")
    noted = await house.store.ask(incidents.newest, "local", 20, waiting=False)
    assert "blocked" in {one.kind for one in noted}, "as ever, moderators see who tries"
    await rules.close(ADA, "holidays")
    await refused("closed for new pictures")
    assert outside.asked == []


async def test_words_that_are_wrong_are_said_before_anything_is_fetched(workplace, ann, here, outside):
    house = await workplace.house(outside=outside)
    for text in ("a lamp --steps 5000", "a lamp --nonsense", "{a, b} lamp --repeat 10 --count 4 {c, d, e, f}"):
        with pytest.raises(Refused):
            await house.studio.imagine(text, ann, here, bring=Bring((Remote(AT),)))
    assert outside.asked == []


async def test_the_same_wish_is_neither_read_nor_refused_again(workplace, until, ann, here, outside):
    house = await workplace.house(outside=outside)
    bring = Bring((Remote(AT),))
    (one,) = await house.studio.imagine("a lamp", ann, here, bring=bring, key="wish")
    await house.desk.administration.set(ADA, "guild", "", "queued", "0")
    (again,) = await house.studio.imagine("a lamp", ann, here, bring=bring, key="wish")
    assert (again.job, outside.asked) == (one.job, [AT])


async def test_of_one_member_one_is_read_and_others_are_not_held_up(workplace, until, ann, here, outside):
    house = await workplace.house(outside=outside)
    outside.go.clear()

    def ask(who: Member, url: str):
        return asyncio.create_task(house.studio.imagine("a lamp", who, here, bring=Bring((Remote(url),))))

    theirs = [ask(ann, f"{AT}?{number}") for number in range(4)]
    await until(lambda: outside.asked)
    other = ask(BOB, AT + "?bob")
    await until(lambda: len(outside.asked) == 2)
    with pytest.raises(Refused, match="under way already"):
        await ask(ann, AT)
    assert (len(outside.asked), outside.most) == (2, 2)
    outside.go.set()
    await asyncio.gather(*theirs, other)
    assert outside.most == 2
    assert house.studio._starting._tray.taken == 0


async def test_what_is_gone_at_discord_is_said_and_leaves_the_line(workplace, until, ann, here, outside):
    house = await workplace.house(outside=outside)
    await workplace.worker()
    with pytest.raises(Refused, match="lost it") as said:
        await house.studio.imagine("", ann, here, bring=Bring((Remote(AT + "?gone", lost="lost it"),)))
    assert said.value.status == 404
    (ticket,) = await house.studio.imagine("", ann, here, bring=Bring((Remote(AT),)))
    assert (await over(house, ticket.job, until)).state == "finished"


async def test_edits_zooms_pans_and_branches_ask_first_too(workplace, until, ann, here, outside):
    house = await workplace.house(outside=outside)
    await workplace.worker()
    (ticket,) = await house.studio.imagine("a lamp --steps 40 --count 1", ann, here)
    first = await over(house, ticket.job, until)
    with pytest.raises(Refused, match="One job at a time"):
        await house.studio.edit(first.id, 0, Remote(AT), BOB, here, text="{a, b}")
    await house.desk.administration.set(ADA, "guild", "", "commands", "imagine")
    for ask in (
        house.studio.edit(first.id, 0, Remote(AT), BOB, here), house.studio.zoom(first.id, 0, 2.0, BOB, here),
        house.studio.pan(first.id, 0, "up", BOB, here), house.studio.branch(first.id, 0, 20, BOB, here),
    ):  # fmt: skip
        with pytest.raises(Refused, match="You may not use"):
            await ask
    assert outside.asked == []
