"""`/shorten` in Discord: words by weight, and a shorter prompt that is imagined after a restart."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from engine.bus import Bus, NoWorkerAnswers
from shared.discord_staff import read_followups, read_text

WEIGHTS = {"apple": 9.0, "red": 4.0, "table": 3.0}


async def embed(texts: Sequence[str]) -> list[list[float]]:
    """Embeds texts as bags of words: each of three words is an axis, and all others hardly move the vector."""
    frame_levels: list[list[float]] = []
    for one in texts:
        words = one.split()
        row = [*(weight * (word in words) for word, weight in WEIGHTS.items()), 0.01 * len(words) + 1e-9]
        length = math.hypot(*row)
        frame_levels.append([value / length for value in row])
    return frame_levels


async def serve_text_encoder(world: Any) -> Bus:
    """Start a worker that embeds text, and wait until it answers."""
    bus: Bus = world.painter.bus
    task = asyncio.create_task(bus.serve_embed(embed))
    world.tasks.append(task)
    while True:
        with suppress(NoWorkerAnswers):
            await bus.embed(["a word"])
            return bus
        await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_shorten_weighs_words_and_a_shorter_prompt_is_imagined_after_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        prompt = "a very red `apple` upon (the:1.2) table, in soft light --ar 2:1 --count 1"
        without_worker = await world.alice.slash(world.channel, "shorten", prompt=prompt)
        assert "No worker that understands text is online" in read_followups(without_worker)
        await serve_text_encoder(world)
        reply = await world.alice.slash(world.channel, "shorten", prompt=prompt.replace("`", ""))
        assert reply.ephemeral
        assert "**apple**" in read_text(reply).split(" · ")[0], "the heaviest comes first"
        assert "No picture was made for this" in read_text(reply)
        assert world.labels(reply.response) == [f"Imagine {number}" for number in range(1, 6)]
        await world.restart()
        await world.wait_for_end(await world.alice.click(reply.response, label="Imagine 5"))
        view = (await world.services.job_views.load_recent())[0]
        assert view.prompt.startswith("red apple")
        assert view.task.width == 2 * view.task.height, "flags stay"
        assert view.task.count == 1


@pytest.mark.asyncio
async def test_shorten_refuses_unsuitable_prompts(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        for prompt, reason in (
            ("apple --ar 3:2", "fewer than two words"),
            ("{red, green} apple", "leave out the braces"),
            ("a " * 130, "At most 126 words"),
            ("an apple --stepps 4", "no flag"),
        ):
            refusal = await world.alice.slash(world.channel, "shorten", prompt=prompt)
            assert reason in read_text(refusal), prompt
