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

from engine.contract.rejection import JobRejected
from engine.device.memory import is_out_of_memory
from engine.device.threads import limit_to_one_core

log = logging.getLogger(__name__)

T = TypeVar("T")
ReportActivity = Callable[[], None]


class LoadAbandoned(Exception):
    """No job waits for the model any more."""


class ModelLoader:
    """Calls `report_activity` at the start and at every progress, and `report_idle` at the end."""

    def __init__(
        self, report_activity: ReportActivity = lambda: None, report_idle: ReportActivity = lambda: None
    ) -> None:
        self.report_activity = report_activity
        self.report_idle = report_idle

    async def run(self, name: str, work: Callable[[ReportActivity], T]) -> T:
        """Run `work` in a daemon thread. Turns every failure into a `JobRejected` with one sentence."""
        future: Future[T] = Future()
        cores = torch.get_num_threads()
        threading.Thread(
            target=self._run_in_thread, args=(future, name, work, cores), name="loader", daemon=True
        ).start()
        return await asyncio.wrap_future(future)

    def _run_in_thread(self, future: Future[T], name: str, work: Callable[[ReportActivity], T], cores: int) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self.report_activity()
        try:
            limit_to_one_core(cores)
            free_memory()
            future.set_result(work(self.report_activity))
        except (JobRejected, LoadAbandoned) as error:
            future.set_exception(error)
        except Exception as error:
            log.exception("%s could not be loaded", name)
            future.set_exception(_make_error(name, error))
        finally:
            self.report_idle()


def free_memory() -> None:
    """Free dropped models now: the next model needs their memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _make_error(name: str, error: Exception) -> JobRejected:
    if is_out_of_memory(error):
        return JobRejected(f"There is not enough memory to load the model {name}.", "worker")
    return JobRejected(f"The model {name} could not be loaded.", "worker")
