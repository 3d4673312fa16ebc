"""Why a job waits: one table from facts to sentences."""

from __future__ import annotations

import pytest

from bot.policy.wait_reason import WaitFacts, wait_reason

FIRST = "sd-1.5 has to be loaded first"
COLD = {"model": "sd-1.5", "loaded": False}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "Next in line: it starts when there is room."),
        ({"ahead": 1, "others": 1}, "1 ahead of it."),
        ({"ahead": 2}, "2 ahead of it."),
        ({"ahead": 5, "others": 3}, "5 ahead of it, of 3 other members."),
        ({"anyone": False, "offered": False}, "No worker is online."),
        ({"anyone": False, "offered": False, "model": "x", "mine": 9, "mine_most": 1}, "No worker is online for x."),
        ({"offered": False, "model": "x"}, "No worker that is online has x: it waits for one."),
        ({"offered": False}, "No worker that is online has room for it: it waits for one."),
        ({"guild_most": 0, "mine": 3, "mine_most": 3}, "This server starts no jobs at present."),
        ({"mine": 2, "mine_most": 2}, "2 of this member's run already: one of them must end first."),
        ({"guild": 4, "guild_most": 4}, "4 of this server's run already: one of them must end first."),
        ({"channel": 1, "channel_most": 1, "ahead": 4}, "1 of this channel's run already: one of them must end first."),
        (COLD, f"{FIRST}. Next in line: it starts when there is room."),
        (COLD | {"fetching": 14.0, "ahead": 2}, f"{FIRST}, which takes about 14 s. 2 ahead of it."),
        (COLD | {"fetched": 0.4, "ahead": 2, "fetching": 9.0}, "sd-1.5 is being loaded, 40 %. 2 ahead of it."),
        (COLD | {"fetched": 0.4, "size": 5 * 10**6, "ahead": 9}, "sd-1.5 is being loaded, 2 of 5 MB. 9 ahead of it."),
        ({"anyone": False, "offered": False, "starting": "A worker is starting."}, "A worker is starting."),
        ({"offered": False, "model": "x", "starting": "A worker is starting."}, "A worker is starting."),
        ({"starting": "A worker is starting."}, "Next in line: it starts when there is room."),
    ],
)  # fmt: skip
def test_the_reason_for_waiting_follows_from_the_facts(facts: dict[str, object], said: str) -> None:
    assert wait_reason(WaitFacts(**facts)) == said  # pyright: ignore[reportArgumentType] - a table of keywords
