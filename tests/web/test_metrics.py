"""`GET /metrics`: who may read it, what it counts of real jobs, and that no label can grow without end."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from bot.metrics import MODELS, Metrics
from bot.scrape import Scrape
from bot.store import Unavailable
from bot.web.auth import terminal_key

TOKEN = "a-token-of-some-length"
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


async def scraped(room, **headers: str) -> tuple[int, str]:
    async with room.client.get(room.url + "/metrics", headers=headers) as answer:
        return answer.status, await answer.text()


def values(page: str) -> dict[str, float]:
    """`name{label="value"}` → value."""
    found = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


@pytest.mark.asyncio
async def test_what_happened_is_counted(room):
    (drawer,) = room.drawers
    kept = await room.imagine("a lamp --count 2")
    async for name, _ in room.events(f"/api/jobs/{kept}/events"):
        if name == "finished":
            break
    failed = await room.imagine("an impossible lamp")
    await room.end_of(failed)
    drawer.stand_at = 3
    stopped = await room.imagine("a lamp")
    async for name, _ in room.events(f"/api/jobs/{stopped}/events"):
        if name == "frame":
            break
    waiting = await room.imagine("a lamp --relax --count 1")
    status, page = await scraped(room)
    assert status == 200
    found = values(page)
    assert found['darkroom_active_jobs{pool="default",state="running"}'] >= 1
    assert found['darkroom_active_rows{pool="default",state="running"}'] >= 4
    assert found['darkroom_workers{pool="default"}'] == 1
    assert found['darkroom_worker_rows{pool="default"}'] == 32
    assert found['darkroom_batch_fill_ratio{pool="default"}'] == 0
    await room.ask("DELETE", f"/api/jobs/{stopped}")
    await room.end_of(stopped)
    drawer.stand_at = None
    drawer.going.set()
    await room.end_of(waiting)
    _, page = await scraped(room)
    found = values(page)
    ends = {state: found[f'darkroom_job_seconds_count{{outcome="{state}"}}'] for state in ("finished", "cancelled")}
    assert ends == {"finished": 2, "cancelled": 1}
    assert found['darkroom_job_failures_total{blame="model"}'] == 1
    assert found['darkroom_refunds_total{outcome="failed"}'] == 1
    assert found['darkroom_step_seconds_count{model="embedded"}'] == 2
    assert found["darkroom_first_preview_seconds_count"] >= 1
    assert found['darkroom_queue_jobs{tier="standard"}'] == 0
    assert (found["darkroom_store_up"], found["darkroom_broker_up"]) == (1, 1)
    for secret in (kept, failed, stopped, "local:", "Terminal", "lamp"):
        assert secret not in page


@pytest.mark.asyncio
async def test_a_queue_has_a_length_and_an_age(open_room):
    async with open_room(workers=0) as room:
        for _ in range(2):
            await room.imagine("a lamp")
        found = values((await scraped(room))[1])
        assert found['darkroom_queue_jobs{tier="standard"}'] == 2
        assert found['darkroom_queue_jobs{tier="relaxed"}'] == 0
        assert 0 < found['darkroom_queue_oldest_seconds{tier="standard"}'] < 60


@pytest.mark.asyncio
async def test_who_may_read_it(open_room):
    async with open_room(workers=0, public_url="https://pictures.example", metrics_token=TOKEN) as room:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}):
            status, said = await scraped(room, **headers)
            assert status == 403
            assert '{"error": "This room asks for its one-time address' in said
        token = {"Authorization": f"Bearer {TOKEN}"}
        key = await asyncio.to_thread(terminal_key, room.settings.data)
        assert (await scraped(room, **token))[0] == 200
        assert (await scraped(room, Authorization=f"Bearer {key}"))[0] == 200
        for path in ("/api/jobs", "/api/room", "/metrics/"):
            async with room.client.get(room.url + path, headers=token) as answer:
                assert answer.status == 403
        async with room.client.get(room.url + "/metrics", headers={**token, "Host": "evil.example"}) as answer:
            assert answer.status == 403


@pytest.mark.asyncio
async def test_a_room_with_no_token_for_it_lets_none_in_by_an_empty_one(open_room):
    async with open_room(workers=0, public_url="https://pictures.example") as room:
        for sent in ("Bearer ", "Bearer", ""):
            assert (await scraped(room, Authorization=sent))[0] == 403


@pytest.mark.asyncio
async def test_the_newer_form_is_written_to_who_asks_for_it(room):
    accept = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    async with room.client.get(room.url + "/metrics", headers={"Accept": accept}) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        names = {family.name for family in open_metrics(await answer.text())}
    assert {"darkroom_job_seconds", "darkroom_requeues", "darkroom_queue_jobs"} <= names


@pytest.mark.asyncio
async def test_the_table_of_the_manual_is_all_of_them(room):
    _, page = await scraped(room)
    told = set(re.findall(r"^\| `(darkroom_\w+)", DOCS.read_text(), re.MULTILINE))
    families = text_string_to_metric_families(page)
    assert told == {f"{one.name}_total" if one.type == "counter" else one.name for one in families}


@pytest.mark.asyncio
async def test_while_the_database_is_away_the_rest_is_told():
    class Away:
        async def ask(self, *_: object) -> None:
            raise Unavailable("away")

    class Bus:
        workers: dict[str, object] = {}  # noqa: RUF012
        connected = False
        dead = type("Dead", (), {"count": {"results": 2}})()

    found = values((await Scrape(Metrics(), Away(), Bus()).page(generate_latest)).decode())  # type: ignore[arg-type]
    assert (found["darkroom_store_up"], found["darkroom_broker_up"]) == (0, 0)
    assert found['darkroom_dead_letters_total{subject="results"}'] == 2
    assert not any(name.startswith("darkroom_queue") for name in found)


def test_models_without_end_become_one():
    metrics = Metrics()
    names = {metrics._model(f"model{number}") for number in range(MODELS + 50)}
    assert len(names) == MODELS + 1
    assert metrics._model("model0") == "model0"
