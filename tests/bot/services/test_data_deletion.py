"""Deletion and export of a member's data: all of it and nothing of others, whatever fails midway."""

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
from bot.jobs.retention import FileCleanup
from bot.jobs.views import missing_job_error
from bot.pictures.picture_store import PictureStore
from bot.services.front_end_actions import FrontEndActions
from bot.services.privacy.data_deletion import DataDeletion
from bot.services.privacy.data_export import DataExport
from bot.store import DatabaseUnavailable, Store, leader_terms
from bot.store.deletion import erasure
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import destinations, queries
from bot.store.members import preferences
from bot.store.moderation import incidents
from bot.store.schema.deletion_tables import archived_charges
from bot.store.schema.tables import accounts, metadata
from bot.store.schema.tables import jobs as job_rows
from bot.store.transitions.job_admin import fail_unreadable_jobs
from shared.stored_jobs import PICTURE_BYTES, admit_job, finish_job, list_contents, make_new_job

pytestmark = pytest.mark.asyncio
# As long as Discord's ids, so that no random job id contains them.
ANN = "discord:70010000000000001"
BOB = "discord:70020000000000002"
NOW = 1000.0
SHOWN = Destination("discord", {"channel": "5", "message": "60"})


@pytest_asyncio.fixture
async def pictures(tmp_path: Any) -> PictureStore:
    return await asyncio.to_thread(PictureStore, tmp_path / "pictures")


def make_deletion(
    store: Store, pictures: PictureStore, *, waits_for_commit: bool = False, now: float = NOW
) -> DataDeletion:
    async def cancel(job: str) -> object:
        return await store.request_cancel(job, now)

    return DataDeletion(
        store,
        cancel,
        FileCleanup(store, pictures),
        Feed(),
        FrontEndActions(),
        waits_for_discord=waits_for_commit,
        clock=lambda: now,
    )


async def all_rows(store: Store) -> str:
    """All rows of all tables, as text."""

    def read(connection: Any) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(table.select()))

    return await store.query(read)


async def sum_charges(store: Store, user: str) -> float:
    member = Member(user, user, "local", channel="room")
    return await store.query(lambda c: Ledger(c, member, NOW).get_spending("member everywhere", 86400.0).total_cost)


async def create_jobs(store: Store, pictures: PictureStore) -> dict[str, str]:
    """Stores one row of each kind about Ann and Bob; returns their jobs."""
    jobs = {
        "done": await finish_job(store, pictures, make_new_job(ANN, created_at=10), "ann's", "both's"),
        "elsewhere": await finish_job(
            store, pictures, make_new_job(ANN, created_at=11, guild="discord:9"), "elsewhere"
        ),
        "waits": await admit_job(store, make_new_job(ANN, created_at=12)),
        "bob's": await finish_job(store, pictures, make_new_job(BOB, created_at=13), "bob's", "both's"),
    }
    upscale = make_new_job(BOB, created_at=14, action="upscale", parent=(jobs["done"], 0))
    jobs["enlarged"] = await finish_job(store, pictures, upscale, "ann's, larger")
    for member in (ANN, BOB):
        await store.write(preferences.update_preferences, member, {"suffix": f"as {member} likes it"})
        await store.write(incidents.write_incident, "local", "word", member, member, "a word", NOW - 1)
    await store.write(preferences.toggle_favourite, ANN, jobs["bob's"], 0, 20.0)
    await store.write(preferences.toggle_favourite, BOB, jobs["done"], 0, 20.0)
    await store.write(incidents.write_report, "local", ANN, "Ann 70010000000000001", "rude", 21.0, jobs["bob's"])
    return jobs


async def test_all_data_of_a_member_is_deleted_and_none_of_others(store, pictures, tmp_path):
    jobs = await create_jobs(store, pictures)
    before = await sum_charges(store, ANN)
    deletion = make_deletion(store, pictures)
    assert await deletion.count_jobs(ANN) == 3
    assert await deletion.request_deletion(ANN) == 3
    assert await deletion.is_under_way(ANN)
    await deletion.run_round()
    assert await deletion.run_round() is False
    assert not await deletion.is_under_way(ANN)
    text = await all_rows(store)
    assert "70010000000000001" not in text
    assert "70020000000000002" in text
    assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"bob's", "both's"}
    assert set(await store.query(queries.get_jobs, list(jobs.values()))) == {jobs["bob's"], jobs["enlarged"]}
    assert (await missing_job_error(store, jobs["done"])).status == 410
    assert (before, await sum_charges(store, ANN)) == (8.0, 4.0), "spent cost stays; the job that never ran is refunded"
    (report,) = await store.query(incidents.list_incidents, "local", 9, open_only=True)
    assert (report.actor_name, report.text, report.job) == (erasure.DELETED_MEMBER, "rude", jobs["bob's"])
    assert await store.query(preferences.list_favourites, BOB) == []


async def test_data_of_other_servers_and_later_jobs_stay(store, pictures):
    jobs = await create_jobs(store, pictures)
    deletion = make_deletion(store, pictures)
    await deletion.request_deletion(ANN, "discord:9")
    later_job = await admit_job(store, make_new_job(ANN, created_at=NOW + 1, guild="discord:9"))
    await deletion.run_round()
    assert await store.get_job(jobs["elsewhere"]) is None
    assert all([await store.get_job(job) for job in (jobs["done"], jobs["waits"], later_job)])
    assert await store.query(preferences.load_preferences, ANN) != {}
    await deletion.request_deletion(ANN)
    await deletion.run_round()
    await deletion.run_round()
    assert await store.get_job(jobs["done"]) is None
    assert await store.get_job(later_job), "it came after the deletion request"
    remaining_rows = await store.query(lambda c: c.execute(accounts.select().where(accounts.c.queued > 0)).all())
    assert any("70010000000000001" in row.path for row in remaining_rows), "it keeps its place in the queue"


async def test_messages_are_deleted_if_discord_permits_and_wait_while_it_is_unreachable(store, pictures):
    job = await finish_job(store, pictures, make_new_job(ANN, created_at=10, destination=SHOWN), "ann's")
    await store.write(destinations.update_destination, job, SHOWN.address)
    await store.write(destinations.mark_delivered, job, 11.0)
    await store.write(destinations.add_film, job, Destination("discord", {"channel": "5", "message": "61"}), 11.0)
    deletion = make_deletion(store, pictures, waits_for_commit=True)
    deleted_messages = []
    answers = [True, ConnectionError("away"), False]

    async def take_away(_job: str, one: Delivery) -> bool:
        deleted_messages.append(one.message)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await deletion.request_deletion(ANN)
    await deletion.run_round()
    assert await deletion.is_under_way(ANN), "nothing can delete its messages yet"
    assert await store.query(queries.list_pictures, [job]) == [], "its pictures go at once"
    deletion._front_end.connect(delete_message=take_away)
    await deletion.run_round()
    assert await deletion.is_under_way(ANN)
    await deletion.run_round()
    assert sorted(deleted_messages[:2]) == ["60", "61"]
    assert deleted_messages[2] == deleted_messages[1], "a deleted message is not deleted again"
    assert not await deletion.is_under_way(ANN)
    assert await store.get_job(job) is None


class PowerCut(BaseException):
    """The process dies here."""


async def test_a_deletion_that_is_killed_at_any_write_continues(sqlite_store, pictures, tmp_path, monkeypatch):
    store = sqlite_store
    for steps in range(0, 100, 3):
        await store.write(lambda c: [c.execute(table.delete()) for table in reversed(metadata.sorted_tables)])
        jobs = await create_jobs(store, pictures)
        deletion = make_deletion(store, pictures)
        writes_left = [steps]
        await deletion.request_deletion(ANN)
        real = store.write

        async def write_or_fail(
            *args: Any, writes_left: list[int] = writes_left, real: Any = real, **options: Any
        ) -> Any:
            writes_left[0] -= 1
            if writes_left[0] < 0:
                raise PowerCut
            return await real(*args, **options)

        with monkeypatch.context() as patches:
            patches.setattr(store, "write", write_or_fail)
            with contextlib.suppress(PowerCut):
                while await deletion.is_under_way(ANN):
                    await deletion.run_round()
        second_deletion = make_deletion(store, pictures)
        while await second_deletion.is_under_way(ANN):
            await second_deletion.run_round()
        text = await all_rows(store)
        assert "70010000000000001" not in text, steps
        assert await sum_charges(store, ANN) == 4.0, steps
        assert await asyncio.to_thread(list_contents, tmp_path / "pictures") == {"bob's", "both's"}
        assert await store.get_job(jobs["bob's"])
        if writes_left[0] >= 0:
            assert steps > 5
            return
    raise AssertionError("the deletion never finished")


@pytest.mark.slow
async def test_running_jobs_are_cancelled_before_they_are_deleted(harness, wait_until, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    worker.run_gate.clear()
    ann = Member(ANN, "Ann", "local")
    jobs = [(await app.services.jobs.imagine("a lamp --count 1", ann, destination))[0].job for _ in range(4)]
    await wait_until(lambda: worker.started_jobs)
    assert await app.services.data_deletion.request_deletion(ANN) == 4

    async def is_forgotten() -> bool:
        return not await app.services.data_deletion.is_under_way(ANN)

    await wait_until(is_forgotten, 20)
    assert await app.store.query(queries.get_jobs, jobs) == {}
    assert not worker.running_jobs
    with pytest.raises(UserError, match="its author had everything removed"):
        await app.services.job_views.load_view(jobs[0])
    charge_rows = await app.store.query(lambda c: c.execute(archived_charges.select()).all())
    assert len(charge_rows) == len(worker.started_jobs), "jobs that ran are charged and counted without a name"


async def test_a_job_with_an_unreadable_row_is_deleted_once_it_is_over(store, pictures, caplog):
    job = await finish_job(store, pictures, make_new_job(ANN, created_at=10), "ann's")
    waiting_job = await admit_job(store, make_new_job(ANN, created_at=12))
    await store.write(lambda c: c.execute(update(job_rows).values(task=b"\0")) and None)
    deletion = make_deletion(store, pictures)
    await deletion.request_deletion(ANN)
    assert await deletion.run_round() is True, "the waiting job cannot be cancelled and blocks no other"
    remaining_rows = await store.query(lambda c: c.execute(select(job_rows.c.id, job_rows.c.state)).all())
    assert [tuple(row) for row in remaining_rows] == [(waiting_job, "queued")]
    assert f"job {waiting_job}: " in caplog.text
    assert f"job {job}: " not in caplog.text
    assert await store.write(fail_unreadable_jobs, NOW) == [waiting_job]
    caplog.clear()
    assert await deletion.run_round() is False
    assert not await deletion.is_under_way(ANN)
    assert "70010000000000001" not in await all_rows(store)
    assert caplog.text == ""


# At the command line


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_deletes_by_itself_or_leaves_it_to_a_running_bot(tmp_path, capsys, monkeypatch):
    settings = load_settings(data=tmp_path)
    store = await Store.open(settings.database)
    pictures = PictureStore(settings.pictures)
    job = await finish_job(store, pictures, make_new_job(ANN, created_at=10), "ann's")
    shown_job = await finish_job(store, pictures, make_new_job(ANN, created_at=10, destination=SHOWN), "shown")
    await store.write(destinations.update_destination, shown_job, SHOWN.address)
    await store.write(destinations.mark_delivered, shown_job, 11.0)
    monkeypatch.setattr(members_cli, "FORGET_TIMEOUT", 0.1)
    with lock_data_folder(tmp_path):
        await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "are deleted one by one by the running bot" in capsys.readouterr().out
    assert await store.get_job(job), "the running bot deletes it"
    await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "are deleted when a bot runs next" in capsys.readouterr().out
    assert await store.get_job(job) is None
    assert await store.get_job(shown_job), "its message is still there"
    assert list_contents(tmp_path / "pictures") == set()
    await asyncio.to_thread(members_cli.forget, BOB, "", tmp_path)
    assert f"{BOB}: 0 jobs and all their data are deleted" in capsys.readouterr().out
    await store.close()


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_leaves_it_to_a_bot_on_another_machine(tmp_path, database: str, capsys, monkeypatch):
    monkeypatch.setattr(members_cli, "FORGET_TIMEOUT", 0.1)
    monkeypatch.setattr(leader_module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setenv("DATABASE_URL", database)
    store = await Store.open(database)
    pictures = PictureStore(load_settings(data=tmp_path).pictures)
    job = await finish_job(store, pictures, make_new_job(ANN, created_at=10), "ann's")
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
    assert (term.term, term.is_ended) == (2, True), "it wrote under its own leader term, which has ended"
    await after.close()


@pytest.mark.may_block("the command line is on its own")
async def test_a_bot_that_starts_meanwhile_takes_over_the_deletion(tmp_path, database: str, capsys, monkeypatch):
    real = DataDeletion.run_round
    bot = await Store.open(database)

    async def delete_slowly(one: DataDeletion) -> bool:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(bot.begin_term(), loop))
        return await real(one)

    loop = asyncio.get_running_loop()
    job = await finish_job(
        bot, await asyncio.to_thread(PictureStore, tmp_path / "pictures"), make_new_job(ANN, created_at=10), "ann's"
    )
    monkeypatch.setattr(members_cli, "FORGET_TIMEOUT", 0.1)
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setattr(DataDeletion, "run_round", delete_slowly)
    await asyncio.to_thread(members_cli.forget, ANN, "", tmp_path)
    assert "are deleted one by one by the running bot" in capsys.readouterr().out
    assert await bot.get_job(job)
    await bot.close()


# Export


async def export_and_unpack(
    data_export: DataExport, limit: int = 10_000_000
) -> tuple[dict[str, Any], dict[str, bytes]]:
    export = await data_export.build_archive(ANN, limit)
    with zipfile.ZipFile(io.BytesIO(export.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(files.pop("jobs.json")), files


async def test_an_export_has_all_data_of_a_member_and_none_of_others(store, pictures):
    jobs = await create_jobs(store, pictures)
    await store.write(
        destinations.update_destination, jobs["done"], {"token": "secret", "user": "70010000000000001", "channel": "5"}
    )
    data, files = await export_and_unpack(DataExport(store, pictures, clock=lambda: NOW))
    assert [one["id"] for one in data["jobs"]] == [jobs["done"], jobs["elsewhere"], jobs["waits"]]
    first = data["jobs"][0]
    assert (first["prompt"], first["charged"], first["settings"]["seed"]) == (f"a lamp for {ANN}", 2.0, 7)
    assert first["places"] == [{"as": "answer", "kind": "web", "channel": "5", "shown": None, "reason": ""}]
    assert {name: content[:5] for name, content in files.items()} == {
        f"pictures/{jobs['done']}-1.png": b"ann's",
        f"pictures/{jobs['done']}-2.png": b"both'",
        f"pictures/{jobs['elsewhere']}-1.png": b"elsew",
    }
    assert (data["preferences"], data["favourites"][0]["image"]) == ({"suffix": f"as {ANN} likes it"}, 1)
    assert [one["said"] for one in data["reports"]] == ["rude"]
    assert "70020000000000002" not in str(data)
    assert "secret" not in str(data)


async def test_an_export_leaves_out_too_large_and_hidden_pictures(store, pictures):
    jobs = await create_jobs(store, pictures)
    await store.write(lambda c: c.exec_driver_sql(f"UPDATE pictures SET reviewed='hidden' WHERE job='{jobs['done']}'"))
    data_export = DataExport(store, pictures, clock=lambda: NOW)
    data, files = await export_and_unpack(data_export)
    assert list(files) == [f"pictures/{jobs['elsewhere']}-1.png"]
    assert data["jobs"][0]["pictures"] == []
    small = await data_export.build_archive(ANN, PICTURE_BYTES + 3000)
    assert (small.job_count, small.picture_count, small.omitted_pictures) == (3, 0, 1)
    with pytest.raises(UserError, match="too large"):
        await data_export.build_archive(ANN, 100)


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_writes_an_export(tmp_path, capsys):
    settings = load_settings(data=tmp_path / "data")
    store = await Store.open(f"sqlite:///{_make_folder(tmp_path / 'data') / 'darkroom.sqlite'}")
    await create_jobs(store, PictureStore(settings.pictures))
    await store.close()
    output_file = tmp_path / "ann.zip"
    await asyncio.to_thread(members_cli.export, ANN, output_file, settings.data)
    assert f"{output_file}: 3 jobs and 3 pictures of {ANN}." in capsys.readouterr().out
    assert output_file.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(output_file) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 4
    with pytest.raises(UserError, match="is there already"):
        await asyncio.to_thread(members_cli.export, ANN, output_file, settings.data)
    with pytest.raises(UserError, match="There is no store"):
        await asyncio.to_thread(members_cli.export, ANN, tmp_path / "b.zip", tmp_path / "nowhere")


FAULTS = [
    (
        Store,
        "query",
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
@pytest.mark.parametrize(("folder", "name", "error", "message"), FAULTS, ids=["database", "bucket", "disk"])
async def test_a_failing_export_leaves_no_file_and_names_the_part_that_failed(
    tmp_path, capsys, monkeypatch, folder, name, error, message
):
    store = await Store.open(f"sqlite:///{_make_folder(tmp_path / 'data') / 'darkroom.sqlite'}")
    await create_jobs(store, PictureStore(tmp_path / "data" / "pictures"))
    await store.close()
    output_file = tmp_path / "ann.zip"
    with monkeypatch.context() as patches:
        patches.setattr(folder, name, Mock(side_effect=error))
        with pytest.raises(UserError) as raised_error:
            await asyncio.to_thread(members_cli.export, ANN, output_file, tmp_path / "data")
    assert message in raised_error.value.sentence
    assert ("cannot be written" in raised_error.value.sentence) == (name == "writestr")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    await asyncio.to_thread(members_cli.export, ANN, output_file, tmp_path / "data")
    assert "3 jobs and 3 pictures" in capsys.readouterr().out


@pytest.mark.may_block("the command line is on its own")
async def test_export_and_forget_create_no_store_and_fail_with_a_sentence(tmp_path, monkeypatch):
    output_file = tmp_path / "ann.zip"
    data = _make_folder(tmp_path / "data")
    for command in (lambda: members_cli.export(ANN, output_file, data), lambda: members_cli.forget(ANN, "", data)):
        with pytest.raises(UserError, match="There is no store in"):
            await asyncio.to_thread(command)
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'other.sqlite'}")
        with pytest.raises(UserError, match="There is no store in"):
            await asyncio.to_thread(command)
        assert sorted(tmp_path.rglob("*")) == [data]
        monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/darkroom")
        with pytest.raises(UserError, match="The database cannot be used now"):
            await asyncio.to_thread(command)
        assert sorted(tmp_path.rglob("*")) == [data]
        monkeypatch.delenv("DATABASE_URL")


@pytest.mark.may_block("the command line is on its own")
async def test_an_export_overwrites_no_file_that_appeared_meanwhile(tmp_path, monkeypatch):
    await (await Store.open(f"sqlite:///{_make_folder(tmp_path / 'data') / 'darkroom.sqlite'}")).close()
    output_file = tmp_path / "ann.zip"
    real = DataExport.write_zip

    async def write_slowly(*args: Any, **options: Any) -> int:
        output_file.write_text("another's")
        return await real(*args, **options)

    monkeypatch.setattr(DataExport, "write_zip", write_slowly)
    with pytest.raises(UserError, match="is there already: name another file"):
        await asyncio.to_thread(members_cli.export, ANN, output_file, tmp_path / "data")
    assert output_file.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ann.zip", "data"]


def _make_folder(folder: Any) -> Any:
    folder.mkdir()
    return folder
