"""`kill -9` of the engine during a job."""

from __future__ import annotations

import pytest

from end_to_end.process import DarkroomProcess, wait_until

pytestmark = pytest.mark.timeout(600)


def test_a_killed_engine_goes_on_from_a_snapshot(own_bot: DarkroomProcess) -> None:
    own_bot.start()
    own_bot.wait_until_warm()
    job = own_bot.start_long_job()
    engine = wait_until(own_bot.find_engine, 5)
    engine.kill()
    old_pid = engine.pid
    view = own_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert len(view["pictures"]) == 2
    new_engine = wait_until(own_bot.find_engine, 5)
    assert new_engine.pid != old_pid
    first, *later_starts = own_bot.list_start_steps(job)
    assert first == 0
    assert later_starts[-1] > 0  # not from the start
    assert own_bot.list_end_states(job) == ["finished"]  # once
