"""`/describe` in Discord: only the member sees the prompts, and may imagine each, even after a restart."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bot.discord.cards.job_cards import MAX_CONTENT
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.features.describe.discord import PROMPT_LINE, find_prompt, render_suggestions
from bot.features.describe.service import ImageToPrompt, PromptSuggestions, ScoredPrompt
from engine.contract import DescribeReply, DescribeRequest
from shared.discord_staff import read_followups, read_text
from shared.fake_describer import FakeDescriber
from shared.picture_files import make_png


def make_message(content: str) -> Any:
    return SimpleNamespace(content=content)


def test_a_button_reads_its_prompt_from_the_message() -> None:
    longest_prompt = "children's drawing of a glass of wine, black and white photo, in the mountains, close-up " * 2
    words = (
        ScoredPrompt("red fox, blue background", 0.613),
        ScoredPrompt("t-rex", 0.004),
        *(ScoredPrompt(longest_prompt.strip(), 0.001),) * 2,
    )
    message = render_suggestions(
        PromptSuggestions("embedded" * 8, 341, words, ("It is animated: its first picture is taken.",))
    )
    assert len(message) <= MAX_CONTENT
    assert [find_prompt(make_message(message), number) for number in range(1, 5)] == [one.prompt for one in words]
    assert [number for number, _ in PROMPT_LINE.findall(message)] == ["1", "2", "3", "4"]
    with_model = render_suggestions(PromptSuggestions("sdxl", 341, words[:1]), "sdxl")
    assert find_prompt(make_message(with_model), 1) == "red fox, blue background --model sdxl"
    for content in ("", render_suggestions(PromptSuggestions("embedded", 341, words[:1]))):
        with pytest.raises(UserError, match="use /describe again"):
            find_prompt(make_message(content), 2)
    assert "None of 341 candidate texts" in render_suggestions(PromptSuggestions("embedded", 341, ()))


@pytest.mark.asyncio
async def test_describe_suggests_prompts_that_can_be_imagined_after_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        image = ("fox.png", make_png(90, 60))
        without_worker = await world.alice.slash(world.channel, "describe", image=image)
        assert "No worker that is online has embedded in memory" in read_followups(without_worker)
        await world.painter.bus.serve_describe(["embedded"], FakeDescriber("fox", "watercolor"))
        reply = await world.alice.slash(world.channel, "describe", image=image, model="embedded")
        assert reply.ephemeral
        assert read_text(reply).startswith("`1.` fox, watercolor --model embedded · 40 % less error than without words")
        assert "no captioning model is used" in read_text(reply)
        assert world.labels(reply.response)[0] == "Imagine 1"
        await world.restart()
        await world.wait_for_end(await world.alice.click(reply.response, label="Imagine 1"))
        assert (await world.services.job_views.load_recent())[0].prompt == "fox, watercolor --model embedded"


@pytest.mark.asyncio
async def test_cancel_all_cancels_a_description_too(open_world: Any) -> None:
    async with open_world() as world:
        started = asyncio.Event()
        gate = asyncio.Event()

        async def wait(_request: DescribeRequest) -> DescribeReply:
            started.set()
            await gate.wait()
            return DescribeReply(error="too late")

        await world.painter.bus.serve_describe(["embedded"], wait)
        alice = Member(f"discord:{world.alice.id}", "alice", f"discord:{world.guild.id}")
        search = world.services.get(ImageToPrompt).suggest_prompts(make_png(90, 60), alice)
        describing = asyncio.create_task(search)
        await started.wait()
        reply = await world.alice.slash(world.channel, "cancel", job="all")
        assert read_text(reply) == "The description of your picture is cancelled: only what ran is charged."
        with pytest.raises(UserError, match="Cancelled: only what ran was charged"):
            await describing
        gate.set()
        assert "Nothing of yours" in read_text(await world.alice.slash(world.channel, "cancel", job="all"))


@pytest.mark.asyncio
async def test_describe_refuses_bad_images_and_unknown_models(open_world: Any) -> None:
    async with open_world() as world:
        refusal = await world.alice.slash(world.channel, "describe", image=("fox.png", b"no picture"))
        assert "has a format that is not supported here" in read_followups(refusal)
        unknown_model_reply = await world.alice.slash(
            world.channel, "describe", image=("fox.png", make_png(9, 9)), model="sdxl"
        )
        assert "There is no model called sdxl here" in read_followups(unknown_model_reply)
        await world.painter.bus.serve_describe(["embedded"], FakeDescriber())
        no_worker_reply = await world.alice.slash(world.channel, "describe", image=("fox.png", make_png(9, 9)))
        assert read_text(no_worker_reply).startswith("-# None of ")
        assert not world.labels(no_worker_reply.response)
