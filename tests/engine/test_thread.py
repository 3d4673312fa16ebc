"""The engine's thread: it takes the cores that calibration had, whatever another thread set in the meantime."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from engine.engine import Engine
from engine.pulse import Pulse
from engine.thread import EngineThread


@pytest.mark.asyncio
async def test_the_engines_thread_keeps_its_cores_when_the_lane_takes_one() -> None:
    cores = torch.get_num_threads()
    thread = EngineThread(Engine({}), Pulse(), lambda *_: None, lambda error: None)
    lane = threading.Thread(target=torch.set_num_threads, args=(cores + 1,))
    lane.start()
    lane.join()
    thread.start()
    assert await thread.call(lambda _: torch.get_num_threads()) == cores
    await thread.stop()
