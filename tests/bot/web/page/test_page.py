"""The page as a visitor sees it, in headless Chromium over a real bot."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from bot.web.app import entry_address
from bot.web.middleware import SESSION_TOKENS
from bot.web.sse import ENGINE_LOADING, SHUTDOWN, STREAMS
from shared.web_visitor import LONG_MS, open_page, send_prompt, wait_until_finished

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = "terrier, looking up, cute, white background"
STEPS = 24  # of the worker's model


async def picture_sources(card: Locator) -> list[str]:
    return await card.locator(".tile img").evaluate_all("all => all.map(one => one.src)")


async def note_changes(image: Locator) -> None:
    """Makes the page count how many different pictures this image shows."""
    await image.evaluate(
        """one => {
            one.seen = new Set();
            new MutationObserver(() => one.src && one.seen.add(one.src)).observe(one, {attributes: true});
        }"""
    )


async def count_changes(image: Locator) -> int:
    return await image.evaluate("one => one.seen.size")


@pytest.mark.slow
async def test_the_page_explains_itself_to_a_new_visitor(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await expect(page.locator("#prompt")).to_be_focused()
    await expect(page.locator("#prompt")).to_have_attribute("placeholder", PROMPT)
    await expect(page.locator("#welcome")).to_contain_text("It is not Discord")
    await expect(page.locator("#status-light")).to_have_class("status-light on")
    await page.get_by_role("button", name=PROMPT).click()
    await expect(page.locator("#prompt")).to_have_value(PROMPT)
    await page.get_by_role("link", name="Add the bot to your server").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Add the bot to your server")


@pytest.mark.slow
async def test_a_prompt_develops_into_four_pictures(page: Page, server: WebServer) -> None:
    worker = server.workers[0]
    worker.speed = 0.08
    worker.pause_step = 2
    await open_page(page, server)
    card = await send_prompt(page, PROMPT)
    await expect(page.locator("#prompt")).to_have_value("")
    await expect(card.locator(".author")).to_have_text("You")
    await expect(card.locator(".prompt")).to_have_text(PROMPT)
    await expect(card.locator(".tile.has-preview")).to_have_count(4)
    for number in range(4):
        await note_changes(card.locator(".tile img").nth(number))
    worker.step_gate.set()
    await wait_until_finished(card)
    for number in range(4):
        assert await count_changes(card.locator(".tile img").nth(number)) > 4
    assert all("/pictures/" in source for source in await picture_sources(card))
    natural_widths = await card.locator(".tile img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert natural_widths == [64, 64, 64, 64]
    alt_text = await card.locator(".tile img").nth(2).get_attribute("alt")
    assert alt_text == f"Picture 3 of 4: {PROMPT}"


@pytest.mark.slow
async def test_percent_and_time_left_are_shown_while_a_job_runs(page: Page, server: WebServer) -> None:
    server.workers[0].speed = 0.1
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await expect(card.locator(".tile.has-preview")).to_have_count(4)
    server.workers[0].step_gate.clear()
    await expect(card.locator(".percent")).to_have_text(re.compile(r"[1-9]\d? %"))
    await expect(card.locator(".time-left")).to_have_text(re.compile(r"about \d+ s left"))
    assert re.match(r"\d+ % · Darkroom", await page.title())
    server.workers[0].step_gate.set()
    await wait_until_finished(card)
    assert await page.title() == "Darkroom"


@pytest.mark.slow
async def test_a_loading_model_has_the_progress_bar_until_the_first_preview(page: Page, server: WebServer) -> None:
    worker = server.workers[0]
    worker.loading_progress = (0.1, 0.4)
    worker.pause_step = 0
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await expect(card.locator(".time-left")).to_have_text("loading embedded, 40 %")
    await expect(card.locator(".percent")).to_have_text("")
    await expect(card).to_have_attribute("data-state", "loading")
    assert await card.locator("progress").evaluate("one => one.value") == 40
    assert await page.title() == "Darkroom"
    await page.reload()
    card = page.locator("article.job").first
    await expect(card.locator(".time-left")).to_have_text("loading embedded, 40 %")
    worker.step_gate.set()
    await expect(card).to_have_attribute("data-state", re.compile("running|finished"))
    await wait_until_finished(card)


@pytest.mark.slow
async def test_models_on_disk_are_counted_beside_those_in_memory(page: Page, server: WebServer) -> None:
    worker = server.workers[0]
    await open_page(page, server)
    await expect(page.locator("#status")).to_have_text("embedded on paper and ink")
    worker.models = (worker.model, *(msgspec.structs.replace(worker.model, name=n, loaded=False) for n in "ab"))
    await expect(page.locator("#status")).to_have_text("embedded on paper and ink · 2 more models on demand")


@pytest.mark.slow
async def test_cancel_stops_a_job_and_says_so(page: Page, server: WebServer) -> None:
    server.workers[0].speed = 0.2
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await expect(card.locator(".tile.has-preview")).to_have_count(4)
    server.workers[0].step_gate.clear()
    await card.get_by_role("button", name="Cancel").click()
    await expect(card).to_have_attribute("data-state", "cancelled", timeout=LONG_MS)
    await expect(card.locator(".status-text")).to_contain_text("Cancelled")
    await expect(card.locator(".grid")).to_be_hidden()


@pytest.mark.slow
async def test_pause_stops_a_job_and_resume_lets_it_go_on(page: Page, server: WebServer) -> None:
    server.workers[0].speed = 0.1
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await expect(card.locator(".tile.has-preview")).to_have_count(4)
    await card.get_by_role("button", name="Pause").click()
    await expect(card.get_by_role("button", name="Resume")).to_be_visible()
    await expect(card.locator(".time-left")).to_have_text("paused")
    await asyncio.sleep(0.5)  # for previews on their way
    before = await picture_sources(card)
    await asyncio.sleep(1.0)
    assert await picture_sources(card) == before
    await expect(card).to_have_attribute("data-state", "running")
    await card.get_by_role("button", name="Resume").click()
    await expect(card.get_by_role("button", name="Pause")).to_be_visible()
    await wait_until_finished(card)
    await expect(card.locator(".pause")).to_be_hidden()


@pytest.mark.slow
async def test_a_pause_that_ended_by_itself_is_shown(page: Page, server: WebServer) -> None:
    server.workers[0].speed = 0.4
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await expect(card.locator(".tile.has-preview")).to_have_count(4)
    await card.get_by_role("button", name="Pause").click()
    await expect(card.get_by_role("button", name="Resume")).to_be_visible()
    server.workers[0].end_pauses()
    await expect(card.get_by_role("button", name="Pause")).to_be_visible(timeout=LONG_MS)


@pytest.mark.slow
async def test_waiting_jobs_show_their_place_in_the_queue(page: Page, server: WebServer) -> None:
    server.workers[0].step_gate.clear()
    await open_page(page, server)
    cards = [await send_prompt(page, f"terrier {number}") for number in range(5)]
    await expect(cards[-1].locator(".time-left")).to_contain_text(re.compile(r"ahead of you|Next in line"))
    server.workers[0].step_gate.set()
    for card in cards:
        await wait_until_finished(card)


@pytest.mark.slow
async def test_upscale_vary_and_reroll_make_new_messages(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await wait_until_finished(card)
    for number, (button, action) in enumerate(
        [("Upscale picture 2", "upscaled picture 2"), ("Vary picture 3", "varied picture 3"), ("Re-roll", "re-rolled")]
    ):
        await card.get_by_role("button", name=button).click()
        child = page.locator("article.job").nth(number + 1)
        await expect(child.locator(".action")).to_contain_text(action)
        await wait_until_finished(child)
    upscale_card = page.locator("article.job").nth(1)
    assert await upscale_card.locator(".tile").count() == 1
    await expect(upscale_card.locator(".status-text")).to_contain_text("Lanczos")
    await expect(upscale_card.get_by_role("button", name="Upscale picture 1")).to_have_count(0)


@pytest.mark.slow
async def test_the_slider_moves_the_pictures_back_to_noise(page: Page, server: WebServer) -> None:
    async def add_captions(route: Route) -> None:
        answer = await (await route.fetch()).json()
        assert answer["captions"] == [], "nobody steered this one"
        said = [
            (STEPS // 2, "fox 0.4, terrier 0.6", "Ann"),
            (STEPS // 2, "keeps image 2", "Bob"),
            (STEPS + 1, "late", ""),
        ]
        captions = [{"step": step, "text": text, "speaker": speaker} for step, text, speaker in said]
        await route.fulfill(json={**answer, "captions": captions})

    await page.route("**/keyframes", add_captions)
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await wait_until_finished(card)
    slider = card.get_by_role("slider")
    sheet = card.locator(".keyframe")
    await expect(sheet).to_be_hidden()
    await slider.focus()
    await page.keyboard.press("ArrowLeft")  # before a keyframe is loaded: one back, not to the first
    await expect(card.locator(".film-position")).to_have_text(f"step {STEPS} of {STEPS}")
    await page.keyboard.press("Home")
    await expect(sheet).to_be_visible()
    await expect(card.locator(".film-position")).to_have_text(re.compile(r"step \d+ of \d+"))
    first = await sheet.get_attribute("src")
    await page.keyboard.press("ArrowRight")
    await expect(sheet).not_to_have_attribute("src", str(first))
    assert await sheet.evaluate("one => one.decode().then(() => one.naturalWidth)") > 64
    await page.keyboard.press("End")
    await expect(sheet).to_be_hidden()
    await expect(card.locator(".film-position")).to_have_text("finished")
    caption = card.locator(".film-caption")
    await expect(caption).to_have_text("late")
    await card.get_by_role("button", name=f"Step {STEPS // 2}: Ann: fox 0.4, terrier 0.6").focus()
    await page.keyboard.press("Enter")
    await expect(caption).to_have_text("Ann: fox 0.4, terrier 0.6 · Bob: keeps image 2")
    await expect(card.locator(".film-position")).to_have_text(f"step {STEPS // 2} of {STEPS}")
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Home")
    await expect(caption).to_have_text("")


@pytest.mark.slow
async def test_the_film_plays_to_its_end(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await wait_until_finished(card)
    await note_changes(card.locator(".keyframe"))
    await card.get_by_role("button", name="Play the film").click()
    async with asyncio.timeout(20):
        while await count_changes(card.locator(".keyframe")) < 6:
            await asyncio.sleep(0.05)
    await expect(card.locator(".film-position")).to_have_text("finished")
    await expect(card.get_by_role("button", name="Play the film")).to_be_visible()


@pytest.mark.slow
async def test_downloads_have_file_names(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await wait_until_finished(card)
    for name, ending in (
        ("Download: pictures", ".png"),
        ("Download: film as webp", ".webp"),
        ("Download: film as gif", ".gif"),
    ):
        async with page.expect_download() as download:
            await card.get_by_role("link", name=name).click()
        assert (await download.value).suggested_filename.endswith(ending)


async def test_a_refusal_is_a_sentence_and_the_prompt_stays(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await page.locator("#prompt").fill("terrier --sede 4")
    await page.get_by_role("button", name="Imagine").click()
    await expect(page.get_by_role("alert")).to_contain_text("--seed")
    await expect(page.locator("#prompt")).to_have_value("terrier --sede 4")
    await expect(page.locator("article.job")).to_have_count(0)
    await page.keyboard.type("2")
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_notes_and_failures_are_shown(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "an impossible thing --v 6")
    await expect(card.locator(".notes")).to_contain_text("--v")
    await expect(card).to_have_attribute("data-state", "failed", timeout=LONG_MS)
    await expect(card.locator(".status-text")).to_contain_text("out of bounds")


@pytest.mark.slow
async def test_a_prompt_is_text_and_never_markup(page: Page, server: WebServer) -> None:
    hostile_prompt = (
        "<img src=x onerror=\"document.title='broken'\"> </article><script>document.title='broken'</script> &amp;"
    )
    await open_page(page, server)
    card = await send_prompt(page, hostile_prompt)
    await expect(card.locator(".prompt")).to_have_text(hostile_prompt)
    await wait_until_finished(card)
    assert await card.locator(".prompt *").count() == 0
    assert await page.locator("article script").count() == 0
    await page.reload()
    await expect(page.locator("article.job .prompt")).to_have_text(hostile_prompt)
    assert "broken" not in await page.title()


@pytest.mark.slow
async def test_another_visitor_sees_a_job_live_with_its_authors_name(
    page: Page, browser: Browser, server: WebServer
) -> None:
    server.workers[0].speed = 0.1
    other = await (await browser.new_context()).new_page()
    await other.goto(server.url)
    await open_page(page, server)
    own_card = await send_prompt(page, "terrier")
    await expect(own_card.locator(".tile.has-preview")).to_have_count(4)
    server.workers[0].step_gate.clear()
    card = other.locator("article.job").first
    await expect(card.locator(".author")).to_have_text(re.compile("Visitor .+"))
    await expect(card.locator(".tile.has-preview")).to_have_count(4)
    server.workers[0].step_gate.set()
    await wait_until_finished(card)


@pytest.mark.slow
async def test_without_a_worker_the_lamp_is_off_and_the_status_says_so(page: Page, open_server: OpenServer) -> None:
    async with open_server(workers=0) as server:
        await page.goto(server.url)
        await expect(page.locator("#status")).to_contain_text("No worker is online")
        await expect(page.locator("#status-light")).to_have_class("status-light")
        server.app[ENGINE_LOADING].set()
        await expect(page.locator("#status")).to_contain_text("The engine is loading")
        await page.goto("about:blank")


@pytest.mark.slow
async def test_the_page_reconnects_by_itself_after_a_restart(page: Page, open_server: OpenServer) -> None:
    async with open_server() as server:
        port = server.port
        await open_page(page, server)
        first = await send_prompt(page, "before")
        await wait_until_finished(first)
    await expect(page.locator("#status")).to_contain_text("Connection lost")
    await page.locator("#prompt").fill("while away")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("reached")
    async with open_server(port=port) as server:
        await expect(page.locator("#status")).to_contain_text("paper and ink", timeout=LONG_MS)
        await expect(page.locator("article.job")).to_have_count(1)
        await page.keyboard.press("Enter")
        second = page.locator("article.job").nth(1)
        await expect(second.locator(".prompt")).to_have_text("while away")
        await wait_until_finished(second)
        await page.goto("about:blank")


@pytest.mark.slow
async def test_a_hidden_page_closes_its_stream_and_opens_it_again_when_shown(page: Page, server: WebServer) -> None:
    show = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); %s }"
    show %= "document.dispatchEvent(new Event('visibilitychange'))"
    await page.clock.install()
    await open_page(page, server)
    assert len(server.app[STREAMS]) == 1
    await page.evaluate(show, True)
    await page.clock.fast_forward(61_000)
    async with asyncio.timeout(10):
        while server.app[STREAMS]:
            await asyncio.sleep(0.05)
    job = await server.imagine("while nobody looked", count=1)
    await server.wait_for_end(job)
    await page.evaluate(show, False)
    await wait_until_finished(page.locator("article.job"))


@pytest.mark.slow
async def test_the_page_fits_a_phone(browser: Browser, server: WebServer) -> None:
    phone_context = await browser.new_context(
        viewport={"width": 360, "height": 740}, device_scale_factor=2, has_touch=True, is_mobile=True
    )
    page = await phone_context.new_page()
    await page.goto(server.url)
    card = await send_prompt(page, "terrier " + "o" * 200)
    await wait_until_finished(card)
    for path in ("", "/discord"):
        if path:
            await page.goto(server.url + path)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    await page.goto(server.url)
    box = await page.locator("article.job .cancel, article.job .row button").last.bounding_box()
    assert box is not None
    assert box["height"] >= 40
    imagine = await page.get_by_role("button", name="Imagine").bounding_box()
    assert imagine is not None
    assert imagine["y"] + imagine["height"] <= 740


@pytest.mark.slow
async def test_every_control_can_be_reached_by_keyboard_and_has_a_name(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await wait_until_finished(card)
    unnamed_elements = await page.evaluate(
        """() => [...document.querySelectorAll("button, a[href], input, textarea")]
            .filter(one => one.checkVisibility() && !(one.ariaLabel || one.textContent.trim() || one.labels?.length
                || one.querySelector("img[alt]:not([alt=''])")))
            .map(one => one.outerHTML)"""
    )
    assert unnamed_elements == []
    await card.locator(".tile").first.focus()
    focused: list[str | None] = []
    for _ in range(24):
        await page.keyboard.press("Tab")
        focused.append(await page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert focused[3:6] == ["Play the film", "Film, step by step", "Upscale picture 1"]
    assert "More actions on picture 1" in focused
    assert "Re-roll: the same prompt with another seed" in focused


@pytest.mark.slow
async def test_reduced_motion_is_respected(browser: Browser, server: WebServer) -> None:
    context = await browser.new_context(reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(server.url)
    await expect(page.locator("#status-light")).to_have_class("status-light on")
    card = await send_prompt(page, "terrier")
    assert await card.evaluate("one => getComputedStyle(one).animationName") == "none"


async def test_the_link_that_invites_the_bot_is_filled_in(page: Page, server: WebServer) -> None:
    await page.goto(f"{server.url}/discord")
    link = page.locator("#invitation")
    assert await link.get_attribute("href") is None
    await page.get_by_label("Application ID").fill("123456789012345678")
    href = await link.get_attribute("href")
    assert href is not None
    assert href.startswith("https://discord.com/oauth2/authorize?client_id=123456789012345678&")
    assert "scope=bot+applications.commands" in href


@pytest.mark.slow
async def test_a_guest_enters_by_a_one_time_address(browser: Browser, open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"{server.url}/?token={server.app[SESSION_TOKENS].create_invitation(for_operator=True)}")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("#status")).to_contain_text("paper and ink")
        assert "token" not in page.url
        await page.get_by_role("button", name="Invite a guest").click()
        field = page.get_by_label("Address for the guest")
        await expect(field).not_to_have_value("")  # the server sends it
        address = await field.input_value()
        await page.goto(address)  # opens one's own invitation
        await expect(page.get_by_role("button", name="Invite a guest")).to_be_visible()
        guest = await (await browser.new_context()).new_page()
        await guest.goto(address)
        await guest.get_by_role("button", name="Sign in").click()
        await expect(guest.locator("#status")).to_contain_text("paper and ink")
        await expect(guest.get_by_role("button", name="Invite a guest")).to_have_count(0)
        uninvited_page = await (await browser.new_context()).new_page()
        await uninvited_page.goto(address)
        await expect(uninvited_page.get_by_role("heading", level=1)).to_have_text("No access")
        for one in (page, guest, uninvited_page):
            await one.goto("about:blank")


@pytest.mark.slow
async def test_an_operator_signs_out(browser: Browser, open_server: OpenServer) -> None:
    """In one browser, then everywhere."""
    async with open_server(host="0.0.0.0") as server:
        pages = [await (await browser.new_context()).new_page() for _ in range(3)]
        for page in pages:
            await page.goto(f"{server.url}/?token={server.app[SESSION_TOKENS].create_invitation(for_operator=True)}")
            await page.get_by_role("button", name="Sign in").click()
            await expect(page.locator("#status")).to_contain_text("paper and ink")
        first, second, third = pages
        await first.get_by_role("button", name="Sign out", exact=True).click()
        await expect(first.get_by_role("heading", level=1)).to_have_text("No access")
        await second.reload()  # is still signed in
        await second.get_by_role("button", name="Sign out everywhere").click()
        await expect(second.get_by_role("heading", level=1)).to_have_text("No access")
        await third.reload()
        await expect(third.get_by_text("This browser is not signed in any more.")).to_be_visible()
        for page in pages:
            await page.goto("about:blank")


@pytest.mark.slow
async def test_the_printed_address_signs_the_operator_of_this_computer_in_at_once(
    browser: Browser, server: WebServer
) -> None:
    page = await (await browser.new_context()).new_page()
    await page.goto(server.url)
    await expect(page.locator("#status")).to_contain_text("paper and ink")
    await expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
    await page.goto(entry_address(server.settings, server.app, server.port))
    await expect(page.locator("#status")).to_contain_text("paper and ink")
    assert "token" not in page.url
    await page.get_by_role("button", name="Sign out", exact=True).click()
    await expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
    await expect(page.locator("#status")).to_contain_text("paper and ink")  # a visitor again
    await page.goto("about:blank")


async def test_the_page_loads_nothing_from_other_sites() -> None:
    folder = Path(__file__).parents[4] / "bot" / "web"
    for file in [*folder.glob("static/*"), *folder.glob("templates/*")]:
        text = file.read_text()
        assert "innerHTML" not in text, file.name
        assert "style=" not in text, file.name
        for pattern in ('src="http', "url(http", "@import", "eval("):
            assert pattern not in text, file.name


@pytest.mark.slow
async def test_a_guest_may_not_cancel_or_pause_jobs_of_others(browser: Browser, open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        server.workers[0].step_gate.clear()
        pages: list[Page] = []
        for owner in (True, False):
            page = await (await browser.new_context()).new_page()
            await page.goto(f"{server.url}/?token={server.app[SESSION_TOKENS].create_invitation(for_operator=owner)}")
            await page.get_by_role("button", name="Sign in").click()
            await expect(page.locator("#status")).to_contain_text("paper and ink")
            pages.append(page)
        host, guest = pages
        card = await send_prompt(host, "terrier")
        await expect(card.get_by_role("button", name="Cancel")).to_be_visible()
        await expect(guest.locator("article.job")).to_be_visible()
        await expect(guest.get_by_role("button", name="Cancel")).to_have_count(0)
        await expect(guest.get_by_role("button", name="Pause")).to_have_count(0)
        address = f"{server.url}/api/jobs/{str(await card.get_attribute('id')).removeprefix('job-')}"
        for action, sentence in (("pause", "may pause this job."), ("priority", "Only the operator")):
            answer = await guest.request.post(f"{address}/{action}", data={"weight": 2}, headers={"Origin": server.url})
            assert answer.status == 403
            assert sentence in (await answer.json())["error"]
        assert server.workers[0].control_messages == []
        for page in pages:
            await page.goto("about:blank")


@pytest.mark.slow
async def test_a_job_that_ended_while_the_page_was_offline_is_looked_up(
    page: Page, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.workers[0].step_gate.clear()
    await open_page(page, server)
    card = await send_prompt(page, "terrier")
    await page.context.set_offline(True)
    monkeypatch.setattr("bot.web.sse.MAX_RECENT_JOBS", 1)
    server.app[SHUTDOWN].set()  # every stream ends
    await expect(page.locator("#status")).to_contain_text("Connection lost")
    server.app[SHUTDOWN].clear()
    server.workers[0].step_gate.set()
    await server.wait_for_end(await server.imagine("another", count=1))
    await server.wait_for_end(str(await card.get_attribute("id")).removeprefix("job-"))
    await page.context.set_offline(False)
    await wait_until_finished(page.locator("article.job").first)
