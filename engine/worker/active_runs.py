"""The runs of this worker, and how to remove a run from everything that works on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Protocol

from engine.worker.job_engine import EngineCaller
from engine.worker.run import JobRun

log = logging.getLogger(__name__)


class ForgetsJobs(Protocol):
    """What keeps something of a job until the job leaves the worker."""

    def forget_job(self, job: str) -> None: ...


class ActiveRuns:
    """`presence_changed` is set when the worker's presence is out of date."""

    def __init__(self, thread: EngineCaller, decode_worker: ForgetsJobs) -> None:
        self.thread = thread
        self._decode_worker = decode_worker
        self.presence_changed = asyncio.Event()
        self.on_remove: Callable[[JobRun], None] = lambda _: None
        self._runs: dict[str, JobRun] = {}
        self._worker_tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[JobRun]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run: JobRun) -> bool:
        return self._runs.get(run.job.id) is run

    def get(self, job: str) -> JobRun | None:
        return self._runs.get(job)

    @property
    def rows(self) -> int:
        """Rows of the batch that all runs occupy."""
        return sum(run.rows for run in self)

    def add(self, run: JobRun) -> None:
        self._runs[run.job.id] = run
        self.presence_changed.set()

    def remove(self, run: JobRun) -> None:
        if run in self:
            del self._runs[run.job.id]
            self._decode_worker.forget_job(run.job.id)
            self.on_remove(run)
            self.presence_changed.set()

    def spawn(self, work: Coroutine[object, object, None], run: JobRun | None = None) -> None:
        """Start a task of a run, which ends with the run, or of the worker."""
        tasks = self._worker_tasks if run is None else run.tasks
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def cancel_tasks(self, run: JobRun) -> None:
        """Cancel every task of a run except the current one."""
        for task in run.tasks - {asyncio.current_task()}:
            task.cancel()

    async def stop_run(self, run: JobRun) -> int:
        """End a run's tasks, remove it from the engine, and return the steps done."""
        self.cancel_tasks(run)
        steps = await self.thread.call(lambda engine: engine.cancel(run.job.id))
        return max(steps, run.steps_to_charge)

    async def abandon(self, run: JobRun, reason: str) -> None:
        """Stop a run without a result: the new holder of its claim reports on the job. Only the first call acts."""
        if run not in self:
            return
        log.warning("job %s is stopped: %s", run.job.id, reason)
        run.try_end()
        self.remove(run)
        await self.stop_run(run)

    async def close(self) -> None:
        """Cancel the worker's tasks; runs end their own."""
        for task in self._worker_tasks:
            task.cancel()
        await asyncio.gather(*self._worker_tasks, return_exceptions=True)
