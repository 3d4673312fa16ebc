"""Computing work takes turns on the cores, and waiting work never holds them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.batching.engine import Engine, StepDone
from engine.device.core_turns import CoreTurns, WorkKind
from engine.output.picture_check import JobVerdicts
from engine.picture_files import encode_png
from engine.worker.engine_thread import EngineThread
from engine.worker.worker_life import Watchdog
from shared.worker_harness import wait_until

Make = Callable[..., Any]


class RecordingCores(CoreTurns):
    """The real core turns, which record the kinds of work that hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.now: WorkKind | None = None
        self.held_kinds: list[WorkKind] = []

    @contextmanager
    def hold(self, kind: WorkKind) -> Iterator[None]:
        with super().hold(kind):
            self.now = kind
            self.held_kinds.append(kind)
            try:
                yield
            finally:
                self.now = None


def start_thread(engine: Engine, cores: CoreTurns) -> EngineThread:
    thread = EngineThread(engine, Watchdog(), lambda *_: None, lambda error: pytest.fail(repr(error)), cores)
    thread.start()
    return thread


@pytest.mark.asyncio
async def test_only_computing_calls_between_steps_wait_for_a_decode(affine: Any) -> None:
    cores = RecordingCores()
    thread = start_thread(Engine({"affine": affine}), cores)
    with cores.hold(WorkKind.OTHER):
        assert await thread.call(lambda _: cores.now) is WorkKind.OTHER, "a cancel does not wait for a decode"
        encoding = asyncio.create_task(thread.call(lambda _: cores.now, WorkKind.PICTURE))
        await wait_until(lambda: cores.waiting_count)
        assert not encoding.done()
    assert await encoding is WorkKind.PICTURE
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda _: 1 / 0, WorkKind.PICTURE)
    assert await thread.call(lambda _: cores.now, WorkKind.PICTURE) is WorkKind.PICTURE, (
        "a failed call releases the cores"
    )
    await thread.stop()


def test_a_picture_check_holds_the_cores_during_each_check(job: Make, recipe: Make) -> None:
    cores = RecordingCores()
    kinds = list[WorkKind | None]()
    verdicts = JobVerdicts(lambda picture: kinds.append(cores.now) or "passed", cores)  # pyright: ignore[reportArgumentType]

    def estimate_picture() -> Image.Image:
        with cores.hold(WorkKind.OTHER):
            return Image.new("RGB", (8, 8))

    one = job(recipe(), check=True)
    assert verdicts.check_preview(one, 0, 0.5, estimate_picture) == "passed"
    assert verdicts.check_final(one, encode_png(Image.new("RGB", (8, 8)), "")) == "passed"
    assert kinds == [WorkKind.OTHER, WorkKind.PICTURE]


@pytest.fixture
def small_family(tmp_path: Path) -> Any:
    save_small_pipeline("sd", tmp_path / "sd")
    return models.load_folder(str(tmp_path / "sd"), "sd")


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
@pytest.mark.asyncio
async def test_no_work_holds_the_cores_while_all_images_wait_for_their_threads(
    small_family: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole pipeline encodes its prompt in a thread of its own."""
    release = threading.Event()
    encode_started = threading.Event()
    encode = type(small_family.pipeline).encode_prompt

    def encode_slowly(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith("pipeline "):
            encode_started.set()
            assert release.wait(20)
        return encode(*args, **kwargs)

    monkeypatch.setattr(type(small_family.pipeline), "encode_prompt", encode_slowly)
    cores = RecordingCores()
    events = list[Any]()
    engine = Engine({"sd": small_family})
    thread = EngineThread(engine, Watchdog(), lambda new, _: events.extend(new), lambda error: None, cores)
    thread.start()
    pipeline_job = job(
        recipe("cat", model="sd", sampler="heun", steps=3, width=64, height=64, guidance_kind=small_family.guides)
    )
    await thread.call(lambda engine: engine.add(pipeline_job))
    await wait_until(encode_started.is_set, 20)
    for _ in range(3):  # three rounds of the engine
        await thread.call(lambda _: None)
    assert cores.held_kinds == []
    release.set()
    await wait_until(lambda: engine.is_idle)
    assert max(event.step for event in events if isinstance(event, StepDone)) == 3
    assert set(cores.held_kinds) == {WorkKind.STEP}
    await thread.stop()
