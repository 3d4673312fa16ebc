"""`GET /metrics`: its readers, its counts of real jobs, and a bound on every label."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from bot.app.metrics import MAX_MODELS, Metrics, MetricsPage
from bot.store import DatabaseUnavailable
from bot.web.auth import terminal_key

TOKEN = "a-token-of-some-length"
DOCS = Path(__file__).parents[3] / "docs" / "operations.md"


async def fetch_metrics(server, **headers: str) -> tuple[int, str]:
    async with server.client.get(server.url + "/metrics", headers=headers) as answer:
        return answer.status, await answer.text()


def values(page: str) -> dict[str, float]:
    """`name{label="value"}` → value."""
    samples = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
            samples[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return samples


@pytest.mark.slow
@pytest.mark.asyncio
async def test_finished_failed_and_cancelled_jobs_are_counted(server):
    (worker,) = server.workers
    finished_job = await server.imagine("a lamp --count 2")
    async for name, _ in server.events(f"/api/jobs/{finished_job}/events"):
        if name == "finished":
            break
    failed_job = await server.imagine("an impossible lamp")
    await server.wait_for_end(failed_job)
    worker.pause_step = 3
    cancelled_job = await server.imagine("a lamp")
    async for name, _ in server.events(f"/api/jobs/{cancelled_job}/events"):
        if name == "frame":
            break
    waiting_job = await server.imagine("a lamp --relax --count 1")
    status, page = await fetch_metrics(server)
    assert status == 200
    samples = values(page)
    assert samples['darkroom_active_jobs{pool="default",state="running"}'] >= 1
    assert samples['darkroom_active_rows{pool="default",state="running"}'] >= 4
    assert samples['darkroom_workers{pool="default"}'] == 1
    assert samples['darkroom_worker_rows{pool="default"}'] == 32
    assert samples['darkroom_batch_fill_ratio{pool="default"}'] == 0
    await server.request_json("DELETE", f"/api/jobs/{cancelled_job}")
    await server.wait_for_end(cancelled_job)
    worker.pause_step = None
    worker.step_gate.set()
    await server.wait_for_end(waiting_job)
    _, page = await fetch_metrics(server)
    samples = values(page)
    end_counts = {
        state: samples[f'darkroom_job_seconds_count{{outcome="{state}"}}'] for state in ("finished", "cancelled")
    }
    assert end_counts == {"finished": 2, "cancelled": 1}
    assert samples['darkroom_job_failures_total{blame="model"}'] == 1
    assert samples['darkroom_refunds_total{outcome="failed"}'] == 1
    assert samples['darkroom_step_seconds_count{model="embedded"}'] == 2
    assert samples["darkroom_first_preview_seconds_count"] >= 1
    assert samples['darkroom_queue_jobs{tier="standard"}'] == 0
    assert (samples["darkroom_store_up"], samples["darkroom_broker_up"]) == (1, 1)
    for secret in (finished_job, failed_job, cancelled_job, "local:", "Terminal", "lamp"):
        assert secret not in page


@pytest.mark.asyncio
async def test_a_queue_has_a_length_and_an_age(open_server):
    async with open_server(workers=0) as server:
        for _ in range(2):
            await server.imagine("a lamp")
        samples = values((await fetch_metrics(server))[1])
        assert samples['darkroom_queue_jobs{tier="standard"}'] == 2
        assert samples['darkroom_queue_jobs{tier="relaxed"}'] == 0
        assert 0 < samples['darkroom_queue_oldest_seconds{tier="standard"}'] < 60


@pytest.mark.asyncio
async def test_only_the_token_or_the_terminals_key_may_read_the_metrics(open_server):
    async with open_server(workers=0, public_url="https://pictures.example", metrics_token=TOKEN) as server:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}):
            status, reply = await fetch_metrics(server, **headers)
            assert status == (401 if headers else 403)
            assert ('{"error": "This key is not valid' if headers else '{"error": "Sign in with the one-time') in reply
        token = {"Authorization": f"Bearer {TOKEN}"}
        key = await asyncio.to_thread(terminal_key, server.settings.data)
        assert (await fetch_metrics(server, **token))[0] == 200
        assert (await fetch_metrics(server, Authorization=f"Bearer {key}"))[0] == 200
        for path in ("/api/jobs", "/api/workers", "/metrics/"):
            async with server.client.get(server.url + path, headers=token) as answer:
                assert answer.status == 401
        async with server.client.get(server.url + "/metrics", headers={**token, "Host": "evil.example"}) as answer:
            assert answer.status == 403


@pytest.mark.asyncio
async def test_without_a_configured_token_an_empty_one_is_refused(open_server):
    async with open_server(workers=0, public_url="https://pictures.example") as server:
        for authorization in ("Bearer ", "Bearer", ""):
            assert (await fetch_metrics(server, Authorization=authorization))[0] == (401 if authorization else 403)


@pytest.mark.asyncio
async def test_openmetrics_is_served_on_request(server):
    accepted_types = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    async with server.client.get(server.url + "/metrics", headers={"Accept": accepted_types}) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        names = {family.name for family in open_metrics(await answer.text())}
    assert {"darkroom_job_seconds", "darkroom_requeues", "darkroom_queue_jobs"} <= names


@pytest.mark.asyncio
async def test_the_manual_lists_every_metric(server):
    _, page = await fetch_metrics(server)
    documented_names = set(re.findall(r"^\| `(darkroom_\w+)", DOCS.read_text(), re.MULTILINE))
    families = text_string_to_metric_families(page)
    assert documented_names == {f"{one.name}_total" if one.type == "counter" else one.name for one in families}


@pytest.mark.asyncio
async def test_other_metrics_are_served_while_the_database_is_unreachable():
    class Away:
        async def query(self, *_: object) -> None:
            raise DatabaseUnavailable("away")

    class Bus:
        workers: dict[str, object] = {}  # noqa: RUF012
        is_connected = False
        dead_letters = type("Dead", (), {"count": {"results": 2}})()

    samples = values((await MetricsPage(Metrics(), Away(), Bus()).render(generate_latest)).decode())  # type: ignore[arg-type]
    assert (samples["darkroom_store_up"], samples["darkroom_broker_up"]) == (0, 0)
    assert samples['darkroom_dead_letters_total{subject="results"}'] == 2
    assert not any(name.startswith("darkroom_queue") for name in samples)


def test_models_beyond_the_limit_share_one_label():
    metrics = Metrics()
    names = {metrics._model_label(f"model{number}") for number in range(MAX_MODELS + 50)}
    assert len(names) == MAX_MODELS + 1
    assert metrics._model_label("model0") == "model0"
