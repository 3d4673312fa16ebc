"""Tests make backups beside a running bot and restore them elsewhere: only a restore proves a backup."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bot.app.settings import load_settings
from bot.app.wiring import open_app
from bot.discord.delivery.discord_api import edit_bucket, is_token_valid
from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.features.backup import archive as restore_cli
from bot.features.backup import cli as backup_cli
from bot.features.backup import store as sqlite_backup
from bot.features.backup.archive import ArchiveWriter, Manifest
from bot.pictures.picture_store import PictureStore
from bot.services.sessions import Sessions
from bot.store import DatabaseUnavailable, Store
from bot.store.drivers.database import find_sqlite_path
from bot.store.jobs import destinations, queries
from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from shared.stored_jobs import admit_job, finish_job, make_new_job
from tools.painter import PaintingWorker, cancel_task

ROOT = Path(__file__).parents[4]


def make_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bot", *map(str, arguments)]


def submit_job(url: str, prompt: str) -> str:
    """Requests a job; returns its id."""
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{url}/api/jobs", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["jobs"][0]["id"]


async def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(OSError, ValueError):
                result = condition()
                if result := await result if asyncio.iscoroutine(result) else result:
                    return result
            await asyncio.sleep(0.05)


@asynccontextmanager
async def broker_with_worker(folder: Path) -> AsyncGenerator[tuple[Broker, PaintingWorker]]:
    """A broker and a worker on it."""
    async with Broker(folder) as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        painter = PaintingWorker(bus)
        task = asyncio.create_task(painter.run())
        try:
            yield broker, painter
        finally:
            await cancel_task(task)
            await bus.close()


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block("files are compared")
async def test_jobs_accepted_before_the_backup_end_once_in_the_restored_app(tmp_path: Path) -> None:
    data = tmp_path / "data"
    new = tmp_path / "new"
    file = tmp_path / "night.tar"
    async with broker_with_worker(tmp_path / "nats") as (broker, painter):
        environment = os.environ | {"DARKROOM_NATS_TOKEN": broker.token}
        bot_command = make_command("bot", "--nats", broker.url, "--data", data, "--port", "0")
        bot = await asyncio.create_subprocess_exec(*bot_command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            url = await wait_until(lambda: json.loads((data / "running.json").read_text())["url"])
            await wait_until(lambda: json.load(urllib.request.urlopen(f"{url}/healthz"))["workers"])
            finished_jobs = [await asyncio.to_thread(submit_job, url, f"apple {n} --count 2") for n in range(2)]
            await wait_until(lambda: len(painter.finished_jobs) == len(finished_jobs))
            painter.pause_step = 3
            open_jobs = [await asyncio.to_thread(submit_job, url, f"pear {n} --count 1") for n in range(5)]
            await wait_until(lambda: not painter.step_gate.is_set())
            backup_process = await asyncio.create_subprocess_exec(
                *make_command("backup", file, "--data", data), cwd=ROOT
            )
            later_jobs = [await asyncio.to_thread(submit_job, url, f"plum {n} --count 1") for n in range(3)]
            assert await backup_process.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(bot.pid, signal.SIGKILL)
            await bot.wait()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no temporary file is left"
    with pytest.raises(UserError, match="is not empty"):
        await asyncio.to_thread(restore_cli.restore, file, data)
    await asyncio.to_thread(restore_cli.restore, file, new)
    await _check_restored_app(tmp_path, data, new, finished_jobs, open_jobs, later_jobs)


async def _check_restored_app(
    tmp_path: Path, data: Path, new: Path, finished_jobs: list[str], open_jobs: list[str], later_jobs: list[str]
) -> None:
    async with broker_with_worker(tmp_path / "new-nats") as (broker, _):
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        async with open_app(load_settings(data=new), bus) as app:

            async def all_ended() -> bool:
                records = await app.store.query(queries.get_jobs, [*finished_jobs, *open_jobs])
                assert set(records) == {*finished_jobs, *open_jobs}, "every job accepted before is here"
                return all(is_end(record.state) for record in records.values())

            await wait_until(all_ended)
            known_jobs = list(await app.store.query(queries.get_jobs, [*finished_jobs, *open_jobs, *later_jobs]))
            history = await app.store.query(queries.list_audit, known_jobs)
            end_jobs = [entry.job for entry in history if entry.target == "finished"]
            assert {*finished_jobs, *open_jobs} <= set(end_jobs)
            assert len(end_jobs) == len(set(end_jobs))
            before = PictureStore(data / "pictures")
            pictures = await app.store.query(queries.list_pictures, finished_jobs)
            assert len(pictures) == len(finished_jobs) * 4, "two pictures each, and a ladder for each"
            for one in pictures:
                assert await app.picture_store.get(one.sha256) == await before.get(one.sha256)
        await bus.close()


# A small backup, and damaged ones


async def _make_small_store(data: Path) -> list[str]:
    data.mkdir()
    store = await Store.open(load_settings(data=data).database)
    pictures = PictureStore(data / "pictures")
    jobs = [await finish_job(store, pictures, make_new_job(created_at=1.0 + n), f"own {n}", "shared") for n in range(3)]
    await store.close()
    return jobs


@pytest.fixture
def backup_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A backup of three jobs with four pictures."""
    asyncio.run(_make_small_store(tmp_path / "data"))
    (tmp_path / "data" / "web.key").write_bytes(b"k" * 32)
    backup_cli.backup(tmp_path / "small.tar", data=tmp_path / "data")
    assert "the database and 4 pictures and films." in capsys.readouterr().out
    return tmp_path / "small.tar"


def test_a_backup_restores_database_and_pictures_but_no_keys(
    backup_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "deep" / "new"
    restore_cli.restore(backup_file, new)
    assert "The database and 4 pictures and films" in capsys.readouterr().out

    def pictures(data: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (data / "pictures").rglob("*") if path.is_file()}

    assert pictures(new) == pictures(tmp_path / "data")
    assert sqlite_backup.list_copy_hashes(new / "darkroom.sqlite") == sqlite_backup.list_copy_hashes(
        tmp_path / "data" / "darkroom.sqlite"
    )
    assert not (new / "web.key").exists(), "a backup has no keys"
    assert new.stat().st_mode & 0o777 == 0o700
    (tmp_path / "empty").mkdir()
    restore_cli.restore(backup_file, tmp_path / "empty")
    with pytest.raises(UserError, match="is not empty"):
        restore_cli.restore(backup_file, tmp_path / "empty")
    with pytest.raises(UserError, match="is there already"):
        backup_cli.backup(backup_file, data=tmp_path / "data")
    with pytest.raises(UserError, match="There is no store in"):
        backup_cli.backup(tmp_path / "b.tar", data=tmp_path / "nowhere")


WHERE = {"guild": "1", "channel": "2", "token": "aW50ZXJhY3Rpb246c2VjcmV0", "token_until": "9e12", "message": "3"}
GONE = "Z29uZSBhbmQgZGVsZXRlZA"


async def _make_discord_jobs(data: Path) -> list[str]:
    """Two jobs whose answers have a token. The deleted destination of a third still lies in the file."""
    data.mkdir()
    store = await Store.open(load_settings(data=data).database)
    addresses = [WHERE, WHERE, {**WHERE, "token": GONE}]
    jobs = [
        await admit_job(store, make_new_job(created_at=1.0 + n, destination=Destination("discord", one)))
        for n, one in enumerate(addresses)
    ]
    await store.close()
    with contextlib.closing(sqlite3.connect(data / "darkroom.sqlite")) as connection, connection:
        connection.execute("PRAGMA secure_delete=OFF")  # SQLite's default, which some distributions change
        connection.execute("DELETE FROM places WHERE job = ?", jobs[2:])
    return jobs[:2]


async def _places(data: Path, jobs: list[str]) -> list[Destination | None]:
    store = await Store.open(load_settings(data=data).database)
    stored_destinations = [await store.query(destinations.get_destination, job) for job in jobs]
    await store.close()
    return stored_destinations


def test_a_backup_keeps_channels_but_not_interaction_tokens(tmp_path: Path) -> None:
    jobs = asyncio.run(_make_discord_jobs(tmp_path / "data"))
    secrets = {GONE.encode(), WHERE["token"].encode()}
    before = (tmp_path / "data" / "darkroom.sqlite").read_bytes()
    assert all(token in before for token in secrets)
    backup_cli.backup(tmp_path / "b.tar", data=tmp_path / "data")
    archive = (tmp_path / "b.tar").read_bytes()
    assert not [token for token in secrets if token in archive]
    restore_cli.restore(tmp_path / "b.tar", tmp_path / "new")
    for destination in asyncio.run(_places(tmp_path / "new", jobs)):
        assert destination is not None
        assert destination == Destination("discord", {name: value for name, value in WHERE.items() if name != "token"})
        assert not is_token_valid(destination.address, 0.0)
        assert edit_bucket(destination.address, 0.0) == "channel:2"
    assert asyncio.run(_places(tmp_path / "data", jobs))[0] == Destination("discord", WHERE), (
        "the running bot keeps its own"
    )


def test_a_backup_signs_nobody_in(tmp_path: Path) -> None:
    """A session that ended after the backup does not come back with it."""

    async def start_session(data: Path) -> str:
        store = await Store.open(load_settings(data=data).database)
        cookie, _ = await Sessions(store, clock=time.time).start("operator", "ab12cd34")
        await store.close()
        return hashlib.sha256(cookie.encode()).hexdigest()

    data = tmp_path / "data"
    asyncio.run(_make_discord_jobs(data))
    cookie_hash = asyncio.run(start_session(data)).encode()
    assert cookie_hash in b"".join(path.read_bytes() for path in data.glob("darkroom.sqlite*"))
    backup_cli.backup(tmp_path / "b.tar", data=data)
    assert cookie_hash not in (tmp_path / "b.tar").read_bytes()


def test_backup_and_restore_both_name_missing_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    asyncio.run(_make_small_store(data))
    missing_picture = next(path for path in sorted((data / "pictures").rglob("*")) if path.is_file())
    missing_picture.unlink()
    backup_cli.backup(tmp_path / "b.tar", data=data)
    assert "1 of them was deleted meanwhile" in capsys.readouterr().out
    restore_cli.restore(tmp_path / "b.tar", tmp_path / "new")
    assert f"1 picture that it names is not in the backup: {missing_picture.name[:12]}…" in capsys.readouterr().out


def test_a_pictures_only_backup_goes_with_a_database_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    asyncio.run(_make_small_store(data))
    backup_cli.backup(tmp_path / "p.tar", pictures_only=True, data=data)
    restore_cli.restore(tmp_path / "p.tar", tmp_path / "new")
    assert "4 pictures and films; put the dump of their database back" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pictures"]
    assert find_sqlite_path("postgresql+psycopg://localhost/darkroom") is None
    assert "pg_dump" in backup_cli.USE_PG_DUMP


def entries_of(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # pyright: ignore[reportOptionalMemberAccess]


def write_tar(file: Path, parts: dict[str, bytes], **odd: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, body in parts.items():
            entry = odd.get(name) or tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return file


def assert_restore_fails(file: Path, tmp_path: Path, match: str) -> None:
    """Asserts that the restore fails with one sentence and leaves no file, inside the folder or outside."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=match):
        restore_cli.restore(file, tmp_path / "new")
    assert set(tmp_path.rglob("*")) == before


def test_no_entry_is_written_outside_the_folder(backup_file: Path, tmp_path: Path) -> None:
    parts = entries_of(backup_file)
    for name in ("../evil", "/tmp/evil", "pictures/../../evil", "pictures/sha256/x", "web.key", f"pictures/{'A' * 64}"):
        assert_restore_fails(write_tar(tmp_path / "bad.tar", parts | {name: b"x"}), tmp_path, "has no place in one")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        odd = tarfile.TarInfo(f"pictures/{'a' * 64}")
        odd.type = kind
        odd.linkname = "/etc/passwd"
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            tar.addfile(_entry("manifest.json", parts), io.BytesIO(parts["manifest.json"]))
            tar.addfile(odd)
        assert_restore_fails(tmp_path / "bad.tar", tmp_path, "has no place in one")


def _entry(name: str, parts: dict[str, bytes]) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = len(parts[name])
    return entry


def test_a_damaged_or_mislabelled_backup_is_refused(backup_file: Path, tmp_path: Path) -> None:
    parts = entries_of(backup_file)
    bad_file = tmp_path / "bad.tar"
    picture = next(name for name in parts if name.startswith("pictures/"))
    assert_restore_fails(write_tar(bad_file, parts | {picture: b"other"}), tmp_path, "is not what its name says")
    database = bytearray(parts["darkroom.sqlite"])
    database[5000] ^= 1
    assert_restore_fails(
        write_tar(bad_file, parts | {"darkroom.sqlite": bytes(database)}), tmp_path, "the file is damaged"
    )
    first = {"manifest.json": parts["manifest.json"]}
    assert_restore_fails(write_tar(bad_file, first), tmp_path, "ends before its database")
    assert_restore_fails(write_tar(bad_file, {picture: parts[picture]}), tmp_path, "does not begin with a manifest")
    for manifest in (b"{", b"[]", b'{"made": 1}'):
        assert_restore_fails(write_tar(bad_file, {"manifest.json": manifest}), tmp_path, "its manifest cannot be read")
    newer_manifest = json.loads(first["manifest.json"]) | {"format": 9}
    assert_restore_fails(
        write_tar(bad_file, {"manifest.json": json.dumps(newer_manifest).encode()}), tmp_path, "of a later version"
    )
    with tarfile.open(bad_file, "w") as tar:
        for _ in range(2):
            tar.addfile(_entry("manifest.json", parts), io.BytesIO(parts["manifest.json"]))
    assert_restore_fails(bad_file, tmp_path, "twice")
    for size in (0, 700, 5000, backup_file.stat().st_size // 2):
        bad_file.write_bytes(backup_file.read_bytes()[:size])
        assert_restore_fails(bad_file, tmp_path, "cannot be read|is damaged|is not what its name says|is no backup")
    bad_file.write_bytes(os.urandom(4096))
    assert_restore_fails(bad_file, tmp_path, "cannot be read")
    with tarfile.open(bad_file, "w:gz") as tar:
        tar.addfile(_entry("manifest.json", parts), io.BytesIO(parts["manifest.json"]))
    assert_restore_fails(bad_file, tmp_path, "cannot be read")


MANIFESTS = {
    "infinity": b'{"made": 0, "database": "", "pictures": Infinity, "format": 1}',
    "too large": b'{"made": 0, "database": "", "pictures": 1, "format": 1e999}',
    "no number": b'{"made": 0, "database": "", "pictures": NaN, "format": 1}',
    "a moment that is none": b'{"made": NaN, "database": "", "pictures": 1, "format": 1}',
    "many digits": b'{"made": 1%b, "database": "", "pictures": 1, "format": 1}' % (b"0" * 400),
    "more digits than are read": b'{"made": 0, "database": "", "pictures": 1%b, "format": 1}' % (b"0" * 5000),
    "deep": b"[" * 60_000,
    "deeper than it is wide": b'{"made": ' * 6_000,
    "lists": b'{"made": [], "database": [], "pictures": [], "format": []}',
    "a word": b'"manifest"',
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_any_bad_manifest_is_refused_with_a_sentence(tmp_path: Path, manifest: bytes) -> None:
    assert_restore_fails(
        write_tar(tmp_path / "bad.tar", {"manifest.json": manifest}), tmp_path, "its manifest cannot be read"
    )


SHA = f"pictures/{'a' * 64}"
HEADERS: dict[str, tuple[str, dict[str, str], str]] = {
    "less than nothing": ("darkroom.sqlite", {"size": "-5"}, "has a negative size"),
    "a block less than nothing": ("darkroom.sqlite", {"size": "-2048"}, "cannot be read"),
    "a picture less than nothing": (SHA, {"size": "-1"}, "has a negative size"),
    "more than a disk": ("darkroom.sqlite", {"size": str(2**62)}, "cannot be read"),
    "more than a number": ("darkroom.sqlite", {"size": str(2**80)}, "cannot be read"),
    "a large picture": (SHA, {"size": str(2**80)}, "too large for a picture"),
    "no size": (SHA, {"size": "x"}, "is not what its name says"),
    "a hole": ("darkroom.sqlite", {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}, "has no place in one"),
    "a hole without numbers": (SHA, {"GNU.sparse.map": "x"}, "cannot be read"),
    "a hole of no size": (SHA, {"GNU.sparse.size": "x"}, "cannot be read"),
    "a hole that never ends": (SHA, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "cannot be read"),
    "a name with an end in it": (SHA, {"path": f"{SHA}\0x"}, "has no place in one"),
    "a name that is none": (SHA, {"path": "\udcff\n"}, "has no place in one"),
}


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "headers", "match"), HEADERS.values(), ids=HEADERS)
def test_any_bad_header_is_refused_with_a_sentence(
    backup_file: Path, tmp_path: Path, name: str, headers: dict[str, str], match: str
) -> None:
    parts = entries_of(backup_file)
    entry = tarfile.TarInfo(name)
    entry.pax_headers = headers
    parts.pop("darkroom.sqlite")
    assert_restore_fails(write_tar(tmp_path / "bad.tar", parts | {name: b"abc"}, **{name: entry}), tmp_path, match)


def block(kind: bytes, size: bytes) -> bytes:
    """A tar header with any size (POSIX.1-1988, ustar; base-256 is GNU's)."""
    entry = tarfile.TarInfo("x")
    entry.type = kind
    raw = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    raw[124:136] = size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


BLOCKS = {
    "a long name less than nothing": block(tarfile.GNUTYPE_LONGNAME, (-1024).to_bytes(12, "big", signed=True)),
    "a long name without end": block(tarfile.GNUTYPE_LONGNAME, b"\x80" + (2**80).to_bytes(11, "big")),
    "a header without end": block(tarfile.XHDTYPE, b"\x80" + (2**62).to_bytes(11, "big")),
    "headers of headers": block(tarfile.XHDTYPE, b"%011o\0" % 0) * 3000,
    "what is less than nothing": block(tarfile.REGTYPE, (-1024).to_bytes(12, "big", signed=True)),
}


@pytest.mark.sampled
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("trailing_blocks", BLOCKS.values(), ids=BLOCKS)
def test_any_bad_block_is_refused_with_a_sentence(
    backup_file: Path, tmp_path: Path, trailing_blocks: bytes, first: bool
) -> None:
    manifest = write_tar(
        tmp_path / "bad.tar", {"manifest.json": entries_of(backup_file)["manifest.json"]}
    ).read_bytes()[:1024]
    (tmp_path / "bad.tar").write_bytes((b"" if first else manifest) + trailing_blocks + bytes(1024))
    assert_restore_fails(
        tmp_path / "bad.tar", tmp_path, "cannot be read|has no place in one|does not begin with a manifest"
    )


OTHER_DATABASES = {
    "later version": "UPDATE alembic_version SET version_num='9999'",
    "no database": "DROP TABLE pictures",
    "has no version number": "DELETE FROM alembic_version",
    "it has no version number": "UPDATE alembic_version SET version_num=''",
}


def test_a_database_of_another_kind_or_version_is_refused(backup_file: Path, tmp_path: Path) -> None:
    for name, change in OTHER_DATABASES.items():
        file = tmp_path / "other.sqlite"
        bad_file = tmp_path / "bad.tar"
        file.write_bytes(entries_of(backup_file)["darkroom.sqlite"])
        subprocess.run([sys.executable, "-c", CHANGE_SCRIPT, file, change], check=True)
        with bad_file.open("wb") as output:
            packer = ArchiveWriter(output)
            packer.add_manifest(Manifest(1.0, hashlib.sha256(file.read_bytes()).hexdigest(), 0))
            packer.add_database(file)
            packer.close()
        assert_restore_fails(bad_file, tmp_path, name)


CHANGE_SCRIPT = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()"


def test_a_full_disk_leaves_no_partial_backup(
    backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArchiveWriter, "add_picture", raise_disk_full)
    with pytest.raises(UserError, match="cannot be written: no space left on device"):
        backup_cli.backup(tmp_path / "b.tar", data=tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "small.tar"]
    shutil.rmtree(tmp_path / "data")


def test_a_failing_backup_names_the_part_that_failed(
    backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    file = tmp_path / "b.tar"

    def create_with_failure(owner: object, name: str, error: Exception, is_direct: bool) -> str:
        with monkeypatch.context() as patches:
            patches.setattr(owner, name, Mock(side_effect=error))
            with pytest.raises(UserError) as caught_error:
                backup_cli.backup(file, pictures_only=is_direct, data=data)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "small.tar"]
        return caught_error.value.sentence

    for name in ("open", "query"):
        unavailable = DatabaseUnavailable("The database cannot be used now: it is away.")
        assert create_with_failure(Store, name, unavailable, is_direct=True) == str(unavailable)
    bucket = OSError("The picture store cannot be used now: no route")
    for is_direct in (True, False):
        assert create_with_failure(PictureStore, "get", bucket, is_direct=is_direct) == f"{bucket}."


@pytest.mark.parametrize("links", [True, False])
def test_a_backup_overwrites_no_file_that_appeared_meanwhile(
    backup_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    file = tmp_path / "b.tar"
    real = ArchiveWriter.close
    if not links:  # as on a USB stick
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError(1, "Operation not permitted")))

    def pack_slowly(packer: ArchiveWriter) -> None:
        file.write_text("another's")
        real(packer)

    with monkeypatch.context() as patches:
        patches.setattr(ArchiveWriter, "close", pack_slowly)
        with pytest.raises(UserError, match="is there already"):
            backup_cli.backup(file, data=tmp_path / "data")
    assert file.read_text() == "another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "data", "small.tar"]
    backup_cli.backup(tmp_path / "c.tar", data=tmp_path / "data")
    assert entries_of(tmp_path / "c.tar").keys() == entries_of(backup_file).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "c.tar", "data", "small.tar"]
