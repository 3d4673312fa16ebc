"""Actions on a finished picture, as a visitor uses them: edit, zoom, pan, branch and compare."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from playwright.async_api import Locator, Page, expect

from engine.contract import ImageToImage, Recipe
from shared.web_visitor import draw_picture, open_page, send_prompt, wait_for_card, wait_until_finished
from tools.painter import paint_solid

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def open_actions(card: Locator, n: int = 1) -> None:
    await card.get_by_role("button", name=f"More actions on picture {n}").click()


async def open_editor(page: Page, card: Locator) -> Locator:
    """Opens the dialog with the first picture in the mask editor."""
    await open_actions(card)
    await card.get_by_role("button", name="Edit a part of picture 1").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Prompt", exact=True)).to_have_value("terrier")
    return dialog


async def count_painted(dialog: Locator) -> int:
    """Counts the painted pixels of the canvas."""
    count = """one => {
        const copy = Object.assign(document.createElement("canvas"), {width: one.width, height: one.height});
        const context = copy.getContext("2d", {willReadFrequently: true});
        context.drawImage(one, 0, 0);
        const pixels = context.getImageData(0, 0, one.width, one.height).data;
        return pixels.filter((value, place) => place % 4 === 3 && value).length;
    }"""
    return await dialog.locator("canvas").evaluate(count)


@pytest.mark.slow
async def test_a_painted_part_is_inpainted_with_another_prompt(page: Page, server: WebServer) -> None:
    card = await draw_picture(page, server)
    dialog = await open_editor(page, card)
    await dialog.get_by_role("button", name="Redraw").click()
    await expect(dialog.get_by_role("alert")).to_have_text("Paint the area to redraw first.")
    box = await dialog.locator("canvas").bounding_box()
    assert box is not None
    left = box["x"] + box["width"] / 4
    top = box["y"] + box["height"] / 4
    await page.mouse.move(left, top)
    await page.mouse.down()
    await page.mouse.move(left + box["width"] / 2, top, steps=5)
    await page.mouse.up()
    assert await count_painted(dialog) > 64 * 64 * 0.05
    await dialog.get_by_label("Prompt", exact=True).fill("a cat")
    server.workers[0].step_gate.clear()
    await dialog.get_by_role("button", name="Redraw").click()
    child = await wait_for_card(page, 1)
    recipe = (await server.services.job_views.load_view(str(await child.get_attribute("id")).removeprefix("job-"))).task
    assert isinstance(recipe, Recipe)
    start = recipe.start
    assert isinstance(start, ImageToImage)
    assert start.mask is not None
    with Image.open(io.BytesIO(await server.workers[0].bus.get_blob(start.mask, 1 << 20))) as mask:
        assert mask.size == (64, 64)  # that of the picture
        grey = mask.convert("L")
        assert [grey.getpixel(position) for position in ((32, 16), (16, 16), (32, 48), (2, 2))] == [255, 255, 0, 0]
    server.workers[0].step_gate.set()
    await expect(child.locator(".action")).to_have_text("edited a part of picture 1")
    await expect(child.locator(".prompt")).to_have_text("a cat")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await wait_until_finished(child)


@pytest.mark.slow
async def test_the_brush_works_by_keyboard_and_each_stroke_can_be_undone(page: Page, server: WebServer) -> None:
    dialog = await open_editor(page, await draw_picture(page, server))
    canvas = dialog.locator("canvas")
    undo = dialog.get_by_role("button", name="Undo")
    await expect(canvas).to_be_focused()
    await expect(undo).to_be_disabled()
    await page.keyboard.press("Space")
    dot_pixels = await count_painted(dialog)
    for _ in range(6):
        await page.keyboard.press("ArrowRight")
    await page.keyboard.press("Space")
    line = await count_painted(dialog)
    assert line > 1.5 * dot_pixels > 0
    await page.keyboard.press("ArrowDown")  # the brush is lifted, so it only moves
    assert await count_painted(dialog) == line
    await dialog.get_by_role("button", name="Eraser").click()
    await canvas.focus()
    await page.keyboard.press("Space")
    await page.keyboard.press("Space")
    assert 0 < await count_painted(dialog) < line
    await undo.click()
    assert await count_painted(dialog) == line
    await canvas.focus()
    await page.keyboard.press("Control+z")
    assert await count_painted(dialog) == 0
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_refused_edit_says_why_in_its_dialog(page: Page, server: WebServer) -> None:
    dialog = await open_editor(page, await draw_picture(page, server))
    await page.keyboard.press("Space")
    await dialog.get_by_label("Prompt", exact=True).fill("{a, b}")
    await dialog.get_by_role("button", name="Redraw").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("One job at a time")
    await expect(dialog.get_by_label("Prompt", exact=True)).to_have_value("{a, b}")


@pytest.mark.slow
async def test_zoom_and_pan_make_new_messages(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier --count 2")
    await wait_until_finished(card)
    await open_actions(card, 2)
    requests = [("Zoom out of picture 2, 1.5 times", "zoomed out of picture 2"), ("Pan left", "panned from picture 2")]
    for number, (button, action) in enumerate(requests):
        await card.get_by_role("button", name=button).click()
        child = await wait_for_card(page, number + 1)
        await expect(child.locator(".action")).to_have_text(action)
        await wait_until_finished(child)
    await open_actions(card, 2)
    await expect(card.locator(".picture-actions")).to_be_hidden()


async def make_branch(page: Page, server: WebServer) -> Locator:
    """Branches from one of two pictures with another prompt, and returns the new message."""
    server.workers[0].latents_interval = 2  # 24 steps, thumbnails at 4, 8, …: latents at 8 and 16
    await open_page(page, server)
    card = await send_prompt(page, "terrier --count 2 --seed 7")
    await wait_until_finished(card)
    branch_button = card.locator(".branch-button")
    slider = card.get_by_role("slider", name="Film, step by step")
    await expect(branch_button).to_be_disabled()
    await slider.focus()
    await page.keyboard.press("ArrowLeft")
    await expect(card.locator(".film-position")).to_have_text("step 24 of 24")
    for _ in range(2):
        await page.keyboard.press("ArrowLeft")
    await expect(card.locator(".film-position")).to_have_text("step 16 of 24")
    await expect(branch_button).to_have_text("Branch from here")
    await page.keyboard.press("ArrowLeft")
    await expect(branch_button).to_have_text("Branch from step 8")
    await branch_button.click()
    await expect(card.locator(".branch-hint")).to_have_text("Branches at step 8: step 12 has no stored latents.")
    await card.get_by_role("radio", name="2").check()
    await card.get_by_role("button", name="Branch", exact=True).click()
    await expect(card.get_by_role("alert")).to_contain_text("the same picture")
    await card.get_by_label("Prompt", exact=True).fill("terrier in a hat")
    await card.get_by_label("Guidance").fill("4.5")
    await card.get_by_role("button", name="Branch", exact=True).click()
    child = await wait_for_card(page, 1)
    await expect(child.locator(".action")).to_have_text("branched from picture 2 at step 8")
    await wait_until_finished(child)
    return child


@pytest.mark.slow
async def test_a_branch_goes_on_from_the_nearest_step_with_latents(page: Page, server: WebServer) -> None:
    child = await make_branch(page, server)
    _, reply = await server.request_json(
        "GET", f"/api/jobs/{str(await child.get_attribute('id')).removeprefix('job-')}"
    )
    assert (reply["guidance"], reply["count"], reply["prompt_text"]) == (4.5, 1, "terrier in a hat")
    assert reply["start"] == {"step": 8, "new_noise": False}  # the flag --seed of the old prompt was not carried over


@pytest.mark.slow
async def test_a_stopped_job_goes_on_to_its_end_with_or_without_more_steps(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier --count 1 --stop 50")
    await wait_until_finished(card)
    await card.get_by_role("button", name="Continue to the end").click()
    child = await wait_for_card(page, 1)
    await wait_until_finished(child)
    await expect(child.get_by_role("button", name="Continue to the end")).to_be_hidden()
    await card.get_by_role("slider", name="Film, step by step").focus()
    for _ in range(3):
        await page.keyboard.press("ArrowLeft")
    await card.locator(".branch-button").click()
    await card.get_by_label("Total steps").fill("60")
    await card.get_by_role("button", name="Branch", exact=True).click()
    child = await wait_for_card(page, 2)
    await wait_until_finished(child)
    _, reply = await server.request_json(
        "GET", f"/api/jobs/{str(await child.get_attribute('id')).removeprefix('job-')}"
    )
    assert (reply["steps"], reply["stopped_at"]) == (60, None)


@pytest.mark.slow
async def test_a_branch_is_compared_with_its_parent(page: Page, server: WebServer) -> None:
    child = await make_branch(page, server)
    await child.get_by_role("button", name="Compare").click()
    dialog = page.get_by_role("dialog")
    divider = dialog.get_by_role("slider", name="Divider")
    await divider.focus()
    await page.keyboard.press("Home")
    clip = "one => getComputedStyle(one).clipPath"
    assert await dialog.locator(".after").evaluate(clip) in ("inset(0px)", "inset(0px 0px 0px 0%)")
    box = await dialog.locator(".stage").bounding_box()
    assert box is not None
    await page.mouse.move(box["x"] + 5, box["y"] + 9)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 9)
    await page.mouse.up()
    await expect(divider).to_have_value("75")
    await dialog.get_by_role("button", name="Both films").click()
    await expect(dialog.locator(".films-view .film-position")).to_have_text("step 24 of 24")
    await dialog.locator(".step").focus()
    await page.keyboard.press("Home")
    await expect(dialog.locator(".films-view .film-position")).to_have_text("step 4 of 24")
    pixels = "all => all.map((one) => one.toDataURL())"
    before, after = await dialog.locator(".pair canvas").evaluate_all(pixels)
    assert before == after  # before the branch
    sizes = await dialog.locator(".pair canvas").evaluate_all("all => all.map((one) => one.width)")
    assert sizes == [256, 256]
    await dialog.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.slow
async def test_a_wide_picture_can_be_made_a_square(page: Page, server: WebServer) -> None:
    server.workers[0].paint = paint_solid
    await open_page(page, server)
    card = await send_prompt(page, "terrier --ar 2:1 --count 1")
    await wait_until_finished(card)
    await open_actions(card)
    await card.get_by_role("button", name="Make picture 1 square").click()
    child = await wait_for_card(page, 1)
    await wait_until_finished(child)
    await expect(child.locator(".action")).to_have_text("zoomed out of picture 1")
    await open_actions(child)
    await expect(child.get_by_role("button", name="Zoom out of picture 1, 2 times")).to_be_visible()
    await expect(child.get_by_role("button", name="Make picture 1 square")).to_have_count(0)


@pytest.mark.slow
async def test_an_interpolation_between_pictures_ends_in_a_film(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    card = await send_prompt(page, "terrier --count 2")
    await wait_until_finished(card)
    await card.get_by_role("button", name="Walk", exact=False).click()
    for number in range(1, 5):
        child = await wait_for_card(page, number)
        await expect(child.locator(".action")).to_have_text("interpolated between pictures")
        await wait_until_finished(child)
    film = page.locator(".interpolation-film")
    await expect(film).to_have_count(1)
    assert await film.evaluate("one => one.decode().then(() => one.naturalWidth)") >= 256
    await expect(page.get_by_role("link", name="Download: walk as webp")).to_be_visible()
