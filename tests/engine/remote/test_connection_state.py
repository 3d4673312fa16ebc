"""When a backend counts as lost, what is said of it, and how long a refused key waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from engine.contract import Recipe
from engine.process.backend_kinds import load_backend_kinds
from engine.remote import connection_state
from engine.remote.connection_state import FIRST_WAIT_SECONDS, MAX_KEY_WAIT_SECONDS, ConnectionState, MeasuredTimes
from engine.remote.drawing import BackendModel, DrawRequest, KeyRefused, OnProgress, make_profile
from shared.bus_harness import make_job
from shared.clock import wait_until

MODEL = BackendModel("sd15", "sd15", 64, 8, 64 * 64, ("native",), 4, 1.0)


@pytest.mark.parametrize("kind", list(load_backend_kinds()))
def test_no_server_draws_a_picture_that_can_be_steered(kind: str) -> None:
    """Its worker gets no changes, so the bot must refuse them before anybody waits for an answer."""
    assert "amendments" in make_profile(MODEL, kind).lacks


class ListingBackend:
    """It lists its models, whatever else it refuses."""

    concurrency = 1

    def __init__(self, models: Sequence[BackendModel] = (MODEL,)) -> None:
        self.models = tuple(models)

    async def list_models(self) -> tuple[BackendModel, ...]:
        return self.models

    async def draw(self, request: DrawRequest, on_progress: OnProgress) -> bytes:
        raise AssertionError("nobody draws here")

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.asyncio
async def test_a_key_that_may_list_but_not_draw_is_tried_with_growing_pauses(tmp_path: Path) -> None:
    waits = list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    times = await asyncio.to_thread(MeasuredTimes, tmp_path)
    state = ConnectionState(ListingBackend(), "openai", times, sleep=sleep)
    watch = asyncio.create_task(state.watch())
    for tries in range(1, 13):
        await wait_until(lambda: state.is_reachable)
        state.note_loss(KeyRefused("no"))
        assert not state.is_reachable
        await wait_until(lambda tries=tries: len(waits) == tries)
    assert waits[:4] == [FIRST_WAIT_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert waits[-1] == MAX_KEY_WAIT_SECONDS
    await wait_until(lambda: state.is_reachable)
    state.note_picture()
    state.note_loss(KeyRefused("no"))
    await wait_until(lambda: len(waits) == 13)
    assert waits[-1] == FIRST_WAIT_SECONDS, "a picture proves the key"
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("wanted", "sentence"), [((), "The backend has no model."), (("sdxl",), "The backend has none of the models sdxl.")]
)
async def test_a_backend_without_models_is_said_to_have_none(
    wanted: tuple[str, ...], sentence: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = await asyncio.to_thread(MeasuredTimes, tmp_path)
    state = ConnectionState(ListingBackend((MODEL,) if wanted else ()), "openai", times, wanted)
    watch = asyncio.create_task(state.watch())
    await wait_until(lambda: "Jobs wait" in caplog.text)
    assert caplog.messages[-1].startswith(sentence)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


def test_times_of_pictures_that_end_at_once_are_stored_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = MeasuredTimes(tmp_path)
    profile = make_profile(MODEL, "openai")
    recipe = make_job(steps=4).task
    assert isinstance(recipe, Recipe)
    writers = Barrier(2)

    def write(path: Path, content: bytes) -> None:
        with suppress(BrokenBarrierError):
            writers.wait(0.1)  # until another writes too
            raise AssertionError("two threads write")

    monkeypatch.setattr(connection_state, "write_atomically", write)
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(times.record, MODEL, profile, recipe, 1.0) for _ in range(2)]
    for end in ends:
        end.result()
