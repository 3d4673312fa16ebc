"""One thread computes at a time: steps take turns with other work, and finished pictures go first in that work."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.device.core_turns import IDLE_SECONDS, OTHER_WORK_SHARE, SPARE_SECONDS, SPARE_SHARE, CoreTurns, WorkKind

TIMEOUT = 10.0
WORK_KINDS = [WorkKind.STEP, WorkKind.PICTURE, WorkKind.OTHER]


class Work:
    """Tasks of given lengths, each in its own thread. All wait before the first may start."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = list[str]()
        self.cores = CoreTurns(clock=lambda: self.now)
        self._threads: list[threading.Thread] = []
        self._gate = self.cores.hold(WorkKind.STEP)
        self._gate.__enter__()

    def put(self, kind: WorkKind, name: str, seconds: float) -> None:
        thread = threading.Thread(target=self._hold_core, args=(kind, name, seconds))
        waiting_count = self.cores.waiting_count
        thread.start()
        deadline = time.monotonic() + TIMEOUT
        while self.cores.waiting_count == waiting_count and time.monotonic() < deadline:
            time.sleep(0.0002)
        self._threads.append(thread)

    def _hold_core(self, kind: WorkKind, name: str, seconds: float) -> None:
        with self.cores.hold(kind):
            self.order.append(name)
            self.now += seconds

    def run(self, step: float) -> list[str]:
        """Runs all tasks after a first step of `step` seconds; returns their names in order."""
        self.now += step
        self._gate.__exit__(None, None, None)
        for thread in self._threads:
            thread.join(TIMEOUT)
        return self.order


def test_one_long_decode_comes_between_two_steps_and_never_two() -> None:
    work = Work()
    for number in (1, 2):
        work.put(WorkKind.STEP, f"step {number}", 5.0)
        work.put(WorkKind.PICTURE, f"picture {number}", 3.0)
    assert work.run(5.0) == ["picture 1", "step 1", "picture 2", "step 2"]


def test_short_tasks_share_the_time_between_two_steps() -> None:
    work = Work()
    work.put(WorkKind.STEP, "step", 0.08)
    for number in range(5):
        work.put(WorkKind.PICTURE, f"{number}", 0.015)
    assert work.run(0.08) == ["0", "1", "2", "step", "3", "4"]


def test_finished_pictures_go_before_previews() -> None:
    work = Work()
    work.put(WorkKind.OTHER, "preview", 1.0)
    work.put(WorkKind.PICTURE, "picture", 1.0)
    assert work.run(5.0) == ["picture", "preview"]


@given(
    st.lists(st.tuples(st.sampled_from(WORK_KINDS), st.floats(0.01, 9.0)), min_size=1, max_size=8), st.floats(0.01, 9.0)
)
@settings(deadline=None, max_examples=25)
def test_a_step_waits_for_the_share_of_other_work_plus_one_task(
    pieces: list[tuple[WorkKind, float]], step: float
) -> None:
    work = Work()
    durations = {str(number): seconds for number, (_, seconds) in enumerate(pieces)}
    for number, (kind, seconds) in enumerate(pieces):
        work.put(kind, str(number), seconds)
    order = work.run(step)
    assert sorted(order) == sorted(durations)
    decode_gaps: list[float] = []
    for position, name in enumerate(order):
        kind, seconds = pieces[int(name)]
        if kind is WorkKind.STEP:
            step = seconds
            decode_gaps = []
        elif any(pieces[int(later_name)][0] is WorkKind.STEP for later_name in order[position:]):
            assert sum(decode_gaps) < OTHER_WORK_SHARE * step or not decode_gaps
            decode_gaps.append(seconds)


def test_only_one_thread_computes_at_a_time() -> None:
    cores = CoreTurns()
    running_count = 0
    max_running = 0
    lock = threading.Lock()

    def hold_core(kind: WorkKind) -> None:
        nonlocal running_count, max_running
        with cores.hold(kind):
            with lock:
                running_count += 1
                max_running = max(max_running, running_count)
            time.sleep(0.0005)
            with lock:
                running_count -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(hold_core, WORK_KINDS * 10))
    assert max_running == 1


def test_a_failing_thread_releases_the_cores() -> None:
    cores = CoreTurns()
    with pytest.raises(ValueError, match="no"), cores.hold(WorkKind.STEP):
        raise ValueError("no")
    with cores.hold(WorkKind.OTHER):
        pass


def test_spare_work_runs_neither_before_a_step_nor_right_after_one() -> None:
    now = 0.0
    cores = CoreTurns(clock=lambda: now)
    with cores.hold_for_spare(TIMEOUT) as is_free:
        assert is_free, "nothing has ever run here"
    with cores.hold(WorkKind.STEP), cores.hold_for_spare(0.001) as is_free:
        assert not is_free
    assert cores.waiting_count == 0
    with cores.hold_for_spare(0.001) as is_free:
        assert not is_free, "the next step of the same job is about to come"
    now += IDLE_SECONDS
    with cores.hold_for_spare(TIMEOUT) as is_free:
        assert is_free


def test_spare_work_gets_a_small_share_of_endless_steps() -> None:
    now = 0.0
    spare_seconds = 0.0
    cores = CoreTurns(clock=lambda: now)
    for _ in range(2000):
        with cores.hold(WorkKind.STEP):
            now += 1.0
        with cores.hold_for_spare(0.0) as is_free:
            if is_free:
                now = now + 0.3
                spare_seconds = spare_seconds + 0.3
    assert spare_seconds == pytest.approx(2000 * SPARE_SHARE - SPARE_SECONDS, abs=0.4)


def test_nothing_waits_on_a_gpu() -> None:
    cores = CoreTurns(is_shared=False)
    with cores.hold(WorkKind.STEP), cores.hold(WorkKind.PICTURE):
        pass


def test_an_interrupted_thread_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example Ctrl-C in `darkroom imagine` while the decode worker runs: the program waits for that worker."""
    cores = CoreTurns(clock=iter([0.0, 0.0, 0.0, 0.0, 9.0]).__next__)
    with cores.hold(WorkKind.STEP):
        pass
    with cores.hold(WorkKind.OTHER):  # more than its share: the next turn is a step's
        monkeypatch.setattr(cores._condition, "wait_for", raise_interrupt)
        with pytest.raises(KeyboardInterrupt), cores.hold(WorkKind.STEP):
            pass
        monkeypatch.undo()
    assert cores.waiting_count == 0


def raise_interrupt(condition: object, timeout: float | None) -> None:
    raise KeyboardInterrupt
