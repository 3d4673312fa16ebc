"""`kill -9` of the engine during a job."""

from __future__ import annotations

import pytest

from end_to_end.process import Up, until

pytestmark = pytest.mark.timeout(600)


def test_a_killed_engine_goes_on_from_a_snapshot(own: Up) -> None:
    own.start()
    own.warm()
    job = own.long_job()
    engine = until(own.engine, 5)
    engine.kill()
    old_pid = engine.pid
    view = own.over(job)
    assert view["state"] == "finished", view["reason"]
    assert len(view["pictures"]) == 2
    back = until(own.engine, 5)
    assert back.pid != old_pid
    first, *later = own.begun(job)
    assert first == 0
    assert later[-1] > 0  # not from the start
    assert own.ends(job) == ["finished"]  # once
