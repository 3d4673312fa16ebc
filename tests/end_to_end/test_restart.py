"""A bot that shuts down cleanly during a job, and starts again."""

from __future__ import annotations

import time

import pytest

from end_to_end.process import Up

pytestmark = pytest.mark.timeout(600)


def test_history_survives_a_restart_and_a_running_job_continues(own: Up) -> None:
    own.start()
    own.warm()
    first = own.imagine(steps=8)
    assert own.over(first)["state"] == "finished"
    before = own.call("GET", f"/api/jobs/{first}/pictures/1.png")[1]
    second = own.long_job()
    family = own.children()
    stopped_at = time.monotonic()
    assert own.stop() == 0
    assert time.monotonic() - stopped_at < 15
    assert not any(child.is_running() for child in family)
    assert not (own.data / "running.json").exists()
    own.start()
    assert own.job(first)["state"] == "finished"
    assert own.call("GET", f"/api/jobs/{first}/pictures/1.png")[1] == before
    assert own.over(second)["state"] == "finished"  # accepted is accepted
