"""The mixing desk beside a developing picture: what is moved there is asked for, made by the worker, and undone."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from shared.web_server import open_clean_page, pause_jobs
from shared.web_visitor import open_page, send_prompt, wait_for_card, wait_until_finished

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
MADE = re.compile(r"step \d+")
DRAG_PAUSE = 0.35  # seconds between two changes of a drag: `DRAG_PAUSE_MS` of steering.js
CHANGE_GUIDANCE = """job => fetch(`/api/jobs/${job}/amend`, {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({guidance: 3.5}),
})"""
RECORD_VALUES = """slider => {
    window.values = []
    const observer = new MutationObserver(() => values.push(slider.getAttribute("aria-valuetext")))
    observer.observe(slider, {attributeFilter: ["aria-valuetext"]})
}"""
OPEN_AND_CLOSE = """async address => {
    const { Card } = await import("/static/card.js")
    const { desk } = new Card(await (await fetch(address)).json(), () => true)
    document.body.append(desk.card.element)
    desk.open()
    desk.close()
    desk.card.element.remove()
}"""
PROMPT = "a fox::0.5 a terrier::0.5 --count 3"


@asynccontextmanager
async def developing_card(page: Page, server: WebServer, prompt: str = PROMPT) -> AsyncGenerator[Locator]:
    """A job that rests at its twelfth step, of 24; at the end it goes on."""
    with pause_jobs(server.workers[0], step=12):
        await open_page(page, server)
        card = await send_prompt(page, prompt)
        await expect(card.locator(".tile-tools")).to_have_count(3)
        yield card
    await wait_until_finished(card)


async def list_changes(server: WebServer, card: Locator) -> list[dict[str, Any]]:
    job = str(await card.get_attribute("id")).removeprefix("job-")
    _, answer = await server.request_json("GET", f"/api/jobs/{job}/amendments")
    return answer["amendments"]


async def drag(page: Page, slider: Locator, *shares: float) -> None:
    """Drags a slider along these shares of its width."""
    await slider.scroll_into_view_if_needed()
    box = await slider.bounding_box()
    assert box is not None
    points = [(box["x"] + share * box["width"], box["y"] + box["height"] / 2) for share in shares]
    await page.mouse.move(*points[0])
    await page.mouse.down()
    for point in points[1:]:
        await page.mouse.move(*point)
    await page.mouse.up()


async def test_a_drag_and_a_held_key_take_few_changes(page: Page, server: WebServer, wait_until: Any) -> None:
    async with developing_card(page, server) as card:
        fox, terrier = (card.get_by_label(f"Weight of {words}") for words in ("a fox", "a terrier"))
        start = time.monotonic()
        await drag(page, fox, *(0.75 - 0.005 * index for index in range(40)))
        seconds = time.monotonic() - start
        last_words = f"a fox {float(await fox.input_value()):.2g}"

        async def has_last_value() -> bool:  # an earlier value of the drag may be made, and shown so, before it
            return any(each["text"].startswith(last_words) for each in (await list_changes(server, card))[-1:])

        await wait_until(has_last_value)
        await expect(card.locator(".concepts .knob-status").first).to_have_text(MADE)
        changes = await list_changes(server, card)
        assert 1 <= len(changes) <= 2 + seconds / DRAG_PAUSE, "one for each pause, and the last value"
        assert float(await fox.input_value()) + float(await terrier.input_value()) == pytest.approx(1.0, abs=0.01)
        assert changes[-1]["text"].startswith(f"a fox {float(await fox.input_value()):.2g}")
        await expect(card.locator(".desk .left")).to_have_text(f"{64 - len(changes)} changes left")
        guidance = card.get_by_role("slider", name="Guidance")
        await guidance.focus()
        for _ in range(6):
            await page.keyboard.press("ArrowRight")
        await expect(card.locator(".guidance-knob .knob-status")).to_have_text(MADE)
        await expect(card.locator(".desk-news")).to_have_text(re.compile("guidance 6: from step"))
        assert [change["text"] for change in (await list_changes(server, card))[len(changes) :]] == ["guidance 6"]
        chosen = str(await fox.get_attribute("aria-valuetext"))
        await page.reload()
        await expect(fox).to_have_attribute("aria-valuetext", chosen)
        await expect(guidance).to_have_attribute("aria-valuetext", "6.0")


async def test_an_answer_that_arrives_late_moves_no_slider_back(page: Page, server: WebServer) -> None:
    async with developing_card(page, server) as card:
        is_read = asyncio.Event()
        may_arrive = asyncio.Event()

        async def delay(route: Route) -> None:
            answer = await route.fetch()
            is_read.set()
            await may_arrive.wait()
            await route.fulfill(response=answer)

        await page.route("**/amendments", delay)
        await page.evaluate(CHANGE_GUIDANCE, str(await card.get_attribute("id")).removeprefix("job-"))
        await asyncio.wait_for(is_read.wait(), 30)  # the desk loads what it did not change itself
        fox = card.get_by_label("Weight of a fox")
        await fox.evaluate(RECORD_VALUES)
        await fox.press("ArrowRight")
        await expect(card.locator(".concepts .knob-status").first).to_have_text(MADE)
        async with page.expect_request_finished(lambda request: request.url.endswith("/amendments")):
            may_arrive.set()
        await expect(card.locator(".guidance-knob .knob-value")).to_have_text("3.5")
        await page.wait_for_timeout(1000)  # a second answer may come, to the event of the slider's change
        assert set(await page.evaluate("values")) == {"0.55"}


async def test_a_desk_that_closes_as_it_opens_complains_of_nothing(page: Page, server: WebServer) -> None:
    """The browser reports the opening a task later; the page fails the test for what it throws then."""
    async with developing_card(page, server) as card:
        job = str(await card.get_attribute("id")).removeprefix("job-")
        await page.evaluate(OPEN_AND_CLOSE, f"/api/jobs/{job}")
        await page.wait_for_timeout(200)


async def test_words_images_and_a_refusal_are_seen_by_all_and_made_by_the_author(
    page: Page, browser: Browser, server: WebServer
) -> None:
    async with developing_card(page, server) as card, open_clean_page(browser) as other:
        await open_page(other, server)
        say = card.get_by_label("Say more")
        await say.fill("::2")
        await page.keyboard.press("Enter")
        await expect(card.locator(".say-form .knob-reason")).to_contain_text("There are no words before")
        await say.fill("snow")
        await card.get_by_label("with a slider of its own").check()
        await card.get_by_role("button", name="Say", exact=True).click()
        await expect(card.get_by_label("Weight of snow")).to_have_attribute("aria-valuetext", "0.33")
        await expect(say).to_have_value("")
        await expect(card.locator(".say-form .knob-reason")).to_be_hidden()
        await card.get_by_label("Leave out").fill("fog")
        await page.keyboard.press("Enter")
        await card.get_by_role("button", name="Keep picture 2 alone").click()
        await expect(card.locator(".tile")).to_have_count(1)
        await card.get_by_role("button", name="Split picture 2").click()
        await card.get_by_role("button", name="Split picture 2 into 3").click()
        await expect(card.locator(".tile")).to_have_count(3)
        await expect(card.locator(".said li")).to_have_count(4)
        await expect(card.locator(".said li").first).to_contain_text("You: splits image 2 into 3")
        texts = [change["text"] for change in await list_changes(server, card)]
        assert texts[1:] == ["without fog", "keeps image 2", "splits image 2 into 3"]
        await expect(other.locator(".said li")).to_have_count(4)
        await expect(other.locator(".desk, .tile-tools")).to_have_count(0)
    await expect(card.locator(".desk, .tile-tools")).to_have_count(0)
    await card.get_by_role("button", name="As it was before step").first.click()
    count_before = await page.locator("article.job").count()
    await card.locator(".said .row button").first.click()
    branch = await wait_for_card(page, count_before)
    await expect(branch.locator(".action")).to_contain_text("branched from picture")
    await wait_until_finished(branch)


async def test_the_desk_fits_a_phone_and_speaks_german(browser: Browser, server: WebServer) -> None:
    context = await browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, locale="de-AT"
    )
    page = await context.new_page()
    async with developing_card(page, server) as card:
        summary = card.get_by_text("Mischpult")
        await expect(card.get_by_role("slider", name="Guidance")).to_be_hidden()
        await summary.click()
        await expect(card.get_by_role("slider", name="Guidance")).to_be_visible()
        await expect(card.get_by_role("button", name="Nur Bild 2 behalten")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert await page.evaluate("document.documentElement.scrollHeight") <= 740, "only the log scrolls"
        for control in await card.locator(".desk button, .tile-tools button").all():
            box = await control.bounding_box()
            assert box is not None
            assert box["height"] >= 40
            assert await control.evaluate("one => one.scrollWidth <= one.clientWidth")
        await expect(card.get_by_label("Gewicht von a fox")).to_be_in_viewport()
        grid = await card.locator(".grid").bounding_box()
        log = await page.locator("#log").bounding_box()
        assert grid is not None
        assert log is not None
        assert grid["y"] >= log["y"] - 1  # the pictures stay in sight
