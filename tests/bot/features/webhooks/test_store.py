"""The outbox of webhooks over real databases: each event once for each webhook, whoever is killed when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bot.features.webhooks import store as stored
from bot.features.webhooks.rules import DEFAULT_EVENTS, EVENTS
from bot.features.webhooks.store import MAX_KEY_WEBHOOKS, Webhook, WebhookDelivery
from bot.store import PickRequest, Store
from bot.store.deletion import erasure
from bot.store.members import api_keys
from bot.store.members.api_keys import KEY_ENDED, REVOKED, ApiKey
from bot.store.schema.tables import audit_lines
from shared.query_plans import list_plans
from tests.bot.features.webhooks.deliveries import IDS, NOW, add_webhook, admit_job

pytestmark = pytest.mark.asyncio


async def collect(store: Store, now: float = NOW) -> list[WebhookDelivery]:
    """Collects what is new; returns everything that is due."""
    if await store.query(stored.needs_collection, now):
        await store.write(stored.collect_events, now)
    return [delivery for delivery, _ in await store.query(stored.list_due, now, [], 100)]


async def test_each_webhook_gets_the_events_that_it_asks_for_once(store: Store) -> None:
    await admit_job(store, 0)
    everything = await add_webhook(store, "a", EVENTS)
    ends = await add_webhook(store, "b", ("job.cancelled",))
    await admit_job(store, 1)
    assert await store.pick_job(PickRequest("default", ["embedded"], 3), 32, 1.0, 120.0) is not None
    await store.start_job(IDS[0], 7, "worker", 0, 121.0)
    found = {(one.webhook, one.event, one.job) for one in await collect(store)}
    assert found == {("a", "job.queued", IDS[1]), ("a", "job.started", IDS[0])}, "older lines are no events"
    await store.request_cancel(IDS[1], 130.0)  # now the last lines are read again
    assert {(one.webhook, one.event) for one in await collect(store)} >= {
        (everything.id, "job.cancelled"),
        (ends.id, "job.cancelled"),
    }
    assert len({one.id for one in await collect(store)}) == 4


async def test_a_line_that_another_process_commits_late_is_found(sqlite_store: Store) -> None:
    await add_webhook(sqlite_store, "a", EVENTS)
    for number in range(3):
        await admit_job(sqlite_store, number)
    await sqlite_store.write(lambda connection: connection.execute(audit_lines.delete().where(audit_lines.c.id == 2)))
    assert [one.line for one in await collect(sqlite_store)] == [1, 3]
    late = {
        "id": 2,
        "job": IDS[1],
        "at": 101.0,
        "source": "new",
        "target": "queued",
        "attempt": 1,
        "epoch": 0,
        "why": "",
    }
    await sqlite_store.write(lambda connection: connection.execute(audit_lines.insert().values(**late)))
    await admit_job(sqlite_store, 3)
    assert [one.line for one in await collect(sqlite_store)] == [1, 2, 3, 4]


async def test_a_key_has_its_own_jobs_while_it_is_valid(store: Store) -> None:
    key = ApiKey("webui", frozenset({"imagine"}), 1.0)
    await store.write(api_keys.insert_key, "0" * 64, key)
    await add_webhook(store, "a", EVENTS, key="webui")
    await admit_job(store, 0)
    await admit_job(store, 1, key.member)
    assert [one.job for one in await collect(store)] == [IDS[1]]
    await store.write(api_keys.revoke_key, "webui", NOW)
    await admit_job(store, 2, key.member)
    assert await collect(store) == []
    await store.write(api_keys.insert_key, "1" * 64, ApiKey("webui", frozenset({"imagine"}), NOW))
    assert await collect(store) == [], "who had the old key may have added it"
    (webhook,) = await store.query(stored.list_webhooks)
    assert (webhook.enabled, webhook.reason) == (False, f"{REVOKED} {stored.HOW_TO_TURN_ON}")
    assert await store.write(stored.replay, "a", NOW, since=None) == 1
    assert [one.job for one in await collect(store)] == [IDS[1], IDS[2]], "the operator wants it: it misses nothing"
    await store.write(erasure.erase_member_data, erasure.ErasureRequest(key.member, "", NOW))
    assert await store.query(stored.list_webhooks) == []


async def test_dead_letters_are_kept_replayed_and_dropped_in_time(store: Store) -> None:
    webhook = await add_webhook(store, "a", EVENTS)
    for number in range(2):
        await admit_job(store, number)
    first, second = await collect(store)
    await store.write(stored.record_failed, first, NOW, 5.0, "It answered 500.")
    await store.write(stored.record_failed, second, NOW, None, "It answered 500.")
    assert await collect(store) == []
    assert [one.id for one in await collect(store, NOW + 5)] == [first.id]
    (letter,) = await store.query(stored.list_dead, webhook.id, 10)
    assert (letter.id, letter.tries, letter.state) == (second.id, 1, "dead")
    assert await store.write(stored.replay, webhook.id, NOW, since=None) == 1
    (replayed,) = await collect(store)
    await store.write(stored.record_delivered, replayed, NOW)
    assert await store.write(stored.replay, webhook.id, NOW, since=101.0) == 1
    (again,) = await collect(store)
    assert (again.id, again.tries) == (second.id, 0)
    await store.write(stored.record_delivered, again, NOW)
    await store.write(stored.collect_events, NOW + stored.KEPT_SECONDS)
    assert await store.query(stored.count_by_state) == {(webhook.id, "waiting"): 1}


async def test_a_webhook_that_takes_nothing_is_off_before_it_fills_the_database(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAX_WAITING", 2)
    webhook = await add_webhook(sqlite_store, "a", EVENTS)
    for number in range(3):
        await admit_job(sqlite_store, number)
    assert await collect(sqlite_store) == []
    (row,) = await sqlite_store.query(stored.list_webhooks)
    assert (row.enabled, row.reason) == (False, stored.FULL)
    letters = await sqlite_store.query(stored.list_dead, webhook.id, 10)
    assert [(letter.job, letter.error) for letter in letters] == [(job, stored.FULL) for job in reversed(IDS[:3])]
    assert await sqlite_store.write(stored.replay, webhook.id, NOW, since=None) == 1, "half is left for new events"
    await admit_job(sqlite_store, 3)
    assert [one.job for one in await collect(sqlite_store)] == [IDS[2], IDS[3]], "the newest; it is on again"
    later = NOW + stored.KEPT_SECONDS
    assert await sqlite_store.query(stored.needs_collection, later)
    await sqlite_store.write(stored.collect_events, later)
    assert await sqlite_store.query(stored.count_by_state) == {(webhook.id, "waiting"): 2}


async def test_a_webhook_that_is_turned_on_again_is_not_flooded_by_what_it_missed(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAX_MISSED", 2)
    monkeypatch.setattr(stored, "OVERLAP_LINES", 0)
    webhook = await add_webhook(sqlite_store, "a", EVENTS)
    await sqlite_store.write(stored.disable_webhook, webhook.id, NOW, "It answered 410.")
    for number in range(4):
        await admit_job(sqlite_store, number)
    assert await sqlite_store.write(stored.replay, webhook.id, NOW, since=None) == 0
    assert [one.job for one in await collect(sqlite_store)] == IDS[2:]


async def test_a_webhook_that_is_on_misses_nothing_by_a_replay(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAX_MISSED", 2)
    monkeypatch.setattr(stored, "OVERLAP_LINES", 0)
    webhook = await add_webhook(sqlite_store, "a", EVENTS)
    for number in range(4):
        await admit_job(sqlite_store, number)
    await sqlite_store.write(stored.replay, webhook.id, NOW, since=None)
    assert [one.job for one in await collect(sqlite_store)] == IDS


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_the_webhooks_of_a_key_that_expired_stay_off_and_their_events_go(store: Store, is_replaced: bool) -> None:
    key = ApiKey("webui", frozenset({"imagine"}), 1.0, expires=NOW + 1)
    await store.write(api_keys.insert_key, "0" * 64, key)
    await add_webhook(store, "a", EVENTS, key="webui")
    await admit_job(store, 0, key.member)
    assert len(await collect(store)) == 1
    if is_replaced:  # before anybody noticed
        await store.write(api_keys.insert_key, "1" * 64, ApiKey("webui", frozenset({"imagine"}), NOW + 1))
    assert await collect(store, NOW + 1) == []
    (webhook,) = await store.query(stored.list_webhooks)
    assert (webhook.enabled, webhook.reason) == (False, f"{KEY_ENDED} {stored.HOW_TO_TURN_ON}")
    assert await store.query(stored.count_by_state) == {("a", "dead"): 1}


async def test_what_waits_for_one_webhook_hides_nothing_of_another(store: Store) -> None:
    await add_webhook(store, "a", EVENTS)
    for number in range(3):
        await admit_job(store, number)
    await add_webhook(store, "b", EVENTS)
    await admit_job(store, 3)
    await collect(store)
    due = await store.query(stored.list_due, NOW, [], 2)
    assert [(one.webhook, one.job) for one, _ in due] == [("a", IDS[0]), ("a", IDS[1]), ("b", IDS[3])]
    assert [webhook.id for _, webhook in await store.query(stored.list_due, NOW, ["a"], 2)] == ["b"]
    assert await store.query(stored.list_due, NOW, ["a", "b"], 2) == []


async def test_an_event_that_was_on_its_way_counts_as_delivered_though_its_webhook_is_off(sqlite_store: Store) -> None:
    webhook = await add_webhook(sqlite_store, "a", EVENTS)
    await admit_job(sqlite_store, 0)
    (delivery,) = await collect(sqlite_store)
    await sqlite_store.write(stored.disable_webhook, webhook.id, NOW, "Off.")
    await sqlite_store.write(stored.record_delivered, delivery, NOW)
    assert await sqlite_store.query(stored.count_by_state) == {("a", "delivered"): 1}


async def test_a_key_has_a_bounded_number_of_webhooks(sqlite_store: Store) -> None:
    for number in range(MAX_KEY_WEBHOOKS):
        await add_webhook(sqlite_store, str(number), key="webui")
    extra = Webhook("extra", "https://hooks.example/", "webui", DEFAULT_EVENTS, "whsec_AAAA", 1.0)
    assert not await sqlite_store.write(stored.insert_webhook, extra)
    await add_webhook(sqlite_store, "other")


KILLED = """
import asyncio, os, signal, sys
from bot.store import Store
from tests.bot.features.webhooks.deliveries import add_webhook, admit_job

async def admit_and_die(url):
    store = await Store.open(url)
    await add_webhook(store, "a", ("job.queued",))
    await admit_job(store, 0)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(admit_and_die(sys.argv[1]))
"""


@pytest.mark.slow
async def test_an_event_survives_the_kill_that_follows_its_commit(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'darkroom.sqlite'}"
    root = Path(__file__).parents[4]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": ""}
    killed = subprocess.run([sys.executable, "-c", KILLED, url], env=environment, check=False)  # noqa: ASYNC221
    assert killed.returncode == -9
    store = await Store.open(url)
    try:
        assert [(one.event, one.job) for one in await collect(store)] == [("job.queued", IDS[0])]
    finally:
        await store.close()


@pytest.mark.asyncio
async def test_due_events_of_webhooks_are_read_in_the_order_of_their_index(sqlite_store: Store) -> None:
    for name in ("a", "b"):
        webhook = Webhook(name, "https://hooks.example/", "", DEFAULT_EVENTS, "whsec_AAAA", 1.0)
        assert await sqlite_store.write(stored.insert_webhook, webhook)
    plan = (await list_plans(sqlite_store, stored.list_due, 2.0, [], 8))[-1]
    assert plan.count("INDEX webhook_deliveries_due (webhook=? AND state=? AND due<?)") == 2
    assert "TEMP B-TREE" not in plan, "a replay gives thousands the same time"
