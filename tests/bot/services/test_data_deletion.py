"""Deletion of a member's data: all of theirs and nothing of others, whatever fails midway; and their export."""

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

from bot.app import leader_election as leader_module
from bot.app.settings import load_settings
from bot.cli import privacy as members_cli
from bot.cli.instance_lock import lock_data_folder
from bot.domain.dto import Delivery, Destination, Member
from bot.domain.errors import UserError
from bot.domain.events import Feed
from bot.images.picture_store import PictureStore
from bot.services.front_end_actions import FrontEndActions
from bot.services.job_views.job_views import missing_job_error
from bot.services.privacy.data_deletion import DataDeletion
from bot.services.privacy.data_export import DataExport
from bot.services.storage.file_cleanup import FileCleanup
from bot.store import DatabaseUnavailable, Store, leader_terms
from bot.store.deletion import erasure
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import destinations, queries
from bot.store.members import preferences
from bot.store.moderation import incidents
from bot.store.schema.deletion_tables import archived_charges
from bot.store.schema.tables import accounts, metadata
from bot.store.schema.tables import jobs as job_rows
from bot.store.transitions.corrupt_rows import fail_unreadable_jobs
from shared.stored_jobs import SIZE, asked, draft, files, finished

pytestmark = pytest.mark.asyncio
# As long as Discord's ids, so that no random job id contains them.
ANN, BOB = "discord:70010000000000001", "discord:70020000000000002"
NOW = 1000.0
SHOWN = Destination("discord", {"channel": "5", "message": "60"})


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> PictureStore:
    return await asyncio.to_thread(PictureStore, tmp_path / "pictures")


def make_forgetting(store: Store, pictures: PictureStore, *, waits: bool = False, now: float = NOW) -> DataDeletion:
    async def cancel(job: str) -> object:
        return await store.request_cancel(job, now)

    return DataDeletion(
        store,
        cancel,
        FileCleanup(store, pictures),
        Feed(),
        FrontEndActions(),
        waits_for_discord=waits,
        clock=lambda: now,
    )


async def all_rows(store: Store) -> str:
    """All rows of all tables, as text."""

    def read(connection: Any) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(table.select()))

    return await store.query(read)


async def spending(store: Store, user: str) -> float:
    member = Member(user, user, "local", channel="room")
    return await store.query(lambda c: Ledger(c, member, NOW).get_spending("member everywhere", 86400.0).total_cost)


async def populate(store: Store, pictures: PictureStore) -> dict[str, str]:
    """Stores everything that there can be about Ann and Bob; returns their jobs."""
    jobs = {
        "done": await finished(store, pictures, draft(ANN, at=10), "ann's", "both's"),
        "elsewhere": await finished(store, pictures, draft(ANN, at=11, guild="discord:9"), "elsewhere"),
        "waits": await asked(store, draft(ANN, at=12)),
        "bob's": await finished(store, pictures, draft(BOB, at=13), "bob's", "both's"),
    }
    enlarged = draft(BOB, at=14, action="upscale", parent=(jobs["done"], 0))
    jobs["enlarged"] = await finished(store, pictures, enlarged, "ann's, larger")
    for member in (ANN, BOB):
        await store.write(preferences.update_preferences, member, {"suffix": f"as {member} likes it"})
        await store.write(incidents.write_incident, "local", "word", member, member, "a word", NOW - 1)
    await store.write(preferences.toggle_favourite, ANN, jobs["bob's"], 0, 20.0)
    await store.write(preferences.toggle_favourite, BOB, jobs["done"], 0, 20.0)
    await store.write(incidents.write_report, "local", ANN, "Ann 70010000000000001", "rude", 21.0, jobs["bob's"])
    return jobs


async def test_all_data_of_a_member_is_deleted_and_none_of_others(store, pictures, tmp_path):
    jobs = await populate(store, pictures)
    before = await spending(store, ANN)
    desk = make_forgetting(store, pictures)
    assert await desk.count_jobs(ANN) == 3
    assert await desk.request_deletion(ANN) == 3
    assert await desk.is_under_way(ANN)
    await desk.run_round()
    assert await desk.run_round() is False
    assert not await desk.is_under_way(ANN)
    text = await all_rows(store)
    assert "70010000000000001" not in text
    assert "70020000000000002" in text
    assert await asyncio.to_thread(files, tmp_path / "pictures") == {"bob's", "both's"}
    assert set(await store.query(queries.get_jobs, list(jobs.values()))) == {jobs["bob's"], jobs["enlarged"]}
    assert (await missing_job_error(store, jobs["done"])).status == 410
    assert (before, await spending(store, ANN)) == (8.0, 4.0), "spent cost stays; the job that never ran is refunded"
    (report,) = await store.query(incidents.list_incidents, "local", 9, open_only=True)
    assert (report.actor_name, report.said, report.job) == (erasure.DELETED_MEMBER, "rude", jobs["bob's"])
    assert await store.query(preferences.list_favourites, BOB) == []


async def test_data_of_other_servers_and_later_jobs_stay(store, pictures):
    jobs = await populate(store, pictures)
    desk = make_forgetting(store, pictures)
    await desk.request_deletion(ANN, "discord:9")
    later = await asked(store, draft(ANN, at=NOW + 1, guild="discord:9"))
    await desk.run_round()
    assert await store.get_job(jobs["elsewhere"]) is None
    assert all([await store.get_job(job) for job in (jobs["done"], jobs["waits"], later)])
    assert await store.query(preferences.load_preferences, ANN) != {}
    await desk.request_deletion(ANN)
    await desk.run_round()
    await desk.run_round()
    assert await store.get_job(jobs["done"]) is None
    assert await store.get_job(later), "it came after the deletion request"
    remaining = await store.query(lambda c: c.execute(accounts.select().where(accounts.c.queued > 0)).all())
    assert any("70010000000000001" in row.path for row in remaining), "it keeps its place in the queue"


async def test_messages_are_deleted_if_discord_permits_and_wait_while_it_is_away(store, pictures):
    job = await finished(store, pictures, draft(ANN, at=10, destination=SHOWN), "ann's")
    await store.write(destinations.update_destination, job, SHOWN.address)
    await store.write(destinations.mark_delivered, job, 11.0)
    await store.write(destinations.add_film, job, Destination("discord", {"channel": "5", "message": "61"}), 11.0)
    desk, removed, answers = make_forgetting(store, pictures, waits=True), [], [True, ConnectionError("away"), False]

    async def take_away(_job: str, one: Delivery) -> bool:
        removed.append(one.message)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await desk.request_deletion(ANN)
    await desk.run_round()
    assert await desk.is_under_way(ANN), "nothing can delete its messages yet"
    assert await store.query(queries.list_pictures, [job]) == [], "its pictures go at once"
    desk._front_end.connect(delete_message=take_away)
    await desk.run_round()
    assert await desk.is_under_way(ANN)
    await desk.run_round()
    assert sorted(removed[:2]) == ["60", "61"]
    assert removed[2] == removed[1], "a deleted message is not deleted again"
    assert not await desk.is_under_way(ANN)
    assert await store.get_job(job) is None


class PowerCut(BaseException):
    """The process dies here."""


async def test_a_deletion_that_is_killed_at_any_write_continues(local, pictures, tmp_path, monkeypatch):
    store = local
    for steps in range(0, 100, 3):
        await store.write(lambda c: [c.execute(table.delete()) for table in reversed(metadata.sorted_tables)])
        jobs = await populate(store, pictures)
        desk, writes_left = make_forgetting(store, pictures), [steps]
        await desk.request_deletion(ANN)
        real = store.write

        async def broken(*args: Any, writes_left: list[int] = writes_left, real: Any = real, **options: Any) -> Any:
            writes_left[0] -= 1
            if writes_left[0] < 0:
                raise PowerCut
            return await real(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(store, "write", broken)
            with contextlib.suppress(PowerCut):
                while await desk.is_under_way(ANN):
                    await desk.run_round()
        again = make_forgetting(store, pictures)
        while await again.is_under_way(ANN):
            await again.run_round()
        text = await all_rows(store)
        assert "70010000000000001" not in text, steps
        assert await spending(store, ANN) == 4.0, steps
        assert await asyncio.to_thread(files, tmp_path / "pictures") == {"bob's", "both's"}
        assert await store.get_job(jobs["bob's"])
        if writes_left[0] >= 0:
            assert steps > 5
            return
    raise AssertionError("the deletion never finished")


@pytest.mark.slow
async def test_running_jobs_are_cancelled_before_they_are_deleted(workplace, until, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    await until(lambda: house.services.live_workers())
    apprentice.go.clear()
    ann = Member(ANN, "Ann", "local")
    jobs = [(await house.services.jobs.imagine("a lamp --count 1", ann, here))[0].job for _ in range(4)]
    await until(lambda: apprentice.begun)
    assert await house.services.data_deletion.request_deletion(ANN) == 4

    async def is_forgotten() -> bool:
        return not await house.services.data_deletion.is_under_way(ANN)

    await until(is_forgotten, 20)
    assert await house.store.query(queries.get_jobs, jobs) == {}
    assert not apprentice.held
    with pytest.raises(UserError, match="its author had everything removed"):
        await house.services.job_views.load_view(jobs[0])
    charged = await house.store.query(lambda c: c.execute(archived_charges.select()).all())
    assert len(charged) == len(apprentice.begun), "jobs that ran are charged and counted without a name"


async def test_a_job_with_an_unreadable_row_is_deleted_once_it_is_over(store, pictures, caplog):
    job = await finished(store, pictures, draft(ANN, at=10), "ann's")
    waiting = await asked(store, draft(ANN, at=12))
    await store.write(lambda c: c.execute(update(job_rows).values(task=b"\0")) and None)
    desk = make_forgetting(store, pictures)
    await desk.request_deletion(ANN)
    assert await desk.run_round() is True, "the waiting job cannot be cancelled and blocks no other"
    remaining = await store.query(lambda c: c.execute(select(job_rows.c.id, job_rows.c.state)).all())
    assert [tuple(row) for row in remaining] == [(waiting, "queued")]
    assert f"job {waiting}: " in caplog.text
    assert f"job {job}: " not in caplog.text
    assert await store.write(fail_unreadable_jobs, NOW) == [waiting]
    caplog.clear()
    assert await desk.run_round() is False
    assert not await desk.is_under_way(ANN)
    assert "70010000000000001" not in await all_rows(store)
    assert caplog.text == ""


# At the command line


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_deletes_by_itself_or_leaves_it_to_a_running_bot(tmp_path, capsys, monkeypatch):
    settings = load_settings(data=tmp_path)
    store = await Store.open(settings.database)
    pictures = PictureStore(settings.pictures)
    job = await finished(store, pictures, draft(ANN, at=10), "ann's")
    shown = await finished(store, pictures, draft(ANN, at=10, destination=SHOWN), "shown")
    await store.write(destinations.update_destination, shown, SHOWN.address)
    await store.write(destinations.mark_delivered, shown, 11.0)
    monkeypatch.setattr(members_cli, "FORGET_TIMEOUT", 0.1)
    with lock_data_folder(tmp_path):
        await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "are deleted one by one by the running bot" in capsys.readouterr().out
    assert await store.get_job(job), "the running bot deletes it"
    await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "are deleted when a bot runs next" in capsys.readouterr().out
    assert await store.get_job(job) is None
    assert await store.get_job(shown), "its message is still there"
    assert files(tmp_path / "pictures") == set()
    await asyncio.to_thread(members_cli.forget, BOB, "", tmp_path)
    assert f"{BOB}: 0 jobs and all their data are deleted" in capsys.readouterr().out
    await store.close()


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_leaves_it_to_a_bot_on_another_machine(tmp_path, database: str, capsys, monkeypatch):
    monkeypatch.setattr(members_cli, "FORGET_TIMEOUT", 0.1)
    monkeypatch.setattr(leader_module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setenv("DATABASE_URL", database)
    store, pictures = await Store.open(database), PictureStore(load_settings(data=tmp_path).pictures)
    job = await finished(store, pictures, draft(ANN, at=10), "ann's")
    async with leader_module.keep_lead(None, print, on_lost=print) as leader:
        await leader.begin_term(store)
        await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
        assert "are deleted one by one by the running bot" in capsys.readouterr().out
        assert await store.get_job(job), "the running bot deletes it"
        assert await store.is_leader()
        leader.note_close()
    await store.close()
    after = await Store.open(database)
    await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "all their data are deleted" in capsys.readouterr().out
    assert await after.get_job(job) is None
    term = await after.query(leader_terms.read_newest_term)
    assert (term.term, term.over) == (2, True), "it wrote under its own leader term, which has ended"
    await after.close()


@pytest.mark.may_block("the command line is on its own")
async def test_a_bot_that_starts_meanwhile_takes_over_the_deletion(tmp_path, database: str, capsys, monkeypatch):
    real, bot = DataDeletion.run_round, await Store.open(database)

    async def slow(one: DataDeletion) -> bool:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(bot.begin_term(), loop))
        return await real(one)

    loop = asyncio.get_running_loop()
    job = await finished(bot, await asyncio.to_thread(PictureStore, tmp_path / "pictures"), draft(ANN, at=10), "ann's")
    monkeypatch.setattr(members_cli, "FORGET_TIMEOUT", 0.1)
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setattr(DataDeletion, "run_round", slow)
    await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "are deleted one by one by the running bot" in capsys.readouterr().out
    assert await bot.get_job(job)
    await bot.close()


# Export


async def unpack(desk: DataExport, limit: int = 10_000_000) -> tuple[dict[str, Any], dict[str, bytes]]:
    parcel = await desk.build_archive(ANN, limit)
    with zipfile.ZipFile(io.BytesIO(parcel.content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(found.pop("jobs.json")), found


async def test_an_export_has_all_data_of_a_member_and_none_of_others(store, pictures):
    jobs = await populate(store, pictures)
    await store.write(
        destinations.update_destination, jobs["done"], {"token": "secret", "user": "70010000000000001", "channel": "5"}
    )
    data, found = await unpack(DataExport(store, pictures, clock=lambda: NOW))
    assert [one["id"] for one in data["jobs"]] == [jobs["done"], jobs["elsewhere"], jobs["waits"]]
    first = data["jobs"][0]
    assert (first["prompt"], first["charged"], first["settings"]["seed"]) == (f"a lamp for {ANN}", 2.0, 7)
    assert first["places"] == [{"as": "answer", "kind": "web", "channel": "5", "shown": None, "reason": ""}]
    assert {name: content[:5] for name, content in found.items()} == {
        f"pictures/{jobs['done']}-1.png": b"ann's",
        f"pictures/{jobs['done']}-2.png": b"both'",
        f"pictures/{jobs['elsewhere']}-1.png": b"elsew",
    }
    assert (data["preferences"], data["favourites"][0]["image"]) == ({"suffix": f"as {ANN} likes it"}, 1)
    assert [one["said"] for one in data["reports"]] == ["rude"]
    assert "70020000000000002" not in str(data)
    assert "secret" not in str(data)


async def test_an_export_leaves_out_too_large_and_hidden_pictures(store, pictures):
    jobs = await populate(store, pictures)
    await store.write(lambda c: c.exec_driver_sql(f"UPDATE pictures SET reviewed='hidden' WHERE job='{jobs['done']}'"))
    desk = DataExport(store, pictures, clock=lambda: NOW)
    data, found = await unpack(desk)
    assert list(found) == [f"pictures/{jobs['elsewhere']}-1.png"]
    assert data["jobs"][0]["pictures"] == []
    small = await desk.build_archive(ANN, SIZE + 3000)
    assert (small.job_count, small.picture_count, small.omitted_pictures) == (3, 0, 1)
    with pytest.raises(UserError, match="too large"):
        await desk.build_archive(ANN, 100)


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_writes_an_export(tmp_path, capsys):
    settings = load_settings(data=tmp_path / "data")
    store = await Store.open(f"sqlite:///{_make_folder(tmp_path / 'data') / 'darkroom.sqlite'}")
    await populate(store, PictureStore(settings.pictures))
    await store.close()
    out = tmp_path / "ann.zip"
    await asyncio.to_thread(members_cli.export, ANN, out, settings.data)
    assert f"{out}: 3 jobs and 3 pictures of {ANN}." in capsys.readouterr().out
    assert out.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 4
    with pytest.raises(UserError, match="is there already"):
        await asyncio.to_thread(members_cli.export, ANN, out, settings.data)
    with pytest.raises(UserError, match="There is no store"):
        await asyncio.to_thread(members_cli.export, ANN, tmp_path / "b.zip", tmp_path / "nowhere")


FAULTS = [
    (
        Store,
        "ask",
        DatabaseUnavailable("The database cannot be used now: it is away."),
        "The database cannot be used now: it",
    ),
    (
        PictureStore,
        "get",
        OSError("The picture store cannot be used now: no route"),
        "The picture store cannot be used n",
    ),
    (zipfile.ZipFile, "writestr", OSError(28, "No space left on device"), "ann.zip cannot be written: no space left"),
]


@pytest.mark.may_block("the command line is on its own")
@pytest.mark.parametrize(("where", "name", "error", "said"), FAULTS, ids=["database", "bucket", "disk"])
async def test_a_failing_export_leaves_no_file_and_names_the_part_that_failed(
    tmp_path, capsys, monkeypatch, where, name, error, said
):  # fmt: skip
    store = await Store.open(f"sqlite:///{_make_folder(tmp_path / 'data') / 'darkroom.sqlite'}")
    await populate(store, PictureStore(tmp_path / "data" / "pictures"))
    await store.close()
    out = tmp_path / "ann.zip"
    with monkeypatch.context() as patched:
        patched.setattr(where, name, Mock(side_effect=error))
        with pytest.raises(UserError) as caught:
            await asyncio.to_thread(members_cli.export, ANN, out, tmp_path / "data")
    assert said in caught.value.sentence
    assert ("cannot be written" in caught.value.sentence) == (name == "writestr")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    await asyncio.to_thread(members_cli.export, ANN, out, tmp_path / "data")
    assert "3 jobs and 3 pictures" in capsys.readouterr().out


@pytest.mark.may_block("the command line is on its own")
async def test_export_and_forget_create_no_store_and_fail_with_a_sentence(tmp_path, monkeypatch):
    out, data = tmp_path / "ann.zip", _make_folder(tmp_path / "data")
    for act in (lambda: members_cli.export(ANN, out, data), lambda: members_cli.forget(ANN, "", data)):
        with pytest.raises(UserError, match="There is no store in"):
            await asyncio.to_thread(act)
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'other.sqlite'}")
        with pytest.raises(UserError, match="There is no store in"):
            await asyncio.to_thread(act)
        assert sorted(tmp_path.rglob("*")) == [data]
        monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/darkroom")
        with pytest.raises(UserError, match="The database cannot be used now"):
            await asyncio.to_thread(act)
        assert sorted(tmp_path.rglob("*")) == [data]
        monkeypatch.delenv("DATABASE_URL")


@pytest.mark.may_block("the command line is on its own")
async def test_an_export_overwrites_no_file_that_appeared_meanwhile(tmp_path, monkeypatch):
    await (await Store.open(f"sqlite:///{_make_folder(tmp_path / 'data') / 'darkroom.sqlite'}")).close()
    out, real = tmp_path / "ann.zip", DataExport.write_zip

    async def slow(*args: Any, **options: Any) -> int:
        out.write_text("another's")
        return await real(*args, **options)

    monkeypatch.setattr(DataExport, "write_zip", slow)
    with pytest.raises(UserError, match="is there already: name another file"):
        await asyncio.to_thread(members_cli.export, ANN, out, tmp_path / "data")
    assert out.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ann.zip", "data"]


def _make_folder(folder: Any) -> Any:
    folder.mkdir()
    return folder
