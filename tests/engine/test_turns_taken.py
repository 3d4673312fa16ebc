"""Whoever computes takes its turn on the cores, and nobody holds them who only waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine import families
from engine.bench.small_models import build
from engine.cores import Cores, Kind
from engine.encode import png
from engine.engine import Engine, Stepped
from engine.picture_check import Verdicts
from engine.worker.pulse import Pulse
from engine.worker.thread import EngineThread
from tests.engine.shop import until

Make = Callable[..., Any]


class Noted(Cores):
    """The real cores, which note who has them, and who had."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Kind | None = None
        self.had: list[Kind] = []

    @contextmanager
    def held(self, kind: Kind) -> Iterator[None]:
        with super().held(kind):
            self.now = kind
            self.had.append(kind)
            try:
                yield
            finally:
                self.now = None


def started(engine: Engine, cores: Cores) -> EngineThread:
    thread = EngineThread(engine, Pulse(), lambda *_: None, lambda error: pytest.fail(repr(error)), cores)
    thread.start()
    return thread


@pytest.mark.asyncio
async def test_what_computes_between_steps_waits_for_a_decode_and_what_does_not_goes_at_once(affine: Any) -> None:
    cores = Noted()
    thread = started(Engine({"affine": affine}), cores)
    with cores.held(Kind.OTHER):
        assert await thread.call(lambda _: cores.now) is Kind.OTHER, "a cancel waits for no decode"
        encoding = asyncio.create_task(thread.call(lambda _: cores.now, Kind.PICTURE))
        await until(lambda: cores.waiting)
        assert not encoding.done()
    assert await encoding is Kind.PICTURE
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda _: 1 / 0, Kind.PICTURE)
    assert await thread.call(lambda _: cores.now, Kind.PICTURE) is Kind.PICTURE, "who fails leaves the cores"
    await thread.stop()


def test_a_picture_check_has_the_cores_whenever_it_looks(job: Make, recipe: Make) -> None:
    cores, seen = Noted(), list[Kind | None]()
    verdicts = Verdicts(lambda picture: seen.append(cores.now) or "passed", cores)  # pyright: ignore[reportArgumentType]

    def estimate() -> Image.Image:
        with cores.held(Kind.OTHER):
            return Image.new("RGB", (8, 8))

    one = job(recipe(), check=True)
    assert verdicts.early(one, 0, 0.5, estimate) == "passed"
    assert verdicts.final(one, png(Image.new("RGB", (8, 8)), "")) == "passed"
    assert seen == [Kind.OTHER, Kind.PICTURE]


@pytest.fixture
def small(tmp_path: Path) -> Any:
    build("sd", tmp_path / "sd")
    return families.load_folder(str(tmp_path / "sd"), "sd")


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
@pytest.mark.asyncio
async def test_nobody_holds_the_cores_while_all_images_are_away(
    small: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that goes whole reads its words in a thread of its own."""
    go, reading, encode = threading.Event(), threading.Event(), type(small.pipeline).encode_prompt

    def slow(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith("strand"):
            reading.set()
            assert go.wait(20)
        return encode(*args, **kwargs)

    monkeypatch.setattr(type(small.pipeline), "encode_prompt", slow)
    cores, events, engine = Noted(), list[Any](), Engine({"sd": small})
    thread = EngineThread(engine, Pulse(), lambda new, _: events.extend(new), lambda error: None, cores)
    thread.start()
    whole = job(recipe("cat", model="sd", sampler="heun", steps=3, width=64, height=64, guides=small.guides))
    await thread.call(lambda engine: engine.add(whole))
    await until(reading.is_set, 20)
    for _ in range(3):  # three looks at who is back
        await thread.call(lambda _: None)
    assert cores.had == []
    go.set()
    await until(lambda: engine.idle)
    assert max(event.k for event in events if isinstance(event, Stepped)) == 3
    assert set(cores.had) == {Kind.STEP}
    await thread.stop()
