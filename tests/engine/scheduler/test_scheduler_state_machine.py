"""A state machine: any events between two steps, and the scheduler's promises checked at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.contract import BillingKey
from engine.scheduler import Scheduler

LIMIT, HOLD, QUANTUM = 8, 4, 120.0
PRICES = {"64": 1.0, "256": 5.0, "1024": 20.0}


@dataclass(eq=False)
class Image:
    """From step `turns` on it has `later` rows; if it is `pinned`, its key changes with them."""

    job: str
    share: BillingKey
    size: str
    first: int
    later: int
    turns: int
    pinned: bool
    k: int = 0

    @property
    def rows(self) -> int:
        return self.first if self.k < self.turns else self.later

    @property
    def key(self) -> Hashable:
        return self.size, self.rows if self.pinned else None

    @property
    def row_ms(self) -> float:
        return PRICES[self.size]

    @property
    def forward_times(self) -> Mapping[int, float]:
        return {}


class SchedulerMachine(RuleBasedStateMachine):
    """Owners `a` … `e` share a guild; every other owner comes once, from a guild of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[Image] = Scheduler(turn_steps=HOLD, quantum=QUANTUM)
        self.images: list[Image] = []
        self.paused: set[str] = set()
        self.waiting: list[str] = []  # jobs without a served row yet, in order of arrival
        self.strangers: set[str] = set()  # jobs of owners that come once
        self.arrived = 0
        self.key: Hashable = None
        self.turn_steps, self.turn_cost = 0, 0.0
        self.vacated = False  # the group was empty at some time since its turn began
        self.received: Counter[str] = Counter()
        self.least: dict[tuple[str, str, Hashable], float] = {}  # m's smallest lead over f while f waits

    @rule(
        owner=st.sampled_from([*"abcde", None]), count=st.integers(1, 4), size=st.sampled_from([*PRICES]),
        first=st.sampled_from([1, 2, 2, 2, 4]), narrows=st.booleans(), turns=st.integers(0, 12), pinned=st.booleans(),
    )  # fmt: skip
    def arrive(
        self, owner: str | None, count: int, size: str, first: int, narrows: bool, turns: int, pinned: bool
    ) -> None:
        self.arrived += 1
        job = f"j{self.arrived}"
        share = BillingKey("tier", "guild", owner) if owner else BillingKey("tier", f"guild of {job}", job)
        if not owner:
            self.strangers.add(job)
        for _ in range(count):
            image = Image(job, share, size, first, max(1, first // 2) if narrows else first, turns, pinned)
            self.images.append(image)
            self.scheduler.add(image)
        self.waiting.append(job)

    def _jobs(self) -> list[str]:
        return sorted({image.job for image in self.images})

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._jobs()))
        for image in [image for image in self.images if image.job == job]:
            self.scheduler.remove(image)
            self.images.remove(image)
        self.paused.discard(job)
        self.waiting = [each for each in self.waiting if each != job]

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._jobs()))
        self.scheduler.pause(job)
        self.paused.add(job)

    @precondition(lambda self: self.paused)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.paused)))
        self.scheduler.resume(job)
        self.paused.discard(job)

    @precondition(lambda self: self.images)
    @rule(data=st.data(), weight=st.sampled_from([0.5, 1.0, 2.0]))
    def prioritise(self, data: st.DataObject, weight: float) -> None:
        self.scheduler.set_job_weight(data.draw(st.sampled_from(self._jobs())), weight)

    @rule(steps=st.integers(1, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        active = [image for image in self.images if image.job not in self.paused]
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
        active = [image for image in self.images if image.job not in self.paused]
        self.vacated = self.vacated or not any(image.key == self.key for image in active)

    def check_batch(self, batch: list[Image], active: list[Image]) -> None:
        """One key, no paused image, no image twice, and no free row that a waiting image could use."""
        rows, key = sum(image.rows for image in batch), batch[0].key
        assert rows <= LIMIT
        assert {image.key for image in batch} == {key}
        assert len(set(map(id, batch))) == len(batch)
        assert all(image in active for image in batch)
        assert all(rows + image.rows > LIMIT for image in active if image.key == key and image not in batch)

    def check_newcomers(self, batch: list[Image], active: list[Image]) -> None:
        """A stranger's job is in the next batch of its group if earlier newcomers leave room."""
        rows = 0
        for job in self.waiting:
            mine = [image for image in active if image.job == job and image.key == batch[0].key]
            rows += mine[0].rows if mine else 0
            if mine and job in self.strangers and rows <= LIMIT:
                assert any(image.job == job for image in batch), job
        served = {image.job for image in batch}
        self.waiting = [job for job in self.waiting if job not in served]

    def check_switch(self, batch: list[Image]) -> None:
        """A group changes only after its turn, or when it becomes empty."""
        if batch[0].key != self.key:
            assert self.vacated or self.turn_steps >= HOLD or self.turn_cost >= QUANTUM
            self.vacated = False
        if batch[0].key != self.key or self.turn_steps >= HOLD or self.turn_cost >= QUANTUM:
            self.key, self.turn_steps, self.turn_cost = batch[0].key, 0, 0.0
        self.turn_steps += 1
        self.turn_cost += sum(image.rows * image.row_ms for image in batch)

    def check_fairness(self, batch: list[Image], active: list[Image]) -> None:
        """Owners of equally wide images lead a waiting owner by at most a batch and an image-step each."""
        key = batch[0].key
        for image in batch:
            self.received[f"{image.share.user} {key}"] += round(image.rows * image.row_ms)
        bound = LIMIT * batch[0].row_ms + 2 * 4 * batch[0].row_ms
        for f in "abcde":
            own = [image for image in active if image.share.user == f]
            backlogged = all(image.key == key for image in own) and any(image not in batch for image in own)
            for m in set("abcde") - {f}:
                theirs = [image.rows for image in active if image.share.user == m and image.key == key]
                fits = backlogged and max(image.rows for image in own) <= min(theirs, default=LIMIT)
                lead = self.received[f"{m} {key}"] - self.received[f"{f} {key}"]
                others = [pair for pair in self.least if pair[:2] == (f, m) and (not fits or pair[2] != key)]
                for pair in others:
                    del self.least[pair]
                if fits:
                    least = self.least[f, m, key] = min(self.least.get((f, m, key), lead), lead)
                    assert lead - least <= bound, (f, m)

    @invariant()
    def counts(self) -> None:
        assert len(self.scheduler) == len(self.images)
        assert self.scheduler.active_rows == sum(image.rows for image in self.images if image.job not in self.paused)
        assert self.scheduler.is_idle == all(image.job in self.paused for image in self.images)

    def teardown(self) -> None:
        """No unpaused image starves. A step of four rows at 1024² costs as much as 80 of one row at 64²."""
        before = {id(image): image.k for image in self.images if image.job not in self.paused}
        for _ in range(400 * len(before)):
            if all(image.k > before.get(id(image), -1) for image in self.images):
                return
            self.step()
        late = [image for image in self.images if image.k <= before.get(id(image), -1)]
        assert not late, late


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
