"""Wait reasons: one table from facts to sentences."""

from __future__ import annotations

import pytest

from bot.policy.fair_queue import WaitFacts, wait_reason

FIRST = "sd-1.5 has to be loaded first"
COLD = {"model": "sd-1.5", "is_loaded": False}


@pytest.mark.parametrize(
    ("facts", "expected_reason"),
    [
        ({}, "Next in line: it starts when there is room."),
        ({"jobs_ahead": 1, "other_members": 1}, "1 ahead of it."),
        ({"jobs_ahead": 2}, "2 ahead of it."),
        ({"jobs_ahead": 5, "other_members": 3}, "5 ahead of it, of 3 other members."),
        ({"any_worker": False, "is_offered": False}, "No worker is online."),
        (
            {"any_worker": False, "is_offered": False, "model": "x", "member_running": 9, "member_limit": 1},
            "No worker is online for x.",
        ),
        ({"is_offered": False, "model": "x"}, "No worker that is online has x: it waits for one."),
        ({"is_offered": False}, "No worker that is online has room for it: it waits for one."),
        ({"guild_limit": 0, "member_running": 3, "member_limit": 3}, "This server starts no jobs at present."),
        ({"member_running": 2, "member_limit": 2}, "2 of this member's run already: one of them must end first."),
        ({"guild_running": 4, "guild_limit": 4}, "4 of this server's run already: one of them must end first."),
        (
            {"channel_running": 1, "channel_limit": 1, "jobs_ahead": 4},
            "1 of this channel's run already: one of them must end first.",
        ),
        (COLD, f"{FIRST}. Next in line: it starts when there is room."),
        (COLD | {"load_seconds": 14.0, "jobs_ahead": 2}, f"{FIRST}, which takes about 14 s. 2 ahead of it."),
        (
            COLD | {"loaded_share": 0.4, "jobs_ahead": 2, "load_seconds": 9.0},
            "sd-1.5 is being loaded, 40 %. 2 ahead of it.",
        ),
        (
            COLD | {"loaded_share": 0.4, "model_bytes": 5 * 10**6, "jobs_ahead": 9},
            "sd-1.5 is being loaded, 2 of 5 MB. 9 ahead of it.",
        ),
        (
            {"any_worker": False, "is_offered": False, "startup_notice": "A worker is starting."},
            "A worker is starting.",
        ),
        ({"is_offered": False, "model": "x", "startup_notice": "A worker is starting."}, "A worker is starting."),
        ({"startup_notice": "A worker is starting."}, "Next in line: it starts when there is room."),
    ],
)
def test_the_reason_for_waiting_follows_from_the_facts(facts: dict[str, object], expected_reason: str) -> None:
    assert wait_reason(WaitFacts(**facts)) == expected_reason  # pyright: ignore[reportArgumentType] - a table of keywords
