"""A starting worker reports its loading in bytes; the bot does not count it as ready."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.bus import Bus
from engine.bus.bot_client import MAX_ENTRIES, ModelProgressRegistry
from engine.bus.deliveries import RejectionLog
from engine.bus.embedded_broker import Broker
from engine.contract import ModelProgress, encode
from engine.model_cache import discovery
from engine.models.loading.memory_estimate import estimate_bytes
from engine.process import load_progress
from engine.process.load_progress import LINE_INTERVAL_SECONDS, ProgressLines
from engine.process.settings import load_settings
from engine.worker import main
from shared.clock import wait_until

GB = 10**9
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "nats") as broker:
        yield broker


@pytest_asyncio.fixture
async def bot(broker: Broker) -> AsyncIterator[Bus]:
    bus = await Bus.connect(broker.url, broker.token)
    await bus.declare()
    await bus.watch_workers()
    yield bus
    await bus.close()


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_starting_worker_reports_its_loading_until_it_is_ready(
    broker: Broker, bot: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await asyncio.to_thread(save_small_pipeline, "sd", tmp_path / "models" / "tiny")
    gates = {"load": threading.Event(), "measure": threading.Event()}
    open_model = discovery._load_family
    measure = discovery.calibrate

    def open_slowly(source: Any, target: Any, offload: Any, report: Any) -> Any:
        def wait_halfway(fraction: float) -> None:
            report(fraction)
            if 0.0 < fraction < 1.0:
                gates["load"].wait(30)

        return open_model(source, target, offload, wait_halfway)

    def calibrate_later(*args: Any) -> Any:
        gates["measure"].wait(30)
        return measure(*args)

    monkeypatch.setattr(discovery, "_load_family", open_slowly)
    monkeypatch.setattr(discovery, "calibrate", calibrate_later)
    settings = load_settings(
        nats=broker.url,
        data=tmp_path,
        models=("tiny",),
        device="cpu",
        worker_name="far",
        pools=("big",),
        nats_token=broker.token,
    )
    task = asyncio.create_task(main.run_worker(settings))
    try:
        await wait_until(lambda: (now := bot.get_startup_progress("big")) and 0.0 < now.done < 1.0)
        now = bot.get_startup_progress("big")
        assert now is not None
        assert (now.model, now.phase) == ("tiny", "load")
        assert now.size == estimate_bytes(
            discovery.find_model("tiny", tmp_path),
            discovery.FormatChooser("cpu"),  # pyright: ignore[reportArgumentType]
        )
        assert bot.model_progress.get_model_size("tiny") == now.size
        assert bot.get_startup_progress("default") is None
        assert bot.workers == {}, "a starting worker takes no jobs"
        gates["load"].set()
        await wait_until(lambda: (now := bot.get_startup_progress()) and now.phase == "measure")
        gates["measure"].set()
        await wait_until(lambda: "far" in bot.workers)
        assert bot.get_startup_progress() is None, "a ready worker is not starting"
        assert (progress := bot.model_progress.get_progress("far")) is not None
        assert progress.phase == "ready"
    finally:
        for gate in gates.values():
            gate.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    lines = [each.message for each in caplog.records if each.name == "engine.worker.main"]
    assert lines[0].startswith("loading tiny, ")
    assert "measuring tiny" in lines
    assert any(line.startswith("tiny is ready on cpu after ") for line in lines)


@pytest.mark.asyncio
async def test_invalid_progress_is_refused_and_a_flood_is_bounded(bot: Bus) -> None:
    await bot.client.publish("progress.far.default", b"nonsense")
    await bot.client.publish("progress.far.default", encode(ModelProgress()).replace(b"prepare", b"pretend"))
    await bot.client.publish("progress._far.default", encode(ModelProgress()))
    for number in range(MAX_ENTRIES + 10):
        await bot.publish_progress(f"w{number}", ("default",), ModelProgress(model=f"m{number}", phase="load", size=5))
    await wait_until(lambda: bot.model_progress.get_progress(f"w{MAX_ENTRIES + 9}") is not None)
    assert len(bot.model_progress._reports) == len(bot.model_progress._sizes) == MAX_ENTRIES
    assert bot.model_progress.get_progress("w0") is None
    assert {one.subject for one in bot.rejections.list_recent()} >= {
        "the progress of worker far",
        "the progress of worker _far",
    }


@pytest.mark.asyncio
async def test_a_silent_worker_no_longer_counts_as_starting(monkeypatch: pytest.MonkeyPatch, bot: Bus) -> None:
    await bot.publish_progress("far", ("default",), ModelProgress())
    await wait_until(bot.get_startup_progress)
    monkeypatch.setattr("engine.bus.bot_client.EXPIRY_SECONDS", -1.0)
    assert bot.get_startup_progress() is None
    assert ModelProgressRegistry(RejectionLog()).get_newest(None) is None


def test_progress_lines_come_at_each_stage_and_at_intervals() -> None:
    lines: list[str] = []
    update_lines = ProgressLines(lines.append, "cpu").update
    one = ModelProgress(model="sd15", phase="load", size=2 * GB)
    update_lines(ModelProgress(), 0.0)
    update_lines(one, 1.0)
    for moment in range(2, 13):
        update_lines(msgspec.structs.replace(one, done=0.6), float(moment))
    update_lines(msgspec.structs.replace(one, phase="measure"), 12.5)
    update_lines(msgspec.structs.replace(one, phase="ready"), 13.0)
    update_lines(msgspec.structs.replace(one, phase="ready"), 14.0 + LINE_INTERVAL_SECONDS)
    assert lines == [
        "loading sd15, 2 GB",
        "loading sd15, 1.2 of 2.0 GB",
        "measuring sd15",
        "sd15 is ready on cpu after 12 s",
    ]
    update_lines(ModelProgress(model="other", phase="ready"), 30.0)
    assert len(lines) == 4, "a model without a first line has no last one"


def test_a_load_that_nobody_saw_counts_from_the_first_line() -> None:
    lines: list[str] = []
    update_lines = ProgressLines(lines.append).update
    update_lines(ModelProgress(model="sd15", phase="measure"), 70_000.0)
    update_lines(ModelProgress(model="sd15", phase="ready"), 70_002.5)
    assert lines == ["measuring sd15", "sd15 is ready after 3 s"]


@pytest.mark.parametrize(
    ("fraction", "size", "expected_text"),
    [
        (0.6, 2 * GB, "loading sd15, 1.2 of 2.0 GB"),
        (0.0, 2 * GB, "loading sd15, 0.0 of 2.0 GB"),
        (1.0, 2 * GB, "loading sd15, 2.0 of 2.0 GB"),
        (0.999, 2 * GB, "loading sd15, 1.9 of 2.0 GB"),
        (0.25, 140_000_000, "loading sd15, 35 of 140 MB"),
        (0.5, 4000, "loading sd15, 2 of 4 kB"),
        (0.404, 0, "loading sd15, 40 %"),
        (0.9999, 0, "loading sd15, 100 %"),
    ],
)
def test_loading_progress_is_formatted_with_sizes(fraction: float, size: int, expected_text: str) -> None:
    assert load_progress.format_loading("sd15", fraction, size) == expected_text


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**15))
def test_formatted_progress_never_falls_and_is_full_only_at_the_end(one: float, other: float, size: int) -> None:
    def loaded_part(fraction: float) -> float:
        return float(load_progress.format_loaded_part(fraction, size).split()[0])

    smaller, larger = sorted((one, other))
    full_size = float(load_progress.format_loaded_part(1.0, size).split()[2])
    assert loaded_part(smaller) <= loaded_part(larger) <= full_size
    assert loaded_part(1.0) == full_size
    assert larger == 1.0 or loaded_part(larger) < full_size
