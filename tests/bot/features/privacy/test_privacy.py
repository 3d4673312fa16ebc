"""Export of a member's data, and the command line that exports and deletes it."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_asyncio

from bot.app import leader_election as leader_module
from bot.app.settings import load_settings
from bot.cli.instance_lock import lock_data_folder
from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.features.privacy import cli as members_cli
from bot.features.privacy.service import DataExport
from bot.pictures.picture_store import PictureStore
from bot.policy.permissions import PERMISSIONS
from bot.services.data_deletion import DataDeletion
from bot.store import DatabaseUnavailable, Store, leader_terms
from bot.store.jobs import destinations
from shared.stored_jobs import PICTURE_BYTES, finish_job, list_contents, make_new_job
from shared.two_members import ANN, BOB, NOW, create_jobs

pytestmark = pytest.mark.asyncio
SHOWN = Destination("discord", {"channel": "5", "message": "60"})


@pytest_asyncio.fixture
async def pictures(tmp_path: Path) -> PictureStore:
    return await asyncio.to_thread(PictureStore, tmp_path / "pictures")


# At the command line


@pytest.mark.may_block("the command line is on its own")
async def test_the_command_deletes_by_itself_or_leaves_it_to_a_running_bot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
async def test_the_command_leaves_it_to_a_bot_on_another_machine(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
async def test_a_bot_that_starts_meanwhile_takes_over_the_deletion(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_an_export_has_all_data_of_a_member_and_none_of_others(store: Store, pictures: PictureStore) -> None:
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


async def test_an_export_leaves_out_too_large_and_hidden_pictures(store: Store, pictures: PictureStore) -> None:
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
async def test_the_command_writes_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Any,
    name: str,
    error: Exception,
    message: str,
) -> None:
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
async def test_export_and_forget_create_no_store_and_fail_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
async def test_an_export_overwrites_no_file_that_appeared_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def _make_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_no_key_may_export_or_forget() -> None:
    assert {PERMISSIONS[action].scope for action in ("export", "forget")} == {None}
