"""Steps of a visitor on the web page in a browser: open the page, send a prompt, wait for the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.async_api import Locator, Page, expect

if TYPE_CHECKING:
    from tests.bot.web.conftest import Room

LONG = 20_000  # milliseconds


async def visit(page: Page, room: Room) -> None:
    await page.goto(room.url)
    await expect(page.locator("#status")).to_contain_text("paper and ink")


async def say(page: Page, prompt: str) -> Locator:
    """Sends a prompt by keyboard and returns its message."""
    before = await page.locator("article.job").count()
    await page.locator("#prompt").fill(prompt)
    await page.keyboard.press("Enter")
    return await card_of(page, before)


async def card_of(page: Page, before: int) -> Locator:
    """Waits for the message that follows `before` others."""
    card = page.locator("article.job").nth(before)
    await expect(card).to_be_visible()
    return card


async def finished(card: Locator) -> None:
    await expect(card).to_have_attribute("data-state", "finished", timeout=LONG)


async def picture_of(page: Page, room: Room) -> Locator:
    """Opens the page and returns a finished job of one picture."""
    await visit(page, room)
    card = await say(page, "terrier --count 1 --seed 7")
    await finished(card)
    return card
