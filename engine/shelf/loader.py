"""Runs slow work, such as loading a model, in a thread beside the engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from engine.memory import is_out_of_memory
from engine.one_core import take_one_core
from engine.unfit import Unfit

log = logging.getLogger(__name__)

T = TypeVar("T")
Beat = Callable[[], None]


class GivenUp(Exception):
    """No job waits for the model any more."""


class Loader:
    """`busy` is called at the start and at every progress, `rest` at the end."""

    def __init__(self, busy: Beat = lambda: None, rest: Beat = lambda: None) -> None:
        self.busy, self.rest = busy, rest

    async def run(self, name: str, work: Callable[[Beat], T]) -> T:
        """Run `work` in a daemon thread. Turns every failure into an `Unfit` with one sentence."""
        future: Future[T] = Future()
        cores = torch.get_num_threads()
        threading.Thread(target=self._work, args=(future, name, work, cores), name="loader", daemon=True).start()
        return await asyncio.wrap_future(future)

    def _work(self, future: Future[T], name: str, work: Callable[[Beat], T], cores: int) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self.busy()
        try:
            take_one_core(cores)
            free()
            future.set_result(work(self.busy))
        except (Unfit, GivenUp) as error:
            future.set_exception(error)
        except Exception as error:
            log.exception("%s could not be loaded", name)
            future.set_exception(_unfit(name, error))
        finally:
            self.rest()


def free() -> None:
    """Free dropped models now: the next model needs their memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _unfit(name: str, error: Exception) -> Unfit:
    if is_out_of_memory(error):
        return Unfit(f"There is not enough memory to load the model {name}.", "worker")
    return Unfit(f"The model {name} could not be loaded.", "worker")
