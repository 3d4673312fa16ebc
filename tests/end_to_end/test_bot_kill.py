"""`kill -9` of the bot itself: its broker and its engine don't stay behind to spoil the next start."""

from __future__ import annotations

import pytest

from end_to_end.process import DarkroomProcess, wait_until

pytestmark = pytest.mark.timeout(600)


def test_a_killed_bot_comes_back_with_its_jobs(own_bot: DarkroomProcess) -> None:
    own_bot.start()
    own_bot.wait_until_warm()
    job = own_bot.start_long_job()
    child_processes = own_bot.list_children()
    assert own_bot.process is not None
    own_bot.process.kill()
    own_bot.process.wait()
    own_bot.start()
    own_bot.wait_until_warm()
    view = own_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert own_bot.list_end_states(job) == ["finished"]
    wait_until(lambda: not any(child.is_running() for child in child_processes) or None, 30)
