"""Visitors' sessions over real databases: a cookie is stored as its hash, expires, and is written once a minute."""

from __future__ import annotations

import pytest

from bot.services.sessions import DAY_SECONDS, SESSION_DAYS, USE_SECONDS, Sessions
from bot.store import Store
from bot.store.deletion import erasure
from bot.store.members import sessions as stored
from bot.store.members.sessions import SessionKind, VisitorSession
from shared.clock import Clock

pytestmark = pytest.mark.asyncio
KINDS: tuple[SessionKind, ...] = ("open", "guest", "operator")


async def list_all(store: Store, clock: Clock) -> list[VisitorSession]:
    return await store.query(stored.list_sessions, clock.now)


async def test_a_cookie_finds_its_session_until_it_expires(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    sessions = Sessions(store, clock=clock)
    for kind in KINDS:
        clock.now += 1
        cookie, session = await sessions.start(kind, "ab12")
        assert session == VisitorSession(
            "ab12", kind, clock.now, clock.now + SESSION_DAYS[kind] * DAY_SECONDS, clock.now
        )
        assert await Sessions(store, clock=clock).find(cookie) == session  # after a restart, too
        begin = clock.now
        clock.now = session.expires - 1
        assert await sessions.find(cookie) is not None
        clock.now = session.expires
        assert await sessions.find(cookie) is None
        clock.now = begin


@pytest.mark.parametrize("cookie", ["", "owner.abcd.0123", "a" * 43, "a" * 44, "\udcff" * 43, "ä" * 43])
async def test_a_foreign_cookie_finds_nothing(sqlite_store: Store, cookie: str) -> None:
    assert await Sessions(sqlite_store, clock=Clock(1_800_000_000.0)).find(cookie) is None


async def test_the_store_has_no_cookie(sqlite_store: Store) -> None:
    cookie, _ = await Sessions(sqlite_store, clock=Clock(1_800_000_000.0)).start("operator", "ab12")
    rows = await sqlite_store.query(lambda connection: connection.exec_driver_sql("SELECT * FROM sessions").fetchall())
    assert len(rows) == 1
    assert cookie not in str(rows)


async def test_the_last_use_is_written_at_most_once_a_minute(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    sessions = Sessions(store, clock=clock)
    cookie, session = await sessions.start("guest", "ab12")
    clock.now += USE_SECONDS - 1
    await sessions.find(cookie)
    assert [one.used for one in await list_all(store, clock)] == [session.used]
    clock.now += 1
    await sessions.find(cookie)
    assert [one.used for one in await list_all(store, clock)] == [session.used + USE_SECONDS]


async def test_sessions_end_one_by_one_or_for_a_visitor_everywhere(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    sessions = Sessions(store, clock=clock)
    visitors: tuple[tuple[SessionKind, str], ...] = (
        ("operator", "a"),
        ("operator", "b"),
        ("guest", "c"),
        ("guest", "c"),
        ("guest", "d"),
    )
    (first, owner), (second, _), (guest, guest_session), (same_guest, _), (other, _) = [
        await sessions.start(kind, visitor) for kind, visitor in visitors
    ]
    await sessions.end(other)
    assert await sessions.find(other) is None
    await sessions.end_everywhere(owner)
    assert [await sessions.find(cookie) for cookie in (first, second)] == [None, None]
    assert await sessions.find(guest) == guest_session
    await sessions.end_everywhere(guest_session)
    assert [await sessions.find(cookie) for cookie in (guest, same_guest)] == [None, None]
    assert await list_all(store, clock) == []


async def test_an_open_room_cannot_fill_the_database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_OPEN_SESSIONS", 2)
    clock = Clock(1_800_000_000.0)
    sessions = Sessions(store, clock=clock)
    await sessions.start("operator", "operator")
    for visitor in "abcd":
        clock.now += 1
        await sessions.start("open", visitor)
    assert [one.visitor for one in await list_all(store, clock)] == ["d", "c", "operator"]


async def test_a_new_session_removes_expired_ones(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    sessions = Sessions(store, clock=clock)
    await sessions.start("operator", "a")
    clock.now += 31 * DAY_SECONDS
    await sessions.start("operator", "b")
    assert [one.visitor for one in await store.query(stored.list_sessions, 0.0)] == ["b"]


async def test_a_forgotten_visitor_is_signed_out(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    sessions = Sessions(store, clock=clock)
    for visitor in ("ab12", "cd34"):
        await sessions.start("guest", visitor)
    for member, guild in (("local:ab12", "local"), ("discord:cd34", ""), ("local:ab12", "")):
        assert len(await list_all(store, clock)) == 2
        await store.write(erasure.erase_member_data, erasure.ErasureRequest(member, guild, clock.now))
    assert [session.visitor for session in await list_all(store, clock)] == ["cd34"]
    clock.now += 1
    await sessions.start("guest", "ab12")
    await store.write(erasure.erase_member_data, erasure.ErasureRequest("local:ab12", "", clock.now - 1))
    assert len(await list_all(store, clock)) == 2, "a later session stays"
