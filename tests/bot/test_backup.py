"""A backup is only worth what comes out of it: each is made beside a house at work, and restored elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bot.cli import backup as making
from bot.cli import restore as taking
from bot.cli.archive import Manifest, Packer
from bot.config import load
from bot.house import open_house
from bot.images.pictures import Pictures
from bot.refused import Refused
from bot.states import over
from bot.store import Store, copying, reads
from engine.bus import Bus
from engine.bus.broker import Broker
from kept import draft, finished
from painter import Painter, stop

ROOT = Path(__file__).parents[2]


def darkroom(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bot", *map(str, arguments)]


def posted(url: str, prompt: str) -> str:
    """A job's id, once it was accepted."""
    body = json.dumps({"prompt": prompt}).encode()
    asked = urllib.request.Request(f"{url}/api/jobs", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)["jobs"][0]["id"]


async def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(OSError, ValueError):
                found = what()
                if found := await found if asyncio.iscoroutine(found) else found:
                    return found
            await asyncio.sleep(0.05)


@asynccontextmanager
async def at_work(folder: Path) -> AsyncIterator[tuple[Broker, Painter]]:
    """A broker of its own and a worker on it."""
    async with Broker(folder) as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        painter = Painter(bus)
        task = asyncio.create_task(painter.run())
        try:
            yield broker, painter
        finally:
            await stop(task)
            await bus.close()


@pytest.mark.asyncio
@pytest.mark.may_block("files are compared")
async def test_what_was_accepted_before_the_backup_ends_once_in_the_restored_house(tmp_path: Path) -> None:
    data, new, file = tmp_path / "data", tmp_path / "new", tmp_path / "night.tar"
    async with at_work(tmp_path / "nats") as (broker, painter):
        environment = os.environ | {"DARKROOM_NATS_TOKEN": broker.token}
        started = darkroom("bot", "--nats", broker.url, "--data", data, "--port", "0")
        bot = await asyncio.create_subprocess_exec(*started, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            url = await until(lambda: json.loads((data / "running.json").read_text())["url"])
            await until(lambda: json.load(urllib.request.urlopen(f"{url}/healthz"))["workers"])
            done = [await asyncio.to_thread(posted, url, f"apple {n} --count 2") for n in range(2)]
            await until(lambda: len(painter.done) == len(done))
            painter.stand_at = 3
            opened = [await asyncio.to_thread(posted, url, f"pear {n} --count 1") for n in range(5)]
            await until(lambda: not painter.going.is_set())
            making_it = await asyncio.create_subprocess_exec(*darkroom("backup", file, "--data", data), cwd=ROOT)
            later = [await asyncio.to_thread(posted, url, f"plum {n} --count 1") for n in range(3)]
            assert await making_it.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(bot.pid, signal.SIGKILL)
            await bot.wait()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no draft is left"
    with pytest.raises(Refused, match="is not empty"):
        await asyncio.to_thread(taking.restore, file, data)
    await asyncio.to_thread(taking.restore, file, new)
    await _goes_on(tmp_path, data, new, done, opened, later)


async def _goes_on(tmp_path: Path, data: Path, new: Path, done: list[str], opened: list[str], later: list[str]) -> None:
    async with at_work(tmp_path / "new-nats") as (broker, _):
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        async with open_house(load(data=new), bus) as house:

            async def ended() -> bool:
                found = await house.store.ask(reads.some, [*done, *opened])
                assert set(found) == {*done, *opened}, "all that was accepted before is here"
                return all(over(record.state) for record in found.values())

            await until(ended)
            known = list(await house.store.ask(reads.some, [*done, *opened, *later]))
            history = await house.store.ask(reads.history, known)
            ends = [entry.job for entry in history if entry.target == "finished"]
            assert {*done, *opened} <= set(ends)
            assert len(ends) == len(set(ends))
            before = Pictures(data / "pictures")
            kept = await house.store.ask(reads.stored, done)
            assert len(kept) == len(done) * 4, "two pictures each, and how each came to be"
            for one in kept:
                assert await house.pictures.get(one.sha256) == await before.get(one.sha256)
        await bus.close()


# A small house's backup, and what can be wrong with one


async def _small(data: Path) -> list[str]:
    data.mkdir()
    store, pictures = await Store.open(load(data=data).database), Pictures(data / "pictures")
    jobs = [await finished(store, pictures, draft(at=1.0 + n), f"own {n}", "shared") for n in range(3)]
    await store.close()
    return jobs


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A backup of three jobs with four pictures."""
    asyncio.run(_small(tmp_path / "data"))
    (tmp_path / "data" / "web.key").write_bytes(b"k" * 32)
    making.backup(tmp_path / "small.tar", data=tmp_path / "data")
    assert "the database and 4 pictures and films." in capsys.readouterr().out
    return tmp_path / "small.tar"


def test_there_and_back(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "deep" / "new"
    taking.restore(made, new)
    assert "The database and 4 pictures and films" in capsys.readouterr().out

    def pictures(data: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (data / "pictures").rglob("*") if path.is_file()}

    assert pictures(new) == pictures(tmp_path / "data")
    assert copying.contents(new / "darkroom.sqlite") == copying.contents(tmp_path / "data" / "darkroom.sqlite")
    assert not (new / "web.key").exists(), "keys are not in it"
    assert new.stat().st_mode & 0o777 == 0o700
    (tmp_path / "empty").mkdir()
    taking.restore(made, tmp_path / "empty")
    with pytest.raises(Refused, match="is not empty"):
        taking.restore(made, tmp_path / "empty")
    with pytest.raises(Refused, match="is there already"):
        making.backup(made, data=tmp_path / "data")
    with pytest.raises(Refused, match="There is no store in"):
        making.backup(tmp_path / "b.tar", data=tmp_path / "nowhere")


def test_what_is_missing_is_said_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    asyncio.run(_small(data))
    lost = next(path for path in sorted((data / "pictures").rglob("*")) if path.is_file())
    lost.unlink()
    making.backup(tmp_path / "b.tar", data=data)
    assert "1 of them was deleted meanwhile" in capsys.readouterr().out
    taking.restore(tmp_path / "b.tar", tmp_path / "new")
    assert f"1 picture that it names is not in the backup: {lost.name[:12]}…" in capsys.readouterr().out


def test_pictures_alone_beside_a_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    asyncio.run(_small(data))
    making.backup(tmp_path / "p.tar", pictures_only=True, data=data)
    taking.restore(tmp_path / "p.tar", tmp_path / "new")
    assert "4 pictures and films; put the dump of their database back" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pictures"]
    assert copying.file_of("postgresql+psycopg://localhost/darkroom") is None
    assert "pg_dump" in making.DUMPED


def content(made: Path) -> dict[str, bytes]:
    with tarfile.open(made) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # pyright: ignore[reportOptionalMemberAccess]


def packed(file: Path, parts: dict[str, bytes], **odd: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, body in parts.items():
            entry = odd.get(name) or tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return file


def refused(file: Path, tmp_path: Path, match: str) -> None:
    """In one sentence, and nothing is left of the attempt; nor of one from outside the folder."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(Refused, match=match):
        taking.restore(file, tmp_path / "new")
    assert set(tmp_path.rglob("*")) == before


def test_nothing_leads_out_of_the_folder(made: Path, tmp_path: Path) -> None:
    parts = content(made)
    for name in ("../evil", "/tmp/evil", "pictures/../../evil", "pictures/sha256/x", "web.key", f"pictures/{'A' * 64}"):
        refused(packed(tmp_path / "bad.tar", parts | {name: b"x"}), tmp_path, "has no place in one")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        odd = tarfile.TarInfo(f"pictures/{'a' * 64}")
        odd.type, odd.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            tar.addfile(_entry("manifest.json", parts), io.BytesIO(parts["manifest.json"]))
            tar.addfile(odd)
        refused(tmp_path / "bad.tar", tmp_path, "has no place in one")


def _entry(name: str, parts: dict[str, bytes]) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = len(parts[name])
    return entry


def test_what_is_not_what_it_says_is_refused(made: Path, tmp_path: Path) -> None:
    parts, bad = content(made), tmp_path / "bad.tar"
    picture = next(name for name in parts if name.startswith("pictures/"))
    refused(packed(bad, parts | {picture: b"other"}), tmp_path, "is not what its name says")
    database = bytearray(parts["darkroom.sqlite"])
    database[5000] ^= 1
    refused(packed(bad, parts | {"darkroom.sqlite": bytes(database)}), tmp_path, "the file is damaged")
    first = {"manifest.json": parts["manifest.json"]}
    refused(packed(bad, first), tmp_path, "ends before its database")
    refused(packed(bad, {picture: parts[picture]}), tmp_path, "does not begin with a manifest")
    for manifest in (b"{", b"[]", b'{"made": 1}'):
        refused(packed(bad, {"manifest.json": manifest}), tmp_path, "its manifest cannot be read")
    later = json.loads(first["manifest.json"]) | {"format": 9}
    refused(packed(bad, {"manifest.json": json.dumps(later).encode()}), tmp_path, "of a later version")
    with tarfile.open(bad, "w") as tar:
        for _ in range(2):
            tar.addfile(_entry("manifest.json", parts), io.BytesIO(parts["manifest.json"]))
    refused(bad, tmp_path, "twice")
    for size in (0, 700, 5000, made.stat().st_size // 2):
        bad.write_bytes(made.read_bytes()[:size])
        refused(bad, tmp_path, "cannot be read|is damaged|is not what its name says|is no backup")
    bad.write_bytes(os.urandom(4096))
    refused(bad, tmp_path, "cannot be read")
    with tarfile.open(bad, "w:gz") as tar:
        tar.addfile(_entry("manifest.json", parts), io.BytesIO(parts["manifest.json"]))
    refused(bad, tmp_path, "cannot be read")


OTHERS = {
    "later version": "UPDATE alembic_version SET version_num='9999'",
    "no database": "DROP TABLE pictures",
}


def test_another_database_is_refused(made: Path, tmp_path: Path) -> None:
    for name, change in OTHERS.items():
        file, bad = tmp_path / "other.sqlite", tmp_path / "bad.tar"
        file.write_bytes(content(made)["darkroom.sqlite"])
        subprocess.run([sys.executable, "-c", CHANGE, file, change], check=True)
        with bad.open("wb") as out:
            packer = Packer(out)
            packer.manifest(Manifest(1.0, hashlib.sha256(file.read_bytes()).hexdigest(), 0))
            packer.database(file)
            packer.close()
        refused(bad, tmp_path, name)


CHANGE = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()"


def test_a_full_disk_leaves_no_half_backup(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Packer, "picture", full)
    with pytest.raises(Refused, match="cannot be written: no space left on device"):
        making.backup(tmp_path / "b.tar", data=tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "small.tar"]
    shutil.rmtree(tmp_path / "data")
