"""A bot that shuts down cleanly during a job, and starts again."""

from __future__ import annotations

import time

import pytest

from end_to_end.process import DarkroomProcess

pytestmark = pytest.mark.timeout(600)


def test_history_survives_a_restart_and_a_running_job_continues(own_bot: DarkroomProcess) -> None:
    own_bot.start()
    own_bot.wait_until_warm()
    first = own_bot.imagine(steps=8)
    assert own_bot.wait_for_end(first)["state"] == "finished"
    before = own_bot.send_request("GET", f"/api/jobs/{first}/pictures/1.png")[1]
    second = own_bot.start_long_job()
    family = own_bot.list_children()
    stopped_at = time.monotonic()
    assert own_bot.stop() == 0
    assert time.monotonic() - stopped_at < 15
    assert not any(child.is_running() for child in family)
    assert not (own_bot.data / "running.json").exists()
    own_bot.start()
    assert own_bot.get_job(first)["state"] == "finished"
    assert own_bot.send_request("GET", f"/api/jobs/{first}/pictures/1.png")[1] == before
    assert own_bot.wait_for_end(second)["state"] == "finished"  # the bot finishes every accepted job
