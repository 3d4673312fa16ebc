"""The runs of this worker, and how a run is removed from everything that works on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator

from engine.lane import Lane
from engine.worker.run import Run
from engine.worker.thread import EngineThread

log = logging.getLogger(__name__)


class Roster:
    """`changed` is set when the worker's presence is out of date."""

    def __init__(self, thread: EngineThread, lane: Lane) -> None:
        self.thread, self._lane = thread, lane
        self.changed = asyncio.Event()
        self.on_leave: Callable[[Run], None] = lambda _: None
        self._runs: dict[str, Run] = {}
        self._errands: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run: Run) -> bool:
        return self._runs.get(run.job.id) is run

    def get(self, job: str) -> Run | None:
        return self._runs.get(job)

    @property
    def rows(self) -> int:
        """Rows of the batch that all runs occupy."""
        return sum(run.rows for run in self)

    def enter(self, run: Run) -> None:
        self._runs[run.job.id] = run
        self.changed.set()

    def leave(self, run: Run) -> None:
        if run in self:
            del self._runs[run.job.id]
            self._lane.forget(run.job.id)
            self.on_leave(run)
            self.changed.set()

    def spawn(self, work: Coroutine[object, object, None], run: Run | None = None) -> None:
        """Start a task of a run, which ends with the run, or of the worker."""
        into = self._errands if run is None else run.tasks
        task = asyncio.create_task(work)
        into.add(task)
        task.add_done_callback(into.discard)

    def cease(self, run: Run) -> None:
        """Cancel every task of a run except the current one."""
        for task in run.tasks - {asyncio.current_task()}:
            task.cancel()

    async def stop(self, run: Run) -> int:
        """End a run's tasks, remove it from the engine, and return the steps done."""
        self.cease(run)
        steps = await self.thread.call(lambda engine: engine.cancel(run.job.id))
        return max(steps, *run.done.values())

    async def lose(self, run: Run, why: str) -> None:
        """Stop a run without a result: the new holder of its claim reports on the job. Only the first call acts."""
        if run not in self:
            return
        log.warning("job %s is stopped: %s", run.job.id, why)
        run.end()
        self.leave(run)
        await self.stop(run)

    async def close(self) -> None:
        """Cancel the worker's tasks; runs end their own."""
        for task in self._errands:
            task.cancel()
        await asyncio.gather(*self._errands, return_exceptions=True)
