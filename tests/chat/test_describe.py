"""`/describe` in Discord: the words are the member's alone to see, and each can be imagined, also after a restart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bot.chat.commands.describe import LINE, prompt, told
from bot.chat.presenter import CONTENT
from bot.desk.describing import Described, Worded
from bot.refused import Refused
from chat.pictures import png
from chat.staff import said, text
from describer import Describer


def a_message(content: str) -> Any:
    return SimpleNamespace(content=content)


def test_a_press_reads_its_prompt_from_the_message() -> None:
    longest = "children's drawing of a glass of wine, black and white photo, in the mountains, close-up " * 2
    words = (Worded("red fox, blue background", 0.613), Worded("t-rex", 0.004), *(Worded(longest.strip(), 0.001),) * 2)
    shown = told(Described("embedded" * 8, 341, words, ("It is animated: its first picture is taken.",)))
    assert len(shown) <= CONTENT
    assert [prompt(a_message(shown), number) for number in range(1, 5)] == [one.prompt for one in words]
    assert [number for number, _ in LINE.findall(shown)] == ["1", "2", "3", "4"]
    named = told(Described("sdxl", 341, words[:1]), "sdxl")
    assert prompt(a_message(named), 1) == "red fox, blue background --model sdxl"
    for content in ("", told(Described("embedded", 341, words[:1]))):
        with pytest.raises(Refused, match="use /describe again"):
            prompt(a_message(content), 2)
    assert "none of the 341 words" in told(Described("embedded", 341, ())).replace("Under none", "none")


@pytest.mark.asyncio
async def test_words_are_found_and_imagined_after_a_restart(open_world: Any) -> None:
    async with open_world() as world:
        image = ("fox.png", png(90, 60))
        alone = await world.alice.slash(world.channel, "describe", image=image)
        assert "No worker that is online has embedded in memory" in said(alone)
        await world.painter.bus.serve_describe(["embedded"], Describer("fox", "watercolor"))
        shown = await world.alice.slash(world.channel, "describe", image=image, model="embedded")
        assert shown.ephemeral
        assert text(shown).startswith("`1.` fox, watercolor --model embedded · 40 % less error than without words")
        assert "does not see as a person does" in text(shown)
        assert world.labels(shown.response)[0] == "Imagine 1"
        await world.restart()
        await world.ended(await world.alice.click(shown.response, label="Imagine 1"))
        assert (await world.studio.recent())[0].prompt == "fox, watercolor --model embedded"


@pytest.mark.asyncio
async def test_what_cannot_be_described_is_refused(open_world: Any) -> None:
    async with open_world() as world:
        refused = await world.alice.slash(world.channel, "describe", image=("fox.png", b"no picture"))
        assert "has a format that is not supported here" in said(refused)
        unknown = await world.alice.slash(world.channel, "describe", image=("fox.png", png(9, 9)), model="sdxl")
        assert "There is no model called sdxl here" in said(unknown)
        await world.painter.bus.serve_describe(["embedded"], Describer())
        none = await world.alice.slash(world.channel, "describe", image=("fox.png", png(9, 9)))
        assert text(none).startswith("-# Under none of the ")
        assert not world.labels(none.response)
