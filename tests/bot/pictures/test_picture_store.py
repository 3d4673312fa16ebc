"""The picture store: content comes back verified, and no name leads outside its folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError

from bot.pictures.picture_store import ContentCorrupt, ContentMissing, PictureStore

ABC = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.asyncio
async def test_content_is_stored_under_its_hash(tmp_path: Path) -> None:
    pictures = PictureStore(tmp_path / "deep" / "pictures")
    assert not await pictures.has(ABC)
    assert await pictures.put(b"abc") == ABC
    assert await pictures.put(b"abc") == ABC
    assert await pictures.has(ABC)
    assert await pictures.get(ABC) == b"abc"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "deep" / "pictures" / "sha256" / ABC[:2] / ABC[2:4] / ABC]


@pytest.mark.asyncio
async def test_another_process_finds_the_content(tmp_path: Path) -> None:
    await PictureStore(tmp_path).put(b"abc")
    assert await PictureStore(f"file://{tmp_path}").get(ABC) == b"abc"


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["0" * 64, "", "../../etc/passwd", ABC.upper(), ABC + "\n", "sha256/" + ABC[:57]])
async def test_absent_content_and_invalid_names_are_missing(tmp_path: Path, name: str) -> None:
    pictures = PictureStore(tmp_path)
    await pictures.put(b"abc")
    assert not await pictures.has(name)
    with pytest.raises(ContentMissing):
        await pictures.get(name)


@pytest.mark.asyncio
async def test_a_truncated_file_is_detected_and_repaired(tmp_path: Path) -> None:
    pictures = PictureStore(tmp_path)
    await pictures.put(b"abc")
    (tmp_path / "sha256" / ABC[:2] / ABC[2:4] / ABC).write_bytes(b"ab")
    with pytest.raises(ContentCorrupt):
        await pictures.get(ABC)
    await pictures.put(b"abc")
    assert await pictures.get(ABC) == b"abc"


@pytest.mark.asyncio
async def test_an_unusable_store_is_an_outage_and_not_a_missing_picture(tmp_path: Path) -> None:
    pictures = PictureStore(tmp_path)
    (tmp_path / "sha256").write_bytes(b"a file where its folder should be")
    with pytest.raises(OSError, match="The picture store cannot be used now"):
        await pictures.put(b"abc")
    for method in (pictures.get, pictures.has):
        with pytest.raises(OSError, match="The picture store cannot be used now"):
            await method(ABC)


@pytest.mark.asyncio
async def test_dropped_content_is_gone_and_dropping_twice_is_no_error(tmp_path: Path) -> None:
    pictures = PictureStore(tmp_path)
    await pictures.put(b"abc")
    await pictures.delete(ABC)
    await pictures.delete(ABC)
    assert not await pictures.has(ABC)


@pytest.mark.asyncio
async def test_many_puts_at_once_all_succeed(tmp_path: Path) -> None:
    pictures = PictureStore(tmp_path)
    payloads = [bytes([n]) * 10_000 for n in range(30)] + [b"same"] * 10
    names = await asyncio.gather(*(pictures.put(payload) for payload in payloads))
    assert [await pictures.get(name) for name in names] == payloads


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=2000))
def test_any_bytes_come_back_from_a_store_given_by_url(payload: bytes) -> None:
    async def round_trip() -> None:
        pictures = PictureStore("memory:///")
        name = await pictures.put(payload)
        assert name == hashlib.sha256(payload).hexdigest()
        assert await pictures.get(name) == payload

    asyncio.run(round_trip())


@pytest.mark.asyncio
async def test_put_all_writes_every_file_before_the_first_sync(tmp_path: Path, monkeypatch) -> None:
    pictures = PictureStore(tmp_path)
    calls = []
    put = obstore.put
    sync = os.fsync
    monkeypatch.setattr(obstore, "put", lambda *args: (calls.append("put"), put(*args)))
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (calls.append(os.readlink(f"/proc/self/fd/{descriptor}")), sync(descriptor))
    )
    payloads = {hashlib.sha256(payload).hexdigest(): payload for payload in (b"abc", b"abd", b"abe")}
    await pictures.put_all(payloads)
    assert calls[:3] == ["put"] * 3
    assert "put" not in calls[3:]
    assert {Path(path).name for path in calls[3:]} >= {*payloads, *(name[2:4] for name in payloads), "sha256"}
    assert [await pictures.get(name) for name in payloads] == list(payloads.values())


@pytest.mark.asyncio
async def test_put_all_by_url_finishes_every_put_before_it_raises(monkeypatch) -> None:
    pictures = PictureStore("memory:///")
    put = obstore.put_async
    payloads = {hashlib.sha256(payload).hexdigest(): payload for payload in (b"abc", b"abd")}

    async def put_or_fail(store, path, payload):
        await asyncio.sleep(0.02 if payload == b"abd" else 0)
        if payload == b"abc":
            raise GenericError("away")
        return await put(store, path, payload)

    monkeypatch.setattr(obstore, "put_async", put_or_fail)
    with pytest.raises(OSError, match="cannot be used now: away"):
        await pictures.put_all(payloads)
    assert [await pictures.has(name) for name in payloads] == [False, True]
