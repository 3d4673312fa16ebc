"""What goes by age and for room, what stays, and that no crash in between loses or leaves a picture."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from bot.config import load
from bot.desk.absent import GONE, absent
from bot.desk.emptying import Emptying
from bot.desk.retention import DAY, GRACE_SECONDS, REMEMBERED, Keep, Retention
from bot.images.pictures import Pictures
from bot.refused import Refused
from bot.store import Store, incidents, keeping, members, reads
from bot.store.ledger import Ledger
from bot.store.tables import jobs
from bot.store.traces import gone, spent, veil
from bot.views import Member, Place
from kept import SIZE, asked, content, draft, files, finished

pytestmark = pytest.mark.asyncio
NOW = 100 * DAY
OLD, NEW = NOW - 31 * DAY, NOW - 5 * DAY


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> Pictures:
    return await asyncio.to_thread(Pictures, tmp_path / "pictures")


def retention(store: Store, pictures: Pictures, *, days: float | None = None, room: int | None = None, now=NOW):
    keep = Keep(None if days is None else days * DAY, room)
    return Retention(store, Emptying(store, pictures), keep, clock=lambda: now)


async def rows(store: Store) -> set[str]:
    return set(await store.ask(lambda c: c.execute(jobs.select()).scalars().all()))


async def spending(store: Store, user: str, whose: Any = "member everywhere", guild: str = "local") -> list[float]:
    """What was spent, and when three seconds of it are free again."""
    member = Member(user, user, guild, channel="room")

    def read(connection: Any) -> list[float]:
        found = Ledger(connection, member, NOW).spending(whose, 30 * DAY)
        return [found.spent, found.leaves(3.0)]

    return await store.ask(read)


async def test_what_is_old_goes_with_all_that_hangs_on_it(store, pictures, tmp_path):
    old = await finished(store, pictures, draft(at=OLD), "old", "shared")
    new = await finished(store, pictures, draft(at=NEW), "new", "shared")
    await retention(store, pictures).sweep()
    assert await rows(store) == {old, new}, "without a setting all is kept for ever"
    await retention(store, pictures, days=30).sweep()
    assert await rows(store) == {new}
    assert await asyncio.to_thread(files, tmp_path / "pictures") == {"new", "shared"}
    assert await store.ask(reads.history, [old]) == []
    assert await store.ask(reads.stored, [old]) == []
    refused = await absent(store, old)
    assert (refused.sentence, refused.status) == (GONE["age"], 410)
    assert (await absent(store, "0" * 26)).status == 404


async def test_what_somebody_may_still_want_stays(store, pictures):
    liked, shown, reported, parent, free = [
        await finished(store, pictures, draft(at=OLD, place=Place(kind, {})))
        for kind in ("web", "discord", "web", "web", "web")
    ]
    await store.write(members.favour, "local:bob", liked, 0, OLD)
    await store.write(incidents.report, "local", "local:bob", "Bob", "rude", OLD, reported)
    waiting = await asked(store, draft(at=OLD, action="upscale", parent=(parent, 0)))
    await retention(store, pictures, days=30, room=1).sweep()
    assert await rows(store) == {liked, shown, reported, parent, waiting}, "and the free one went"
    assert free not in await rows(store)
    for number in [one.number for one in await store.ask(incidents.newest, "local", 9, waiting=True)]:
        await store.write(incidents.close, "local", number, ("local:mod", "Mo"), NOW)
    await retention(store, pictures, days=30).sweep()
    assert await rows(store) == {liked, shown, parent, waiting}


async def test_charges_outlive_their_jobs_without_a_name(store, pictures):
    for at in (NOW - 3 * DAY, NOW - 2 * DAY):
        await finished(store, pictures, draft(at=at))
    before = [await spending(store, "local:ann", whose) for whose in WHOSE]
    await retention(store, pictures, days=1).sweep()
    assert await rows(store) == set()
    after = [await spending(store, "local:ann", whose) for whose in WHOSE]
    assert after == before == [[4.0, NOW + 28 * DAY]] * 4
    assert [(await spending(store, "local:bob", whose))[0] for whose in WHOSE] == [0, 0, 4, 4]
    assert (await spending(store, "local:ann", "member here", "elsewhere"))[0] == 0
    kept = await store.ask(lambda c: c.execute(spent.select()).all())
    assert len(kept) == 2
    assert "ann" not in str(kept)
    await retention(store, pictures, now=NOW + 29 * DAY).sweep()
    for table in (spent, veil):
        assert await store.ask(lambda c, table=table: c.execute(table.select()).all()) == []


WHOSE = ("member everywhere", "member here", "guild", "channel")


async def test_the_oldest_make_room_and_shared_contents_count_once(store, pictures, tmp_path):
    made = [await finished(store, pictures, draft(at=NEW + n), "shared", f"own {n}") for n in range(5)]
    young = await finished(store, pictures, draft(at=NOW - GRACE_SECONDS / 2))
    await store.write(members.favour, "local:ann", made[1], 0, NOW)
    assert await store.ask(keeping.used) == 7 * SIZE
    await retention(store, pictures, room=5 * SIZE).sweep()
    assert await rows(store) == {made[1], made[3], made[4], young}
    assert await asyncio.to_thread(files, tmp_path / "pictures") == {"shared", "own 1", "own 3", "own 4", young}
    assert (await absent(store, made[0])).sentence == GONE["room"]
    await retention(store, pictures, room=1).sweep()
    assert await rows(store) == {made[1], young}, "favourites stay, and what came just now, whatever room there is"


async def test_a_picture_store_that_is_away_takes_no_more_with_it(store, pictures, tmp_path, monkeypatch):
    made = [await finished(store, pictures, draft(at=NEW + n), f"own {n}") for n in range(4)]

    async def away(_sha256: str) -> None:
        raise OSError("away")

    with monkeypatch.context() as patched:
        patched.setattr(pictures, "drop", away)
        await retention(store, pictures, room=3 * SIZE).sweep()
    assert await rows(store) == set(made), "its row says that its file is still there"
    refused = await absent(store, made[0], deleted=True)
    assert (refused.sentence, refused.status) == (GONE["room"], 410)
    await retention(store, pictures).sweep()
    assert await rows(store) == set(made[1:])
    assert await asyncio.to_thread(files, tmp_path / "pictures") == {"own 1", "own 2", "own 3"}


class Pulled(BaseException):
    """The plug."""


def pull_after(steps: int, store: Store, pictures: Pictures, patched: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Everything that changes something works `steps` times, and then nothing does. True if it came to that."""
    left, real = [steps], {"write": store.write, "drop": pictures.drop}

    def broken(name: str) -> Callable[..., Any]:
        async def act(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Pulled
            return await real[name](*args, **options)

        return act

    patched.setattr(store, "write", broken("write"))
    patched.setattr(pictures, "drop", broken("drop"))
    return lambda: left[0] < 0


async def test_a_crash_anywhere_loses_nothing_and_leaves_nothing(local, pictures, tmp_path, monkeypatch):
    store = local
    for steps in range(100):
        old = await finished(store, pictures, draft(at=NOW - 20 * DAY), f"old {steps}", f"shared {steps}")
        new = await finished(store, pictures, draft(at=NEW), f"new {steps}", f"shared {steps}")
        with monkeypatch.context() as patched:
            pulled = pull_after(steps, store, pictures, patched)
            with contextlib.suppress(Pulled):
                await retention(store, pictures, days=10).sweep()
            crashed = pulled()
        for one in await store.ask(reads.stored, [new]):
            assert await pictures.get(one.sha256), "whatever a row names is there"
        assert (await spending(store, "local:ann"))[0] == 4.0
        await retention(store, pictures, days=10).sweep()
        assert await rows(store) == {new}
        assert await asyncio.to_thread(files, tmp_path / "pictures") == {f"new {steps}", f"shared {steps}"}
        assert (await spending(store, "local:ann"))[0] == 4.0
        for job in (old, new):
            await store.write(lambda c, job=job: c.execute(jobs.delete().where(jobs.c.id == job)))
        await store.write(lambda c: c.execute(spent.delete()))
        for text in (f"new {steps}", f"shared {steps}"):
            await pictures.drop(await pictures.put(content(text)))
        if not crashed:
            assert steps > 5, "there were that many steps to be broken off at"
            return
    raise AssertionError("it never came to its end")


async def test_what_went_is_forgotten_after_a_year(store, pictures):
    await finished(store, pictures, draft(at=OLD))
    await retention(store, pictures, days=30).sweep()
    assert len(await store.ask(lambda c: c.execute(gone.select()).all())) == 1
    await retention(store, pictures, now=NOW + REMEMBERED + 1).sweep()
    assert await store.ask(lambda c: c.execute(gone.select()).all()) == []


async def test_the_settings():
    settings = load(keep_days=30, keep_gb=0.5)
    assert (settings.keep_seconds, settings.keep_bytes) == (30 * DAY, 500_000_000)
    assert (load().keep_seconds, load().keep_bytes) == (None, None)
    for name, wrong in (("keep_days", 0), ("keep_gb", -1)):
        with pytest.raises(Refused, match=f"DARKROOM_{name.upper()} is not valid"):
            load(**{name: wrong})


async def test_a_house_sweeps_by_itself(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    (ticket,) = await house.studio.imagine("a lamp --count 1", ann, here)

    async def over() -> bool:
        record = await house.store.record(ticket.job)
        return record is None or record.ended is not None

    await until(over)
    house.retention._keep = replace(house.retention._keep, seconds=0.0)
    await house.retention.sweep()
    with pytest.raises(Refused, match="limited time"):
        await house.studio.view(ticket.job)
