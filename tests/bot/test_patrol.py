"""What left the board in SQL alone: the database kept a change, and its answer was never believed."""

from __future__ import annotations

import time

import pytest

from bot.feed import Settled


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["finish", "requeue"])
async def test_what_sql_ended_or_took_back_without_our_hearing_leaves_the_board(workplace, until, ann, here, how):
    house = await workplace.house()
    apprentice, running = await workplace.worker()
    apprentice.go.clear()
    await until(lambda: house.studio.workers())
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    job = ticket.job
    await until(lambda: job in house.board.runs and house.board.runs[job].claimed)
    async with house.feed.subscribe(job) as moments:
        if how == "finish":
            await house.store.end("finish", job, time.time(), 1.0)  # as in a commit whose answer was lost
        else:
            await house.store.requeue(job, time.time(), step=0, why="lost")
        await apprentice.vanish(running)
        if how == "finish":
            async for moment in moments:
                if isinstance(moment, Settled):
                    assert moment.state == "finished"
                    break
            await until(lambda: job not in house.board.runs)
        else:
            await workplace.worker("another")
            await until(lambda: job in house.board.runs and house.board.runs[job].record.worker == "another", 20)
