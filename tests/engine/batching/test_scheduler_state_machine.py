"""A state machine: any events between two steps; every step checks the scheduler's guarantees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.batching.scheduler import Scheduler
from engine.contract import BillingKey

LIMIT = 8
HOLD = 4
QUANTUM = 120.0
PRICES = {"64": 1.0, "256": 5.0, "1024": 20.0}


@dataclass(eq=False)
class Image:
    """From step `switch_step` on it has `later_rows` rows; with `is_pinned` its key changes too."""

    job: str
    billing_key: BillingKey
    size: str
    first_rows: int
    later_rows: int
    switch_step: int
    is_pinned: bool
    k: int = 0

    @property
    def rows(self) -> int:
        return self.first_rows if self.k < self.switch_step else self.later_rows

    @property
    def key(self) -> Hashable:
        return self.size, self.rows if self.is_pinned else None

    @property
    def row_ms(self) -> float:
        return PRICES[self.size]

    @property
    def forward_times(self) -> Mapping[int, float]:
        return {}


class SchedulerMachine(RuleBasedStateMachine):
    """Owners `a` … `e` share a guild; every other owner has one job, from a guild of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[Image] = Scheduler(turn_steps=HOLD, quantum=QUANTUM)
        self.images: list[Image] = []
        self.paused_jobs: set[str] = set()
        self.waiting_jobs: list[str] = []  # jobs without a served row yet, in order of arrival
        self.single_jobs: set[str] = set()  # jobs of owners with a single job
        self.arrival_count = 0
        self.key: Hashable = None
        self.turn_steps = 0
        self.turn_cost = 0.0
        self.was_empty = False  # the group was empty at some time since its turn began
        self.received_cost: Counter[str] = Counter()
        self.least_lead: dict[tuple[str, str, Hashable], float] = {}  # m's smallest lead over f while f waits

    @rule(
        owner=st.sampled_from([*"abcde", None]),
        count=st.integers(1, 4),
        size=st.sampled_from([*PRICES]),
        first=st.sampled_from([1, 2, 2, 2, 4]),
        size_changes=st.booleans(),
        switch_step=st.integers(0, 12),
        is_pinned=st.booleans(),
    )
    def add_job(
        self,
        owner: str | None,
        count: int,
        size: str,
        first: int,
        size_changes: bool,
        switch_step: int,
        is_pinned: bool,
    ) -> None:
        self.arrival_count += 1
        job = f"j{self.arrival_count}"
        share = BillingKey("tier", "guild", owner) if owner else BillingKey("tier", f"guild of {job}", job)
        if not owner:
            self.single_jobs.add(job)
        for _ in range(count):
            image = Image(
                job, share, size, first, max(1, first // 2) if size_changes else first, switch_step, is_pinned
            )
            self.images.append(image)
            self.scheduler.add(image)
        self.waiting_jobs.append(job)

    def _jobs(self) -> list[str]:
        return sorted({image.job for image in self.images})

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def remove_job(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._jobs()))
        for image in [image for image in self.images if image.job == job]:
            self.scheduler.remove(image)
            self.images.remove(image)
        self.paused_jobs.discard(job)
        self.waiting_jobs = [each for each in self.waiting_jobs if each != job]

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._jobs()))
        self.scheduler.pause(job)
        self.paused_jobs.add(job)

    @precondition(lambda self: self.paused_jobs)
    @rule(data=st.data())
    def resume_job(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.paused_jobs)))
        self.scheduler.resume(job)
        self.paused_jobs.discard(job)

    @precondition(lambda self: self.images)
    @rule(data=st.data(), weight=st.sampled_from([0.5, 1.0, 2.0]))
    def set_priority(self, data: st.DataObject, weight: float) -> None:
        self.scheduler.set_job_weight(data.draw(st.sampled_from(self._jobs())), weight)

    @rule(steps=st.integers(1, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        active = [image for image in self.images if image.job not in self.paused_jobs]
        batch = self.scheduler.next_batch(LIMIT)
        assert bool(batch) == bool(active)
        if not batch:
            return
        self.check_batch(batch, active)
        self.check_newcomers(batch, active)
        self.check_switch(batch)
        self.check_fairness(batch, active)
        for image in batch:
            image.k += 1  # rows and keys change before the batch is charged, as in the engine
        self.scheduler.charge(batch)
        self.note_vacancy()

    @invariant()
    def note_vacancy(self) -> None:
        active = [image for image in self.images if image.job not in self.paused_jobs]
        self.was_empty = self.was_empty or not any(image.key == self.key for image in active)

    def check_batch(self, batch: list[Image], active: list[Image]) -> None:
        """One key, no paused image, no image twice, and no free row that a waiting image could use."""
        rows = sum(image.rows for image in batch)
        key = batch[0].key
        assert rows <= LIMIT
        assert {image.key for image in batch} == {key}
        assert len(set(map(id, batch))) == len(batch)
        assert all(image in active for image in batch)
        assert all(rows + image.rows > LIMIT for image in active if image.key == key and image not in batch)

    def check_newcomers(self, batch: list[Image], active: list[Image]) -> None:
        """A single job is in the next batch of its group if earlier newcomers leave room."""
        rows = 0
        for job in self.waiting_jobs:
            own_images = [image for image in active if image.job == job and image.key == batch[0].key]
            rows += own_images[0].rows if own_images else 0
            if own_images and job in self.single_jobs and rows <= LIMIT:
                assert any(image.job == job for image in batch), job
        served_jobs = {image.job for image in batch}
        self.waiting_jobs = [job for job in self.waiting_jobs if job not in served_jobs]

    def check_switch(self, batch: list[Image]) -> None:
        """A group changes only after its turn, or when it becomes empty."""
        if batch[0].key != self.key:
            assert self.was_empty or self.turn_steps >= HOLD or self.turn_cost >= QUANTUM
            self.was_empty = False
        if batch[0].key != self.key or self.turn_steps >= HOLD or self.turn_cost >= QUANTUM:
            self.key = batch[0].key
            self.turn_steps = 0
            self.turn_cost = 0.0
        self.turn_steps += 1
        self.turn_cost += sum(image.rows * image.row_ms for image in batch)

    def check_fairness(self, batch: list[Image], active: list[Image]) -> None:
        """Owners of equally wide images lead a waiting owner by at most a batch and an image-step each."""
        key = batch[0].key
        for image in batch:
            self.received_cost[f"{image.billing_key.user} {key}"] += round(image.rows * image.row_ms)
        bound = LIMIT * batch[0].row_ms + 2 * 4 * batch[0].row_ms
        for f in "abcde":
            own_images = [image for image in active if image.billing_key.user == f]
            is_backlogged = all(image.key == key for image in own_images) and any(
                image not in batch for image in own_images
            )
            for m in set("abcde") - {f}:
                other_rows = [image.rows for image in active if image.billing_key.user == m and image.key == key]
                fits = is_backlogged and max(image.rows for image in own_images) <= min(other_rows, default=LIMIT)
                lead_cost = self.received_cost[f"{m} {key}"] - self.received_cost[f"{f} {key}"]
                other_pairs = [pair for pair in self.least_lead if pair[:2] == (f, m) and (not fits or pair[2] != key)]
                for pair in other_pairs:
                    del self.least_lead[pair]
                if fits:
                    least_lead = self.least_lead[f, m, key] = min(
                        self.least_lead.get((f, m, key), lead_cost), lead_cost
                    )
                    assert lead_cost - least_lead <= bound, (f, m)

    @invariant()
    def counts(self) -> None:
        assert len(self.scheduler) == len(self.images)
        assert self.scheduler.active_rows == sum(
            image.rows for image in self.images if image.job not in self.paused_jobs
        )
        assert self.scheduler.is_idle == all(image.job in self.paused_jobs for image in self.images)

    def teardown(self) -> None:
        """No unpaused image starves. A step of four rows at 1024² costs as much as 80 of one row at 64²."""
        before = {id(image): image.k for image in self.images if image.job not in self.paused_jobs}
        for _ in range(400 * len(before)):
            if all(image.k > before.get(id(image), -1) for image in self.images):
                return
            self.step()
        late_images = [image for image in self.images if image.k <= before.get(id(image), -1)]
        assert not late_images, late_images


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
