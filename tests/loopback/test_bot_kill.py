"""The real bot's process is killed in the middle of a job and restarts; the picture is shown once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.loopback.bench import kill_rows
from tools.loopback.bench_kills import QUICK_POINTS, run_kills


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(600)
async def test_a_killed_bot_loses_nothing_and_posts_nothing_twice(tmp_path: Path) -> None:
    outcomes = await run_kills(tmp_path, QUICK_POINTS, print)
    assert [str(one.point) for one in outcomes if one.is_lost] == []
    assert [str(one.point) for one in outcomes if one.is_duplicated] == []
    rows = kill_rows(outcomes, len(QUICK_POINTS))  # `darkroom bench discord` says the same
    assert [row.meets_goal for row in rows] == [True, True]
