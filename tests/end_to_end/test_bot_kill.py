"""`kill -9` of the bot itself: its broker and its engine don't stay behind to spoil the next start."""

from __future__ import annotations

import pytest

from end_to_end.process import Up, until

pytestmark = pytest.mark.timeout(600)


def test_a_killed_bot_comes_back_with_its_jobs(own: Up) -> None:
    own.start()
    own.warm()
    job = own.long_job()
    orphans = own.children()
    assert own.process is not None
    own.process.kill()
    own.process.wait()
    own.start()
    own.warm()
    view = own.over(job)
    assert view["state"] == "finished", view["reason"]
    assert own.ends(job) == ["finished"]
    until(lambda: not any(child.is_running() for child in orphans) or None, 30)
