"""A worker that starts says what it loads, in bytes; nobody takes it for one that can draw yet."""

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

from engine import serving, sizes
from engine.bench.small_models import build
from engine.bus import Bus
from engine.bus.broker import Broker
from engine.bus.progress import MOST, ProgressBoard
from engine.bus.refusals import Refusals
from engine.config import load
from engine.job import Loading, ModelProgress, decode, encode
from engine.progress_lines import EVERY_SECONDS, ProgressLines
from engine.shelf import offering

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


async def until(true: Any, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_worker_that_starts_says_what_it_loads_until_it_is_there(
    broker: Broker, bot: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await asyncio.to_thread(build, "sd", tmp_path / "models" / "tiny")
    gates = {"load": threading.Event(), "measure": threading.Event()}
    inner, measure = offering._opened, offering.calibrate

    def slowly(source: Any, place: Any, told: Any) -> Any:
        def halfway(done: float) -> None:
            told(done)
            if 0.0 < done < 1.0:
                gates["load"].wait(30)

        return inner(source, place, halfway)

    def calibrated(*given: Any) -> Any:
        gates["measure"].wait(30)
        return measure(*given)

    monkeypatch.setattr(offering, "_opened", slowly)
    monkeypatch.setattr(offering, "calibrate", calibrated)
    settings = load(
        nats=broker.url, data=tmp_path, models=("tiny",), device="cpu", name="far", pools=("big",),
        nats_token=broker.token,
    )  # fmt: skip
    task = asyncio.create_task(serving.serve(settings))
    try:
        await until(lambda: (now := bot.starting("big")) and 0.0 < now.done < 1.0)
        now = bot.starting("big")
        assert now is not None
        assert (now.model, now.phase) == ("tiny", "load")
        assert now.size == offering.weigh(offering.find("tiny", tmp_path), offering.Choice("cpu"))  # pyright: ignore
        assert bot.progress.size("tiny") == now.size
        assert bot.starting("default") is None
        assert bot.workers == {}, "it can take no job"
        gates["load"].set()
        await until(lambda: (now := bot.starting()) and now.phase == "measure")
        gates["measure"].set()
        await until(lambda: "far" in bot.workers)
        assert bot.starting() is None, "it is there"
        assert (said := bot.progress.of("far")) is not None
        assert said.phase == "ready"
    finally:
        for gate in gates.values():
            gate.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    lines = [each.message for each in caplog.records if each.name == "engine.serving"]
    assert lines[0].startswith("loading tiny, ")
    assert "measuring tiny" in lines
    assert any(line.startswith("tiny is ready on cpu after ") for line in lines)


@pytest.mark.asyncio
async def test_nonsense_is_refused_and_a_flood_is_bounded(bot: Bus) -> None:
    await bot.client.publish("progress.far.default", b"nonsense")
    await bot.client.publish("progress.far.default", encode(ModelProgress()).replace(b"prepare", b"pretend"))
    await bot.client.publish("progress._far.default", encode(ModelProgress()))
    for number in range(MOST + 10):
        await bot.publish_progress(f"w{number}", ("default",), ModelProgress(model=f"m{number}", phase="load", size=5))
    await until(lambda: bot.progress.of(f"w{MOST + 9}") is not None)
    assert len(bot.progress._heard) == len(bot.progress._sizes) == MOST
    assert bot.progress.of("w0") is None
    assert {one.who for one in bot.refused.recent()} >= {"the progress of worker far", "the progress of worker _far"}


@pytest.mark.asyncio
async def test_whoever_falls_silent_is_not_on_its_way(monkeypatch: pytest.MonkeyPatch, bot: Bus) -> None:
    await bot.publish_progress("far", ("default",), ModelProgress())
    await until(bot.starting)
    monkeypatch.setattr("engine.bus.progress.SILENT", -1.0)
    assert bot.starting() is None
    assert ProgressBoard(Refusals()).newest(None) is None


def test_the_loading_of_a_job_is_said_as_before() -> None:
    """A bot from before takes no field that it does not know: sizes come beside it, on another subject."""
    said = msgspec.msgpack.decode(encode(Loading(job=JOB, epoch=1, model="sd15", done=0.5)))
    assert sorted(said) == ["done", "epoch", "job", "model", "type", "v"]
    plain = {"type": "ModelProgress", "model": "sd15", "phase": "load"}
    assert decode(msgspec.msgpack.encode(plain), ModelProgress).size == 0


def test_lines_come_at_each_stage_and_now_and_then_between() -> None:
    lines: list[str] = []
    hear = ProgressLines(lines.append, "cpu").hear
    one = ModelProgress(model="sd15", phase="load", size=2 * GB)
    hear(ModelProgress(), 0.0)
    hear(one, 1.0)
    for moment in range(2, 13):
        hear(msgspec.structs.replace(one, done=0.6), float(moment))
    hear(msgspec.structs.replace(one, phase="measure"), 12.5)
    hear(msgspec.structs.replace(one, phase="ready"), 13.0)
    hear(msgspec.structs.replace(one, phase="ready"), 14.0 + EVERY_SECONDS)
    assert lines == [
        "loading sd15, 2 GB", "loading sd15, 1.2 of 2.0 GB", "measuring sd15", "sd15 is ready on cpu after 12 s"
    ]  # fmt: skip
    hear(ModelProgress(model="other", phase="ready"), 30.0)
    assert len(lines) == 4, "nobody heard it begin"


@pytest.mark.parametrize(
    ("done", "size", "said"),
    [
        (0.6, 2 * GB, "loading sd15, 1.2 of 2.0 GB"), (0.0, 2 * GB, "loading sd15, 0.0 of 2.0 GB"),
        (1.0, 2 * GB, "loading sd15, 2.0 of 2.0 GB"), (0.999, 2 * GB, "loading sd15, 1.9 of 2.0 GB"),
        (0.25, 140_000_000, "loading sd15, 35 of 140 MB"), (0.5, 4000, "loading sd15, 2 of 4 kB"),
        (0.404, 0, "loading sd15, 40 %"), (0.9999, 0, "loading sd15, 100 %"),
    ],
)  # fmt: skip
def test_how_far_a_model_is(done: float, size: int, said: str) -> None:
    assert sizes.loading("sd15", done, size) == said


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**15))
def test_it_never_goes_back_and_is_whole_only_at_the_end(one: float, other: float, size: int) -> None:
    def there(done: float) -> float:
        return float(sizes.part_of(done, size).split()[0])

    least, most = sorted((one, other))
    whole = float(sizes.part_of(1.0, size).split()[2])
    assert there(least) <= there(most) <= whole
    assert there(1.0) == whole
    assert most == 1.0 or there(most) < whole
