"""Models whose network is in one number format at a time, and who waits for which: no model, no broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine import shelf
from engine.job import Dtype
from engine.shelf import Model, Shelf
from engine.shelf.stock import Stock
from engine.unfit import Unfit

pytestmark = [pytest.mark.asyncio, pytest.mark.may_block]


class Once:
    """What the shelf needs of a family with a large network."""

    def __init__(self) -> None:
        self.dtype: Dtype = "bfloat16"
        self.opened: list[Dtype] = []

    held_once = True

    def holds(self, dtype: Dtype) -> bool:
        return dtype == self.dtype

    def net(self, dtype: Dtype) -> object:
        self.dtype = dtype
        self.opened.append(dtype)
        return self


def a_model(name: str, family: Any, wait: Callable[[], object] = lambda: None) -> Model:
    """Of 4 bytes, or 8 in float32; `wait` is what its last part takes."""
    warm: Any = None

    def opened(told: Any) -> Any:
        told(0.9)
        wait()
        return family

    return Model(name, 4, warm, opened, lambda _: warm, sizes={"bfloat16": 4, "float32": 8})


def a_shelf(budget: int, *models: Model) -> Shelf:
    return Shelf(list(models), Stock(budget))


async def test_who_waited_long_for_another_format_goes_on_and_nobody_waits_for_it_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shelf, "TURN", 0.1)
    there = a_shelf(8, a_model("x", Once()))
    await there.take("x", "bfloat16")
    waiting = asyncio.create_task(there.take("x", "float32"))
    await asyncio.sleep(0.3)
    there.let_go("x")
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(there.take("x", "float32"), 0.5)
    assert not there.crowded()


async def test_who_waits_for_another_format_is_not_passed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "TURN", 0.1)
    family = Once()
    there = a_shelf(8, a_model("x", family))
    first, waiting = (asyncio.create_task(there.take("x", dtype)) for dtype in ("bfloat16", "float32"))
    await asyncio.wait_for(first, 5)
    await asyncio.sleep(0.3)
    late = asyncio.create_task(there.take("x", "bfloat16"))
    await asyncio.sleep(0.1)
    assert not late.done()
    there.let_go("x")
    await asyncio.wait_for(waiting, 5)
    there.let_go("x")
    await asyncio.wait_for(late, 5)
    assert family.opened == ["float32", "bfloat16"]


async def test_who_leaves_while_the_last_part_is_loaded_keeps_nothing_in_memory() -> None:
    gate = threading.Event()
    there = a_shelf(4, a_model("x", Once(), lambda: gate.wait(10)), a_model("y", Once()))
    take = asyncio.create_task(there.take("x", "bfloat16"))
    async with asyncio.timeout(5):
        while there.done("x") != 0.9:
            await asyncio.sleep(0.01)
    take.cancel()
    await asyncio.gather(take, return_exceptions=True)
    gate.set()
    assert await asyncio.wait_for(there.take("y", "bfloat16"), 5)
    assert list(there.families) == ["y"]


async def test_a_larger_format_has_room_made_for_it_or_is_refused() -> None:
    there = a_shelf(8, a_model("x", Once()), a_model("y", Once()))
    for name in "xy":
        await there.take(name, "bfloat16")
        there.let_go(name)
    await there.take("x", "float32")
    assert list(there.families) == ["x"]
    small = a_shelf(6, a_model("x", Once()))
    with pytest.raises(Unfit, match=r"The model x needs about .* of memory"):
        await small.take("x", "float32")
    assert await small.take("x", "bfloat16")
