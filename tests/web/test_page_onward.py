"""The ways on from a finished picture, as a visitor goes them: painted over, zoomed, panned, branched off, compared."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from playwright.async_api import Locator, Page, expect

from engine.job import Forward, Recipe
from painter import solid
from visitor import card_of, finished, picture_of, say, visit

if TYPE_CHECKING:
    from tests.web.conftest import Room

pytestmark = pytest.mark.asyncio


async def ways(card: Locator, n: int = 1) -> None:
    await card.get_by_role("button", name=f"Go on from picture {n}").click()


async def editing(page: Page, card: Locator) -> Locator:
    """The dialog with the first picture on its easel."""
    await ways(card)
    await card.get_by_role("button", name="Edit a part of picture 1").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Words")).to_have_value("terrier")
    return dialog


async def painted(dialog: Locator) -> int:
    """How many pixels of the canvas are."""
    count = """one => {
        const copy = Object.assign(document.createElement("canvas"), {width: one.width, height: one.height});
        const context = copy.getContext("2d", {willReadFrequently: true});
        context.drawImage(one, 0, 0);
        const pixels = context.getImageData(0, 0, one.width, one.height).data;
        return pixels.filter((value, place) => place % 4 === 3 && value).length;
    }"""
    return await dialog.locator("canvas").evaluate(count)


async def test_a_part_is_painted_and_drawn_anew_with_other_words(page: Page, room: Room) -> None:
    card = await picture_of(page, room)
    dialog = await editing(page, card)
    await dialog.get_by_role("button", name="Draw anew").click()
    await expect(dialog.get_by_role("alert")).to_have_text("Paint over what shall be drawn anew.")
    box = await dialog.locator("canvas").bounding_box()
    assert box is not None
    left, top = box["x"] + box["width"] / 4, box["y"] + box["height"] / 4
    await page.mouse.move(left, top)
    await page.mouse.down()
    await page.mouse.move(left + box["width"] / 2, top, steps=5)
    await page.mouse.up()
    assert await painted(dialog) > 64 * 64 * 0.05
    await dialog.get_by_label("Words").fill("a cat")
    room.drawers[0].going.clear()
    await dialog.get_by_role("button", name="Draw anew").click()
    made = await card_of(page, 1)
    recipe = (await room.studio.view(str(await made.get_attribute("id")).removeprefix("job-"))).recipe
    assert isinstance(recipe, Recipe)
    start = recipe.start
    assert isinstance(start, Forward)
    assert start.mask is not None
    with Image.open(io.BytesIO(await room.drawers[0].bus.get_blob(start.mask, 1 << 20))) as mask:
        assert mask.size == (64, 64)  # the picture's
        grey = mask.convert("L")
        assert [grey.getpixel(at) for at in ((32, 16), (16, 16), (32, 48), (2, 2))] == [255, 255, 0, 0]
    room.drawers[0].going.set()
    await expect(made.locator(".deed")).to_have_text("changed a part of picture 1")
    await expect(made.locator(".prompt")).to_have_text("a cat")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await finished(made)


async def test_the_brush_goes_by_keys_and_each_stroke_can_be_taken_back(page: Page, room: Room) -> None:
    dialog = await editing(page, await picture_of(page, room))
    canvas, undo = dialog.locator("canvas"), dialog.get_by_role("button", name="Undo")
    await expect(canvas).to_be_focused()
    await expect(undo).to_be_disabled()
    await page.keyboard.press("Space")
    dot = await painted(dialog)
    for _ in range(6):
        await page.keyboard.press("ArrowRight")
    await page.keyboard.press("Space")
    line = await painted(dialog)
    assert line > 1.5 * dot > 0
    await page.keyboard.press("ArrowDown")  # lifted: it only moves
    assert await painted(dialog) == line
    await dialog.get_by_role("button", name="Rub out").click()
    await canvas.focus()
    await page.keyboard.press("Space")
    await page.keyboard.press("Space")
    assert 0 < await painted(dialog) < line
    await undo.click()
    assert await painted(dialog) == line
    await canvas.focus()
    await page.keyboard.press("Control+z")
    assert await painted(dialog) == 0
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_refused_edit_says_why_in_its_dialog(page: Page, room: Room) -> None:
    dialog = await editing(page, await picture_of(page, room))
    await page.keyboard.press("Space")
    await dialog.get_by_label("Words").fill("{a, b}")
    await dialog.get_by_role("button", name="Draw anew").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("One job at a time")
    await expect(dialog.get_by_label("Words")).to_have_value("{a, b}")


async def test_zoom_and_pan_make_new_messages(page: Page, room: Room) -> None:
    await visit(page, room)
    card = await say(page, "terrier --count 2")
    await finished(card)
    await ways(card, 2)
    wishes = [("Zoom out of picture 2, 1.5 times", "zoomed out of picture 2"), ("Pan left", "went beyond picture 2")]
    for number, (button, deed) in enumerate(wishes):
        await card.get_by_role("button", name=button).click()
        made = await card_of(page, number + 1)
        await expect(made.locator(".deed")).to_have_text(deed)
        await finished(made)
    await ways(card, 2)
    await expect(card.locator(".ways")).to_be_hidden()


async def branched(page: Page, room: Room) -> Locator:
    """A branch of one picture of two, with other words; its message."""
    room.drawers[0].keeps = 2  # 24 steps, rungs at 4, 8, …: latents at 8 and 16
    await visit(page, room)
    card = await say(page, "terrier --count 2 --seed 7")
    await finished(card)
    fork, slider = card.locator(".fork"), card.get_by_role("slider", name="How it developed")
    await expect(fork).to_be_disabled()
    await slider.focus()
    await page.keyboard.press("ArrowLeft")
    await expect(card.locator(".where")).to_have_text("step 24 of 24")
    for _ in range(2):
        await page.keyboard.press("ArrowLeft")
    await expect(card.locator(".where")).to_have_text("step 16 of 24")
    await expect(fork).to_have_text("Branch from here")
    await page.keyboard.press("ArrowLeft")
    await expect(fork).to_have_text("Branch from step 8")
    await fork.click()
    await expect(card.locator(".from")).to_have_text("Step 12 kept no latents; step 8 is the nearest that did.")
    await card.get_by_role("radio", name="2").check()
    await card.get_by_role("button", name="Branch", exact=True).click()
    await expect(card.get_by_role("alert")).to_contain_text("the same picture")
    await card.get_by_label("Words").fill("terrier in a hat")
    await card.get_by_label("Guidance").fill("4.5")
    await card.get_by_role("button", name="Branch", exact=True).click()
    made = await card_of(page, 1)
    await expect(made.locator(".deed")).to_have_text("branched from picture 2 at step 8")
    await finished(made)
    return made


async def test_a_branch_goes_on_from_the_nearest_step_with_latents(page: Page, room: Room) -> None:
    made = await branched(page, room)
    _, said = await room.ask("GET", f"/api/jobs/{str(await made.get_attribute('id')).removeprefix('job-')}")
    assert (said["guidance"], said["count"], said["words"]) == (4.5, 1, "terrier in a hat")
    assert said["start"] == {"step": 8, "fresh": False}  # the flag --seed of the old words did not come along


async def test_what_was_stopped_goes_on_to_its_end_with_more_steps_or_without(page: Page, room: Room) -> None:
    await visit(page, room)
    card = await say(page, "terrier --count 1 --stop 50")
    await finished(card)
    await card.get_by_role("button", name="Go on to the end").click()
    made = await card_of(page, 1)
    await finished(made)
    await expect(made.get_by_role("button", name="Go on to the end")).to_be_hidden()
    await card.get_by_role("slider", name="How it developed").focus()
    for _ in range(3):
        await page.keyboard.press("ArrowLeft")
    await card.locator(".fork").click()
    await card.get_by_label("Steps in all").fill("60")
    await card.get_by_role("button", name="Branch", exact=True).click()
    made = await card_of(page, 2)
    await finished(made)
    _, said = await room.ask("GET", f"/api/jobs/{str(await made.get_attribute('id')).removeprefix('job-')}")
    assert (said["steps"], said["stopped"]) == (60, None)


async def test_a_branch_is_compared_with_its_parent(page: Page, room: Room) -> None:
    made = await branched(page, room)
    await made.get_by_role("button", name="Compare").click()
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
    await dialog.get_by_role("button", name="Films in step").click()
    await expect(dialog.locator(".films .where")).to_have_text("step 24 of 24")
    await dialog.locator(".step").focus()
    await page.keyboard.press("Home")
    await expect(dialog.locator(".films .where")).to_have_text("step 4 of 24")
    pixels = "all => all.map((one) => one.toDataURL())"
    before, after = await dialog.locator(".pair canvas").evaluate_all(pixels)
    assert before == after  # it had not branched yet
    sizes = await dialog.locator(".pair canvas").evaluate_all("all => all.map((one) => one.width)")
    assert sizes == [256, 256]
    await dialog.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_wide_picture_can_be_made_a_square(page: Page, room: Room) -> None:
    room.drawers[0].paint = solid
    await visit(page, room)
    card = await say(page, "terrier --ar 2:1 --count 1")
    await finished(card)
    await ways(card)
    await card.get_by_role("button", name="Make picture 1 a square").click()
    made = await card_of(page, 1)
    await finished(made)
    await expect(made.locator(".deed")).to_have_text("zoomed out of picture 1")
    await ways(made)
    await expect(made.get_by_role("button", name="Zoom out of picture 1, 2 times")).to_be_visible()
    await expect(made.get_by_role("button", name="Make picture 1 a square")).to_have_count(0)


async def test_a_walk_from_picture_to_picture_ends_in_a_film(page: Page, room: Room) -> None:
    await visit(page, room)
    card = await say(page, "terrier --count 2")
    await finished(card)
    await card.get_by_role("button", name="Walk", exact=False).click()
    for number in range(1, 5):
        made = await card_of(page, number)
        await expect(made.locator(".deed")).to_have_text("walked from picture to picture")
        await finished(made)
    film = page.locator(".roaming")
    await expect(film).to_have_count(1)
    assert await film.evaluate("one => one.decode().then(() => one.naturalWidth)") >= 256
    await expect(page.get_by_role("link", name="Download: walk as webp")).to_be_visible()
