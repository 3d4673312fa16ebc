"""Steps of a visitor on the web page in a browser: open the page, send a prompt, wait for the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.async_api import Locator, Page, expect

if TYPE_CHECKING:
    from shared.web_server import WebServer

LONG_MS = 20_000  # milliseconds


async def open_page(page: Page, server: WebServer) -> None:
    await page.goto(server.url)
    await expect(page.locator("#status")).to_contain_text("paper and ink")


async def send_prompt(page: Page, prompt: str) -> Locator:
    """Sends a prompt by keyboard and returns its message."""
    count_before = await page.locator("article.job").count()
    await page.locator("#prompt").fill(prompt)
    await page.keyboard.press("Enter")
    return await wait_for_card(page, count_before)


async def wait_for_card(page: Page, count_before: int) -> Locator:
    """Waits for the message that follows `count_before` others."""
    card = page.locator("article.job").nth(count_before)
    await expect(card).to_be_visible()
    return card


async def wait_until_finished(card: Locator) -> None:
    await expect(card).to_have_attribute("data-state", "finished", timeout=LONG_MS)


async def draw_picture(page: Page, server: WebServer) -> Locator:
    """Opens the page and returns a finished job of one picture."""
    await open_page(page, server)
    card = await send_prompt(page, "terrier --count 1 --seed 7")
    await wait_until_finished(card)
    return card
