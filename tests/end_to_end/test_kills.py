"""One bot, whose engine is killed, which is killed itself, and which shuts down cleanly, each time during a job."""

from __future__ import annotations

import time

import pytest

from end_to_end.process import DarkroomProcess, wait_until

pytestmark = pytest.mark.timeout(600)


def test_a_killed_engine_goes_on_from_a_snapshot(warm_bot: DarkroomProcess) -> None:
    job = warm_bot.start_long_job()
    engine = wait_until(warm_bot.find_engine, 5)
    engine.kill()
    old_pid = engine.pid
    view = warm_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert len(view["pictures"]) == 2
    new_engine = wait_until(warm_bot.find_engine, 5)
    assert new_engine.pid != old_pid
    first, *later_starts = warm_bot.list_start_steps(job)
    assert first == 0
    assert later_starts[-1] > 0  # not from the start
    assert warm_bot.list_end_states(job) == ["finished"]  # once


@pytest.mark.slow
def test_a_killed_bot_comes_back_with_its_jobs(warm_bot: DarkroomProcess) -> None:
    """Its broker and its engine don't stay behind to spoil the next start."""
    job = warm_bot.start_long_job()
    child_processes = warm_bot.list_children()
    assert warm_bot.process is not None
    warm_bot.process.kill()
    warm_bot.process.wait()
    warm_bot.start()
    warm_bot.wait_until_warm()
    view = warm_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert warm_bot.list_end_states(job) == ["finished"]
    wait_until(lambda: not any(child.is_running() for child in child_processes) or None, 30)


@pytest.mark.slow
def test_history_survives_a_restart_and_a_running_job_continues(warm_bot: DarkroomProcess) -> None:
    first = warm_bot.imagine(steps=8)
    assert warm_bot.wait_for_end(first)["state"] == "finished"
    before = warm_bot.send_request("GET", f"/api/jobs/{first}/pictures/1.png")[1]
    second = warm_bot.start_long_job()
    family = warm_bot.list_children()
    stopped_at = time.monotonic()
    assert warm_bot.stop() == 0
    assert time.monotonic() - stopped_at < 15
    assert not any(child.is_running() for child in family)
    assert not (warm_bot.data / "running.json").exists()
    warm_bot.start()
    assert warm_bot.get_job(first)["state"] == "finished"
    assert warm_bot.send_request("GET", f"/api/jobs/{first}/pictures/1.png")[1] == before
    assert warm_bot.wait_for_end(second)["state"] == "finished"  # the bot finishes every accepted job
