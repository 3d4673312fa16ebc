"""A member is forgotten, whole and by themselves alone, whatever breaks in between; and what they can take along."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import zipfile
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_asyncio
from sqlalchemy import select, update

from bot import leader as leader_module
from bot.cli import members as by_hand
from bot.cli.running import only_one
from bot.config import load
from bot.desk.absent import absent
from bot.desk.emptying import Emptying
from bot.desk.export import Export
from bot.desk.forgetting import Forgetting
from bot.feed import Feed
from bot.images.pictures import Pictures
from bot.refused import Refused
from bot.store import Store, Unavailable, forgetting, incidents, members, places, reads, terms
from bot.store.ledger import Ledger
from bot.store.tables import accounts, metadata
from bot.store.tables import jobs as rows
from bot.store.traces import spent
from bot.store.weeding import weed
from bot.views import Delivery, Member, Place
from kept import SIZE, asked, draft, files, finished

pytestmark = pytest.mark.asyncio
# As long as Discord's ids: no random id of a job has them in it.
ANN, BOB = "discord:70010000000000001", "discord:70020000000000002"
NOW = 1000.0
SHOWN = Place("discord", {"channel": "5", "message": "60"})


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> Pictures:
    return await asyncio.to_thread(Pictures, tmp_path / "pictures")


def forgetter(store: Store, pictures: Pictures, *, waits: bool = False, now: float = NOW) -> Forgetting:
    async def cancel(job: str) -> object:
        return await store.wish(job, now)

    return Forgetting(store, cancel, Emptying(store, pictures), Feed(), waits=waits, clock=lambda: now)


async def everything(store: Store) -> str:
    """All rows of all tables, as text."""

    def read(connection: Any) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(table.select()))

    return await store.ask(read)


async def spending(store: Store, user: str) -> float:
    member = Member(user, user, "local", channel="room")
    return await store.ask(lambda c: Ledger(c, member, NOW).spending("member everywhere", 86400.0).spent)


async def lived(store: Store, pictures: Pictures) -> dict[str, str]:
    """Ann and Bob, with all that the store can know of them."""
    jobs = {
        "done": await finished(store, pictures, draft(ANN, at=10), "ann's", "both's"),
        "elsewhere": await finished(store, pictures, draft(ANN, at=11, guild="discord:9"), "elsewhere"),
        "waits": await asked(store, draft(ANN, at=12)),
        "bob's": await finished(store, pictures, draft(BOB, at=13), "bob's", "both's"),
    }
    enlarged = draft(BOB, at=14, action="upscale", parent=(jobs["done"], 0))
    jobs["enlarged"] = await finished(store, pictures, enlarged, "ann's, larger")
    for member in (ANN, BOB):
        await store.write(members.prefer, member, {"suffix": f"as {member} likes it"})
        await store.write(incidents.note, "local", "word", member, member, "a word", NOW - 1)
    await store.write(members.favour, ANN, jobs["bob's"], 0, 20.0)
    await store.write(members.favour, BOB, jobs["done"], 0, 20.0)
    await store.write(incidents.report, "local", ANN, "Ann 70010000000000001", "rude", 21.0, jobs["bob's"])
    return jobs


async def test_all_of_a_member_goes_and_nothing_of_others(store, pictures, tmp_path):
    jobs = await lived(store, pictures)
    before = await spending(store, ANN)
    desk = forgetter(store, pictures)
    assert await desk.about(ANN) == 3
    assert await desk.ask(ANN) == 3
    assert await desk.under_way(ANN)
    await desk.round()
    assert await desk.round() is False
    assert not await desk.under_way(ANN)
    told = await everything(store)
    assert "70010000000000001" not in told
    assert "70020000000000002" in told
    assert await asyncio.to_thread(files, tmp_path / "pictures") == {"bob's", "both's"}
    assert set(await store.ask(reads.some, list(jobs.values()))) == {jobs["bob's"], jobs["enlarged"]}
    assert (await absent(store, jobs["done"])).status == 410
    assert (before, await spending(store, ANN)) == (8.0, 4.0), "what was spent; what never ran is given back"
    (report,) = await store.ask(incidents.newest, "local", 9, waiting=True)
    assert (report.actor_name, report.said, report.job) == (forgetting.FORGOTTEN, "rude", jobs["bob's"])
    assert await store.ask(members.favoured, BOB) == []


async def test_one_server_alone_and_what_came_later_stays(store, pictures):
    jobs = await lived(store, pictures)
    desk = forgetter(store, pictures)
    await desk.ask(ANN, "discord:9")
    later = await asked(store, draft(ANN, at=NOW + 1, guild="discord:9"))
    await desk.round()
    assert await store.record(jobs["elsewhere"]) is None
    assert all([await store.record(job) for job in (jobs["done"], jobs["waits"], later)])
    assert await store.ask(members.preferences, ANN) != {}
    await desk.ask(ANN)
    await desk.round()
    await desk.round()
    assert await store.record(jobs["done"]) is None
    assert await store.record(later), "asked for after the wish"
    kept = await store.ask(lambda c: c.execute(accounts.select().where(accounts.c.queued > 0)).all())
    assert any("70010000000000001" in row.path for row in kept), "it still waits in its turn"


async def test_messages_go_where_discord_lets_us_and_wait_while_it_is_away(store, pictures):
    job = await finished(store, pictures, draft(ANN, at=10, place=SHOWN), "ann's")
    await store.write(places.moved, job, SHOWN.where)
    await store.write(places.delivered, job, 11.0)
    await store.write(places.add_film, job, Place("discord", {"channel": "5", "message": "61"}), 11.0)
    desk, removed, answers = forgetter(store, pictures, waits=True), [], [True, ConnectionError("away"), False]

    async def take_away(_job: str, one: Delivery) -> bool:
        removed.append(one.message)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await desk.ask(ANN)
    await desk.round()
    assert await desk.under_way(ANN), "nobody is there yet who could take its messages away"
    assert await store.ask(reads.stored, [job]) == [], "its pictures did not wait"
    desk.take_away = take_away
    await desk.round()
    assert await desk.under_way(ANN)
    await desk.round()
    assert sorted(removed[:2]) == ["60", "61"]
    assert removed[2] == removed[1], "what is gone already is not asked for again"
    assert not await desk.under_way(ANN)
    assert await store.record(job) is None


class Pulled(BaseException):
    """The plug."""


async def test_killed_anywhere_it_goes_on(local, pictures, tmp_path, monkeypatch):
    store = local
    for steps in range(0, 100, 3):
        await store.write(lambda c: [c.execute(table.delete()) for table in reversed(metadata.sorted_tables)])
        jobs = await lived(store, pictures)
        desk, left = forgetter(store, pictures), [steps]
        await desk.ask(ANN)
        real = store.write

        async def broken(*args: Any, left: list[int] = left, real: Any = real, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Pulled
            return await real(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(store, "write", broken)
            with contextlib.suppress(Pulled):
                while await desk.under_way(ANN):
                    await desk.round()
        again = forgetter(store, pictures)
        while await again.under_way(ANN):
            await again.round()
        told = await everything(store)
        assert "70010000000000001" not in told, steps
        assert await spending(store, ANN) == 4.0, steps
        assert await asyncio.to_thread(files, tmp_path / "pictures") == {"bob's", "both's"}
        assert await store.record(jobs["bob's"])
        if left[0] >= 0:
            assert steps > 5
            return
    raise AssertionError("it never came to its end")


async def test_what_runs_is_stopped_first(workplace, until, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    await until(lambda: house.studio.workers())
    apprentice.go.clear()
    ann = Member(ANN, "Ann", "local")
    jobs = [(await house.studio.imagine("a lamp --count 1", ann, here))[0].job for _ in range(4)]
    await until(lambda: apprentice.begun)
    assert await house.desk.forgetting.ask(ANN) == 4

    async def forgotten() -> bool:
        return not await house.desk.forgetting.under_way(ANN)

    await until(forgotten, 20)
    assert await house.store.ask(reads.some, jobs) == {}
    assert not apprentice.held
    with pytest.raises(Refused, match="its author had everything removed"):
        await house.studio.view(jobs[0])
    charged = await house.store.ask(lambda c: c.execute(spent.select()).all())
    assert len(charged) == len(apprentice.begun), "what ran was charged, and is counted without a name"


async def test_a_job_whose_row_cannot_be_read_goes_like_the_others_once_it_is_over(store, pictures, caplog):
    job = await finished(store, pictures, draft(ANN, at=10), "ann's")
    waits = await asked(store, draft(ANN, at=12))
    await store.write(lambda c: c.execute(update(rows).values(task=b"\0")) and None)
    desk = forgetter(store, pictures)
    await desk.ask(ANN)
    assert await desk.round() is True, "what waits cannot be cancelled, and stops nobody"
    left = await store.ask(lambda c: c.execute(select(rows.c.id, rows.c.state)).all())
    assert [tuple(row) for row in left] == [(waits, "queued")]
    assert f"job {waits}: " in caplog.text
    assert f"job {job}: " not in caplog.text
    assert await store.write(weed, NOW) == [waits]
    caplog.clear()
    assert await desk.round() is False
    assert not await desk.under_way(ANN)
    assert "70010000000000001" not in await everything(store)
    assert caplog.text == ""


# By hand


@pytest.mark.may_block("the command line is on its own")
async def test_by_hand_without_a_bot_and_beside_one(tmp_path, capsys, monkeypatch):
    settings = load(data=tmp_path)
    store = await Store.open(settings.database)
    pictures = Pictures(settings.pictures)
    job = await finished(store, pictures, draft(ANN, at=10), "ann's")
    shown = await finished(store, pictures, draft(ANN, at=10, place=SHOWN), "shown")
    await store.write(places.moved, shown, SHOWN.where)
    await store.write(places.delivered, shown, 11.0)
    monkeypatch.setattr(by_hand, "PATIENCE_SECONDS", 0.1)
    with only_one(tmp_path):
        await asyncio.to_thread(by_hand.forget, ANN, "", tmp_path)
    assert "goes one by one by the running bot" in capsys.readouterr().out
    assert await store.record(job), "that is the bot's work"
    await asyncio.to_thread(by_hand.forget, ANN, "", tmp_path)
    assert "goes when a bot runs next" in capsys.readouterr().out
    assert await store.record(job) is None
    assert await store.record(shown), "its message is still there"
    assert files(tmp_path / "pictures") == set()
    await asyncio.to_thread(by_hand.forget, BOB, "", tmp_path)
    assert f"{BOB}: 0 jobs and all their data are deleted" in capsys.readouterr().out
    await store.close()


@pytest.mark.may_block("the command line is on its own")
async def test_by_hand_beside_a_bot_that_runs_elsewhere(tmp_path, database, capsys, monkeypatch):
    monkeypatch.setattr(by_hand, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(leader_module, "BEAT_SECONDS", 0.2)
    monkeypatch.setenv("DATABASE_URL", database)
    store, pictures = await Store.open(database), Pictures(load(data=tmp_path).pictures)
    job = await finished(store, pictures, draft(ANN, at=10), "ann's")
    async with leader_module.leading(None, print, lost=print) as leader:
        await leader.begin(store)
        await asyncio.to_thread(by_hand.forget, ANN, "", tmp_path)
        assert "goes one by one by the running bot" in capsys.readouterr().out
        assert await store.record(job), "that is the bot's work"
        assert await store.leads()
        leader.end()
    await store.close()
    after = await Store.open(database)
    await asyncio.to_thread(by_hand.forget, ANN, "", tmp_path)
    assert "all their data are deleted" in capsys.readouterr().out
    assert await after.record(job) is None
    term = await after.ask(terms.newest)
    assert (term.term, term.over) == (2, True), "under a term of its own, which has ended"
    await after.close()


@pytest.mark.may_block("the command line is on its own")
async def test_a_bot_that_begins_meanwhile_takes_the_forgetting_over(tmp_path, database, capsys, monkeypatch):
    real, bot = Forgetting.round, await Store.open(database)

    async def slow(one: Forgetting) -> bool:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(bot.begin(), loop))
        return await real(one)

    loop = asyncio.get_running_loop()
    job = await finished(bot, await asyncio.to_thread(Pictures, tmp_path / "pictures"), draft(ANN, at=10), "ann's")
    monkeypatch.setattr(by_hand, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setattr(Forgetting, "round", slow)
    await asyncio.to_thread(by_hand.forget, ANN, "", tmp_path)
    assert "goes one by one by the running bot" in capsys.readouterr().out
    assert await bot.record(job)
    await bot.close()


# Export


async def unpacked(desk: Export, limit: int = 10_000_000) -> tuple[dict[str, Any], dict[str, bytes]]:
    parcel = await desk.parcel(ANN, limit)
    with zipfile.ZipFile(io.BytesIO(parcel.content)) as packed:
        found = {name: packed.read(name) for name in packed.namelist()}
    return json.loads(found.pop("jobs.json")), found


async def test_a_member_takes_along_what_is_theirs_and_nothing_of_others(store, pictures):
    jobs = await lived(store, pictures)
    await store.write(places.moved, jobs["done"], {"token": "secret", "user": "70010000000000001", "channel": "5"})
    told, found = await unpacked(Export(store, pictures, clock=lambda: NOW))
    assert [one["id"] for one in told["jobs"]] == [jobs["done"], jobs["elsewhere"], jobs["waits"]]
    first = told["jobs"][0]
    assert (first["prompt"], first["charged"], first["settings"]["seed"]) == (f"a lamp for {ANN}", 2.0, 7)
    assert first["places"] == [{"as": "answer", "kind": "web", "channel": "5", "shown": None, "reason": ""}]
    assert {name: content[:5] for name, content in found.items()} == {
        f"pictures/{jobs['done']}-1.png": b"ann's",
        f"pictures/{jobs['done']}-2.png": b"both'",
        f"pictures/{jobs['elsewhere']}-1.png": b"elsew",
    }
    assert (told["preferences"], told["favourites"][0]["image"]) == ({"suffix": f"as {ANN} likes it"}, 1)
    assert [one["said"] for one in told["reports"]] == ["rude"]
    assert "70020000000000002" not in str(told)
    assert "secret" not in str(told)


async def test_what_is_too_large_is_left_and_what_is_held_back_is_never_in_it(store, pictures):
    jobs = await lived(store, pictures)
    await store.write(lambda c: c.exec_driver_sql(f"UPDATE pictures SET reviewed='hidden' WHERE job='{jobs['done']}'"))
    desk = Export(store, pictures, clock=lambda: NOW)
    told, found = await unpacked(desk)
    assert list(found) == [f"pictures/{jobs['elsewhere']}-1.png"]
    assert told["jobs"][0]["pictures"] == []
    small = await desk.parcel(ANN, SIZE + 3000)
    assert (small.jobs, small.pictures, small.left) == (3, 0, 1)
    with pytest.raises(Refused, match="too large"):
        await desk.parcel(ANN, 100)


@pytest.mark.may_block("the command line is on its own")
async def test_an_export_by_hand(tmp_path, capsys):
    settings = load(data=tmp_path / "data")
    store = await Store.open(f"sqlite:///{_made(tmp_path / 'data') / 'darkroom.sqlite'}")
    await lived(store, Pictures(settings.pictures))
    await store.close()
    out = tmp_path / "ann.zip"
    await asyncio.to_thread(by_hand.export, ANN, out, settings.data)
    assert f"{out}: 3 jobs and 3 pictures of {ANN}." in capsys.readouterr().out
    assert out.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(out) as packed:
        assert packed.testzip() is None
        assert len(packed.namelist()) == 4
    with pytest.raises(Refused, match="is there already"):
        await asyncio.to_thread(by_hand.export, ANN, out, settings.data)
    with pytest.raises(Refused, match="There is no store"):
        await asyncio.to_thread(by_hand.export, ANN, tmp_path / "b.zip", tmp_path / "nowhere")


FAULTS = [
    (Store, "ask", Unavailable("The database cannot be used now: it is away."), "The database cannot be used now: it"),
    (Pictures, "get", OSError("The picture store cannot be used now: no route"), "The picture store cannot be used n"),
    (zipfile.ZipFile, "writestr", OSError(28, "No space left on device"), "ann.zip cannot be written: no space left"),
]


@pytest.mark.may_block("the command line is on its own")
@pytest.mark.parametrize(("where", "name", "error", "said"), FAULTS, ids=["database", "bucket", "disk"])
async def test_an_export_that_fails_leaves_nothing_and_blames_no_other(
    tmp_path, capsys, monkeypatch, where, name, error, said
):  # fmt: skip
    store = await Store.open(f"sqlite:///{_made(tmp_path / 'data') / 'darkroom.sqlite'}")
    await lived(store, Pictures(tmp_path / "data" / "pictures"))
    await store.close()
    out = tmp_path / "ann.zip"
    with monkeypatch.context() as patched:
        patched.setattr(where, name, Mock(side_effect=error))
        with pytest.raises(Refused) as caught:
            await asyncio.to_thread(by_hand.export, ANN, out, tmp_path / "data")
    assert said in caught.value.sentence
    assert ("cannot be written" in caught.value.sentence) == (name == "writestr")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    await asyncio.to_thread(by_hand.export, ANN, out, tmp_path / "data")
    assert "3 jobs and 3 pictures" in capsys.readouterr().out


@pytest.mark.may_block("the command line is on its own")
async def test_neither_makes_a_store_where_there_is_none_nor_ends_in_a_traceback(tmp_path, monkeypatch):
    out, data = tmp_path / "ann.zip", _made(tmp_path / "data")
    for act in (lambda: by_hand.export(ANN, out, data), lambda: by_hand.forget(ANN, "", data)):
        with pytest.raises(Refused, match="There is no store in"):
            await asyncio.to_thread(act)
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'other.sqlite'}")
        with pytest.raises(Refused, match="There is no store in"):
            await asyncio.to_thread(act)
        assert sorted(tmp_path.rglob("*")) == [data]
        monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/darkroom")
        with pytest.raises(Refused, match="The database cannot be used now"):
            await asyncio.to_thread(act)
        assert sorted(tmp_path.rglob("*")) == [data]
        monkeypatch.delenv("DATABASE_URL")


@pytest.mark.may_block("the command line is on its own")
async def test_an_export_goes_over_no_file_that_came_meanwhile(tmp_path, monkeypatch):
    await (await Store.open(f"sqlite:///{_made(tmp_path / 'data') / 'darkroom.sqlite'}")).close()
    out, real = tmp_path / "ann.zip", Export.write

    async def slow(*args: Any, **options: Any) -> int:
        out.write_text("another's")
        return await real(*args, **options)

    monkeypatch.setattr(Export, "write", slow)
    with pytest.raises(Refused, match="is there already: name another file"):
        await asyncio.to_thread(by_hand.export, ANN, out, tmp_path / "data")
    assert out.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ann.zip", "data"]


def _made(folder: Any) -> Any:
    folder.mkdir()
    return folder
