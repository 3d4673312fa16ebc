"""`JobRun`: one claimed job, its progress, and its remaining time; `ActiveRuns`: those of this worker. No torch.

A run's outcome is decided once: the first caller of `try_end` (finish, failure, cancel or loss) gets True, the others
False.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec.structs import replace

from engine.bus.claims import Claim
from engine.bus.connection import BrokerUnreachable
from engine.bus.deliveries import BusMessage
from engine.contract import (
    AmendJob,
    Amendment,
    AmendmentLog,
    AmendmentRequest,
    Job,
    Recipe,
    Snapshot,
    count_evaluations,
    count_image_rows,
    count_row_steps,
    count_rows,
    find_done_share,
    is_snapshot_of_recipe,
    iterate_segments,
    list_final_images,
    list_lives,
)

if TYPE_CHECKING:
    from engine.batching.engine import (
        LatentsDone,  # they bring torch
        StepDone,  # they bring torch
    )

SMOOTHING = 0.05  # weight of the newest step in the measured time of a step
SLOW_PACE = 0.25  # seconds from step to step: a job this slow leaves its rows to others nearly all of the time

log = logging.getLogger(__name__)


@dataclass
class JobRun:
    """All times are on the monotonic clock. `handles`: the messages to acknowledge, by attempt."""

    job: Job
    claim: Claim
    start_time: float
    handles: dict[int, BusMessage[Job]] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)  # image → steps done
    steps_saved: dict[int, int] = field(default_factory=dict)  # image → steps done, in the last snapshots
    unpublished_images: set[int] = field(default_factory=set)  # images whose pictures are not published yet
    pending_previews: dict[int, StepDone] = field(default_factory=dict)  # image → the step to show next
    candidates: dict[int, LatentsDone] = field(default_factory=dict)  # finished images, until the judge chooses
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    start_announced: asyncio.Event = field(default_factory=asyncio.Event)  # Started is published
    is_ended: bool = False
    renewal_time: float = 0.0  # when its claim was last renewed
    model_in_use: str = ""  # the model kept in memory for it
    is_watched: bool = False
    unshown_changes: list[int] = field(default_factory=list)  # the steps of changes that no preview shows yet
    draws_in_turn: bool = False  # a backend draws its images one after another, the engine here all at once
    pause_timer: asyncio.TimerHandle | None = None  # the timer that ends its pause
    paused_seconds: float = 0.0  # seconds of its pauses that have ended
    weight: float = 1.0  # relative to other jobs of its member
    pace: float = 0.0  # seconds from step to step at least
    seconds_per_evaluation: float = 0.0  # seconds an evaluation of one image
    last_step_time: float = 0.0  # when its last step ended, or the engine admitted it
    image_evaluations: int = 0  # evaluations of single images that this worker ran
    last_amendment: int = 0  # the number of the last change that it answered
    refusals: dict[int, str] = field(default_factory=dict)  # the numbers of refused changes, and why
    is_amendment_log_stored: bool = True
    amendment_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    amendment_log_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    newest_changes: AmendJob | None = None  # the newest message about changes, until it is read
    # An image's rows of this recipe, from each of these steps on.
    _image_rows: tuple[Recipe, list[tuple[int, int]]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.unpublished_images = set(range(self.image_count))
        self.steps_done = dict.fromkeys(range(self.image_count), self.first_step)
        if isinstance(self.job.task, Recipe) and self.job.task.amendments:
            self._follow_images(self.job.task, ())
            self.last_amendment = self.job.task.amendments[-1].number

    @property
    def image_count(self) -> int:
        """The images that the engine draws, candidates included."""
        if not isinstance(self.job.task, Recipe):
            return 1
        return max([self.job.task.drawn_count, *(life.image + 1 for life in list_lives(self.job.task))])

    def follow_amendments(self, recipe: Recipe) -> None:
        """Take the recipe as it is now amended. The cost changes as its rows do."""
        old_recipe = self.job.task
        assert isinstance(old_recipe, Recipe), "only a recipe can be amended"
        cost = self.job.cost * count_row_steps(recipe) / max(1, count_row_steps(old_recipe))
        self.job = replace(self.job, task=recipe, cost=cost)
        self._follow_images(recipe, list_final_images(old_recipe))

    def restore_amendments(self, amendment_log: AmendmentLog) -> None:
        """Follow what an earlier worker changed. It may have changed more than the bot knew when it sent the job."""
        recipe = self.job.task
        if isinstance(recipe, Recipe):
            by_number = {each.number: each for each in (*recipe.amendments, *amendment_log.amendments)}
            amendments = tuple(by_number[number] for number in sorted(by_number))
            self.follow_amendments(replace(recipe, amendments=amendments))
            self.last_amendment = max(self.last_amendment, amendment_log.last_number)

    @property
    def amendments(self) -> tuple[Amendment, ...]:
        """All changes that hold."""
        return self.job.task.amendments if isinstance(self.job.task, Recipe) else ()

    def make_amendment_log(self) -> AmendmentLog:
        return AmendmentLog(
            job=self.job.id, epoch=self.claim.epoch, last_number=self.last_amendment, amendments=self.amendments
        )

    def shows_change(self, event: StepDone) -> bool:
        """Return whether the preview of this step would be the first that shows a change."""
        return any(step < event.step for step in self.unshown_changes)

    def take_preview(self) -> StepDone:
        """Return the preview to send: one that shows a change, else that of the image that has waited longest."""
        events = self.pending_previews.values()
        event = next(filter(self.shows_change, events), next(iter(events)))
        self.unshown_changes = [step for step in self.unshown_changes if step >= event.step]
        return self.pending_previews.pop(event.image)

    def _follow_images(self, recipe: Recipe, old_images: Iterable[int]) -> None:
        """Await the images that splits make, and no longer those that are dropped."""
        if recipe.needs_choice:
            return
        images = {life.image: life.first_step for life in list_lives(recipe) if life.drop_step is None}
        self.unpublished_images = {
            image for image in images if image in self.unpublished_images or image not in old_images
        }
        self.steps_done = {image: self.steps_done.get(image, step) for image, step in images.items()}

    @property
    def first_step(self) -> int:
        """The step that it begins with, unless it is resumed."""
        return self.job.task.first_step if isinstance(self.job.task, Recipe) else 0

    @property
    def end_step(self) -> int:
        """The step that it ends before."""
        return self.job.task.end_step if isinstance(self.job.task, Recipe) else 0

    @property
    def rows(self) -> int:
        """Rows of the batch that it occupies; none while it is paused or slow."""
        recipe = self.job.task
        if not isinstance(recipe, Recipe) or self.pause_timer is not None or self.pace >= SLOW_PACE:
            return 0
        if not recipe.amendments:
            return count_rows(recipe)
        return len(self.steps_done) * self._count_image_rows(recipe, max(self.steps_done.values(), default=0))

    def _count_image_rows(self, recipe: Recipe, step: int) -> int:
        """Return an image's rows at a step of an amended recipe. The worker asks many times a second."""
        if self._image_rows is None or self._image_rows[0] is not recipe:
            segments = iterate_segments(recipe)
            self._image_rows = recipe, [(each.first_step, count_image_rows(each.recipe)) for each in segments]
        rows_from_steps = self._image_rows[1]
        return rows_from_steps[max(0, bisect_right(rows_from_steps, step, key=itemgetter(0)) - 1)][1]

    def apply_control(self, engine: JobEngine) -> None:
        """Set pause, weight and pace in the engine, between two steps, also for a job that it has yet to admit."""
        (engine.resume if self.pause_timer is None else engine.pause)(self.job.id)
        engine.set_job_weight(self.job.id, self.weight)
        engine.set_job_pace(self.job.id, self.pace)

    def set_pace(self, seconds: float) -> None:
        """Set the pace. What its steps took at another pace says nothing about the time that is left."""
        if seconds != self.pace:
            self.pace = seconds
            self.seconds_per_evaluation = 0.0

    def restore_progress(self, snapshots: Iterable[Snapshot]) -> int:
        """Record the images' progress from snapshots, and return the least step.

        Snapshots with other changes count for nothing: a repeated message had brought the job as it was before them.
        """
        for snapshot in snapshots:
            recipe = self.job.task
            is_current = isinstance(recipe, Recipe) and is_snapshot_of_recipe(snapshot, recipe)
            if snapshot.image in self.steps_done and is_current:
                self.steps_done[snapshot.image] = self.steps_saved[snapshot.image] = min(
                    snapshot.next_step, self.end_step
                )
        return min(self.steps_done.values(), default=0)

    def record_step(self, images: Sequence[tuple[int, int]], moment: float) -> None:
        """Record (image, steps done) of each image that has just stepped."""
        seconds = (moment - self.last_step_time) / len(images)
        for image, k in images:
            if image in self.steps_done:  # not dropped meanwhile
                self.steps_done[image] = k
            self.seconds_per_evaluation = (
                self.seconds_per_evaluation + SMOOTHING * (seconds - self.seconds_per_evaluation)
                if self.seconds_per_evaluation
                else seconds
            )
        self.last_step_time = moment
        self.image_evaluations += len(images)

    @property
    def seconds_left(self) -> float:
        image_evaluations_left = sum(self._count_evaluations(k, self.end_step) for k in self.steps_done.values())
        return max(0.0, image_evaluations_left * self.seconds_per_evaluation, self.evaluations_left * self.pace)

    @property
    def evaluations_left(self) -> int:
        """The evaluations of the network that are left of its hindmost image."""
        return self._count_evaluations(min(self.steps_done.values(), default=self.end_step), self.end_step)

    def _count_evaluations(self, first_step: int, end_step: int) -> int:
        return count_evaluations(self.job.task, first_step, end_step) if isinstance(self.job.task, Recipe) else 0

    @property
    def has_unsaved_steps(self) -> bool:
        """Whether it has progressed since its last snapshots."""
        return any(k != self.steps_saved.get(image, self.first_step) for image, k in self.steps_done.items())

    @property
    def steps_to_charge(self) -> int:
        """The step that its images have reached: the furthest one, or on average where they are drawn in turn."""
        steps = self.steps_done.values()
        return round(sum(steps) / len(steps)) if self.draws_in_turn else max(steps)

    def try_end(self) -> bool:
        """Return True to the first caller only, which decides how the run ends."""
        is_first = not self.is_ended
        self.is_ended = True
        return is_first

    def compute_cost(self, steps: int) -> float:
        """Return the cost up to step `steps`, in device-seconds, by the calibration at its admission."""
        return self.job.cost * find_done_share(self.job.task, steps) if isinstance(self.job.task, Recipe) else 0.0


T = TypeVar("T")


class JobEngine(Protocol):
    """Draws the images of jobs. Jobs that it does not know are ignored."""

    def cancel(self, job: str) -> int:
        """Remove the job. Return the number of executed steps, for the charge."""
        ...

    def watch(self, job: str, is_watched: bool = True) -> None:
        """Show the job's previews, or no longer."""
        ...

    def pause(self, job: str) -> None:
        """Run no further step of the job until `resume`."""
        ...

    def resume(self, job: str) -> None: ...

    def set_job_pace(self, job: str, seconds: float) -> None:
        """Let the steps of the job begin at least so many seconds apart; 0: as soon as they can."""
        ...

    def set_job_weight(self, job: str, weight: float) -> None:
        """Let the job have `weight` times the share of its user's jobs of weight 1."""
        ...

    def amend(self, job: str, request: AmendmentRequest) -> Recipe:
        """Change the job from the next step on, and return its amended recipe.

        Raises `JobRejected` with a sentence, and KeyError if the job is not here.
        """
        ...

    def take_snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Return a snapshot of each unfinished image that another worker can continue."""
        ...


class EngineCaller(Protocol):
    """Runs calls where nothing else touches the engine."""

    async def call(self, action: Callable[[JobEngine], T]) -> T:
        """Run `action` between two steps and return its result, or raise its error."""
        ...


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


RECEIVE_RETRY_SECONDS = 0.25


async def receive_regularly(watch: Callable[[], AsyncIterator[T]], on_value: Callable[[T], None]) -> None:
    """Pass what the broker brings to `on_value`, for ever; subscribe again after an outage."""
    while True:
        try:
            async for value in watch():
                on_value(value)
        except BrokerUnreachable as error:
            log.warning("%s", error)
            await asyncio.sleep(RECEIVE_RETRY_SECONDS)
