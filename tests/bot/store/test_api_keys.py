"""API keys over real databases: a secret is stored as its hash, ends, and its use is written once a minute."""

from __future__ import annotations

import pytest

from bot.domain.errors import UserError
from bot.services.api_keys import USE_SECONDS, ApiKeys
from bot.store import Store
from bot.store.deletion import erasure
from bot.store.members.api_keys import KEPT_SECONDS
from shared.clock import Clock

pytestmark = pytest.mark.asyncio


async def make_key(keys: ApiKeys, name: str, seconds: float | None = None) -> str:
    return await keys.add(await keys.prepare(name, ("imagine", "read"), seconds))


async def test_a_secret_finds_its_key_until_it_ends(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    keys = ApiKeys(store, clock=clock)
    lasting = await make_key(keys, "lasting")
    short = await make_key(keys, "short", 60)
    found = await ApiKeys(store, clock=clock).find(short)  # after a restart, too
    assert found is not None
    assert (found.name, found.scopes, found.expires) == ("short", {"imagine", "read"}, clock.now + 60)
    clock.now += 60
    assert await keys.find(short) is None
    assert await keys.find(lasting) is not None
    await keys.revoke("lasting")
    assert await keys.find(lasting) is None
    with pytest.raises(UserError, match="no valid key"):
        await keys.revoke("lasting")


async def test_a_foreign_secret_finds_nothing(sqlite_store: Store) -> None:
    keys = ApiKeys(sqlite_store, clock=Clock(1_800_000_000.0))
    for secret in ("", "dkr_", "dkr_" + "a" * 43, "dkr_" + "a" * 44, "\udcff" * 47, "dkr_" + "ä" * 43):
        assert await keys.find(secret) is None


async def test_the_store_has_no_secret(sqlite_store: Store) -> None:
    secret = await make_key(ApiKeys(sqlite_store, clock=Clock(1_800_000_000.0)), "webui")
    rows = await sqlite_store.query(lambda connection: connection.exec_driver_sql("SELECT * FROM api_keys").fetchall())
    assert len(rows) == 1
    assert secret not in str(rows)
    assert secret.removeprefix("dkr_") not in str(rows)


async def test_the_last_use_is_written_at_most_once_a_minute(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    keys = ApiKeys(store, clock=clock)
    secret = await make_key(keys, "webui")
    await keys.find(secret)
    first_use = clock.now
    clock.now += USE_SECONDS - 1
    await keys.find(secret)
    assert [key.used for key in await keys.list_all()] == [first_use]
    clock.now += 1
    await keys.find(secret)
    assert [key.used for key in await keys.list_all()] == [clock.now]


async def test_a_name_has_one_valid_key_and_the_old_ones_go_in_time(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    keys = ApiKeys(store, clock=clock)
    await make_key(keys, "webui")
    with pytest.raises(UserError, match="There is a key webui already"):
        await make_key(keys, "webui")
    await keys.revoke("webui")
    clock.now += 1
    await make_key(keys, "webui")
    assert [key.revoked is None for key in await keys.list_all()] == [True, False]
    clock.now += KEPT_SECONDS
    await make_key(keys, "other")
    assert [key.name for key in await keys.list_all()] == ["other", "webui"]


async def test_a_bad_name_or_scope_is_refused(sqlite_store: Store) -> None:
    keys = ApiKeys(sqlite_store, clock=Clock(1_800_000_000.0))
    for name in ("", "-a", "A", "a b", "a" * 33, "a/b", "ä"):
        with pytest.raises(UserError, match="A key's name has 1 to 32 small letters"):
            await keys.prepare(name, ["read"])
    for scopes in ([], ["read", "write"]):
        with pytest.raises(UserError, match="there are imagine, read"):
            await keys.prepare("webui", scopes)


async def test_forgetting_a_program_deletes_its_key(store: Store) -> None:
    clock = Clock(1_800_000_000.0)
    keys = ApiKeys(store, clock=clock)
    secret = await make_key(keys, "webui")
    other = await make_key(keys, "other")
    await store.write(erasure.erase_member_data, erasure.ErasureRequest("local:key:webui", "", clock.now))
    assert await keys.find(secret) is None
    assert await keys.find(other) is not None
