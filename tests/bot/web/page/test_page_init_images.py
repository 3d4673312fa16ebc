"""Init images as a visitor adds them: by file dialog, drag and drop, paste, or from a finished job."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import msgspec
import pytest
from PIL import Image
from playwright.async_api import Locator, Page, expect

from engine.contract import ImageToImage, Recipe
from shared.model_parts import MODEL_PARTS
from shared.picture_files import make_png
from shared.web_visitor import draw_picture, open_page, wait_for_card, wait_until_finished

if TYPE_CHECKING:
    from playwright.async_api import FilePayload

    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
TRANSFER = """([files, uri]) => {
    const moved = new DataTransfer();
    for (const text of files)
        moved.items.add(
            new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], "it.png", {type: "image/png"})
        );
    if (uri) moved.setData("text/uri-list", uri);
    return moved;
}"""


def file(name: str, content: bytes | None = None, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": make_png(48, 48, "#36c") if content is None else content}


async def choose_files(page: Page, *files: FilePayload) -> None:
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="Add init images").click()
    await (await chooser.value).set_files(list(files))


async def drop(page: Page, files: int, uri: str = "") -> None:
    text = base64.b64encode(make_png(48, 48, "#36c")).decode()
    transfer = await page.evaluate_handle(TRANSFER, [[text] * files, uri])
    for kind in ("dragover", "drop"):
        await page.dispatch_event("#log", kind, {"dataTransfer": transfer, "bubbles": True, "cancelable": True})


@pytest.mark.slow
async def test_a_chosen_picture_starts_a_job_without_a_prompt(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await choose_files(page, file("a cat.png"))
    thumbs = page.get_by_role("list", name="Init images").get_by_role("listitem")
    await expect(thumbs).to_have_count(1)
    centre_pixel = "one => [...one.getContext('2d').getImageData(64, 64, 1, 1).data]"
    assert await thumbs.locator("canvas").evaluate(centre_pixel) == [0x33, 0x66, 0xCC, 255]
    slider = page.get_by_role("slider", name="Strength")
    await expect(slider).to_have_value("60")
    await slider.focus()
    await page.keyboard.press("ArrowLeft")
    await page.get_by_role("button", name="Imagine").click()
    card = await wait_for_card(page, 0)
    await expect(card.locator(".action")).to_have_text("used an init image, strength 55 %")
    await expect(thumbs).to_have_count(0)
    await wait_until_finished(card)


@pytest.mark.slow
async def test_dropped_and_pasted_pictures_are_blended(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await drop(page, 2)
    transfer = await page.evaluate_handle(TRANSFER, [[base64.b64encode(make_png(48, 48, "#c33")).decode()], ""])
    await page.evaluate(
        "moved => document.getElementById('prompt').dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: moved, bubbles: true}))",
        transfer,
    )
    await expect(page.locator(".thumbs li")).to_have_count(3)
    await expect(page.locator(".strength-title")).to_contain_text("3 init images, blended")
    await page.keyboard.press("Enter")
    card = await wait_for_card(page, 0)
    await expect(card.locator(".action")).to_have_text("blended 3 init images, strength 50 %")
    await wait_until_finished(card)


async def init_image_of(server: WebServer, card: Locator) -> ImageToImage:
    """Reads the init image of a message's job."""
    recipe = (await server.services.job_views.load_view(str(await card.get_attribute("id")).removeprefix("job-"))).task
    assert isinstance(recipe, Recipe)
    assert isinstance(recipe.start, ImageToImage)
    return recipe.start


async def paint_stroke(page: Page) -> None:
    """Paints from the left edge to the centre of the canvas, with a brush of the default size."""
    box = await page.get_by_role("dialog").locator("canvas").bounding_box()
    assert box is not None
    await page.mouse.move(box["x"], box["y"] + box["height"] / 2)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    await page.mouse.up()


@pytest.mark.slow
async def test_the_slider_of_each_picture_sets_its_weight(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await choose_files(page, file("one.png"))
    await expect(page.get_by_text("Weight of each picture")).to_be_hidden()
    await choose_files(page, file("two.png", make_png(48, 48, "#c33")))
    first, second = (page.get_by_role("slider", name=f"Weight of picture {number}") for number in (1, 2))
    await expect(first).to_have_attribute("aria-valuetext", "50 %")
    await first.focus()
    for _ in range(4):
        await page.keyboard.press("ArrowLeft")
    await second.fill("3")
    await expect(page.locator(".weight output")).to_have_text(["25 %", "75 %"])
    await choose_files(page, file("three.png"))
    await page.get_by_role("button", name="Remove picture 3: three.png").click()
    await expect(page.locator(".weight output")).to_have_text(["25 %", "75 %"])  # the chosen file stays
    await page.get_by_role("button", name="Imagine").click()
    card = await wait_for_card(page, 0)
    await wait_until_finished(card)
    assert [one.weight for one in (await init_image_of(server, card)).pictures] == [1, 3]


@pytest.mark.slow
async def test_a_part_of_an_init_image_can_be_masked(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await choose_files(page, file("a cat.png"))
    await page.get_by_role("button", name="Paint a mask").click()
    dialog = page.get_by_role("dialog")
    await paint_stroke(page)
    await dialog.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("button", name="Paint a mask")).to_be_focused()  # closing keeps nothing
    await page.keyboard.press("Enter")
    await paint_stroke(page)
    await dialog.get_by_role("button", name="Use this mask").click()
    await expect(page.locator(".thumbs .stripes")).to_be_visible()
    await expect(page.get_by_role("slider", name="Strength inside the mask")).to_have_value("90")
    server.workers[0].step_gate.clear()
    await page.get_by_role("button", name="Imagine").click()
    card = await wait_for_card(page, 0)
    start = await init_image_of(server, card)
    assert start.mask is not None
    with Image.open(io.BytesIO(await server.workers[0].bus.get_blob(start.mask, 1 << 20))) as mask:
        assert mask.size == (48, 48)
        assert [mask.convert("L").getpixel(position) for position in ((10, 24), (10, 4), (44, 24))] == [255, 0, 0]
    server.workers[0].step_gate.set()
    await expect(card.locator(".action")).to_have_text("used an init image with a mask, strength 90 %")
    await expect(page.locator(".init-images")).to_be_hidden()
    await wait_until_finished(card)


@pytest.mark.slow
async def test_a_mask_waits_while_there_are_several_pictures_and_can_be_cleared(page: Page, server: WebServer) -> None:
    card = await draw_picture(page, server)
    await card.get_by_role("button", name="More actions on picture 1").click()
    await card.get_by_role("button", name="Use picture 1 as an init image").click()
    await page.get_by_role("button", name="Paint a mask").click()
    await paint_stroke(page)
    await page.get_by_role("dialog").get_by_role("button", name="Use this mask").click()
    await choose_files(page, file("other.png"))
    await expect(page.get_by_role("alert")).to_contain_text("A mask works with one init image only")
    await expect(page.locator(".thumbs .stripes")).to_have_count(0)
    await page.get_by_role("button", name="Remove picture 2: other.png").click()
    await expect(page.locator(".thumbs .stripes")).to_be_visible()
    await page.get_by_role("button", name="Imagine").click()
    child = await wait_for_card(page, 1)
    await expect(child.locator(".action")).to_contain_text("used an init image with a mask")
    assert (await init_image_of(server, child)).mask is not None
    await wait_until_finished(child)
    await choose_files(page, file("a cat.png"))
    for with_mask in (True, False):
        await page.get_by_role("button", name="Paint a mask" if with_mask else "Change the mask").click()
        await (
            paint_stroke(page) if with_mask else page.get_by_role("dialog").get_by_role("button", name="Clear").click()
        )
        await page.get_by_role("dialog").get_by_role("button", name="Use this mask").click()
    await expect(page.get_by_role("button", name="Paint a mask")).to_be_visible()
    await expect(page.locator(".thumbs .stripes")).to_have_count(0)
    await page.get_by_role("button", name="Remove picture 1").click()
    await choose_files(page, file("odd.png", b"\x89PNG and no more"))
    await page.get_by_role("button", name="Paint a mask").click()
    await expect(page.get_by_role("alert")).to_contain_text("you cannot paint a mask on it")


async def test_a_picture_can_be_removed_by_keyboard(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await choose_files(page, file("one.png"), file("two.png"))
    await page.get_by_role("button", name="Remove picture 2: two.png").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Remove picture 1: one.png")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator(".init-images")).to_be_hidden()
    await expect(page.get_by_role("button", name="Add init images")).to_be_focused()


@pytest.mark.slow
async def test_an_invalid_file_is_refused_in_one_sentence(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    await choose_files(page, file("notes.txt", b"words", "text/plain"))
    await expect(page.get_by_role("alert")).to_contain_text("notes.txt")
    await expect(page.locator(".init-images")).to_be_hidden()
    await choose_files(page, *(file(f"{n}.png") for n in range(6)))
    await expect(page.get_by_role("alert")).to_contain_text("up to 5 init images")
    await expect(page.locator(".thumbs li")).to_have_count(5)
    await page.reload()
    await choose_files(page, file("<b>broken</b>.png", b"\x89PNG and no more"))
    await page.locator("#prompt").fill("a lamp")
    await page.get_by_role("button", name="Imagine").click()
    await expect(page.get_by_role("alert")).to_contain_text("The picture")  # the server's sentence
    await expect(page.locator(".thumbs li")).to_have_count(1)
    await expect(page.locator("article.job")).to_have_count(0)


@pytest.mark.slow
async def test_a_finished_picture_is_an_init_image_alone_or_beside_a_file(page: Page, server: WebServer) -> None:
    card = await draw_picture(page, server)
    for number in range(2):
        await card.get_by_role("button", name="More actions on picture 1").click()
        await card.get_by_role("button", name="Use picture 1 as an init image").click()
        await expect(page.locator("#prompt")).to_be_focused()
        if number:
            await choose_files(page, file("other.png"))
        await page.keyboard.type("a cat --count 1")
        await page.get_by_role("button", name="Imagine").click()
        child = await wait_for_card(page, number + 1)
        description = "blended 2 init images, strength 50 %" if number else "used an init image, strength 60 %"
        await expect(child.locator(".action")).to_have_text(description)
        await wait_until_finished(child)
        if not number:
            await card.get_by_role("button", name="More actions on picture 1").click()


@pytest.mark.slow
async def test_a_picture_of_the_page_can_be_dropped_but_none_of_another_site(page: Page, server: WebServer) -> None:
    card = await draw_picture(page, server)
    await drop(page, 0, str(await card.locator(".tile").evaluate("one => one.href")))
    await expect(page.get_by_role("button", name="Remove picture 1: picture 1 of a job")).to_be_visible()
    await drop(page, 0, "https://elsewhere.example/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/pictures/1.png")
    await expect(page.get_by_role("alert")).to_contain_text("of other sites")
    await expect(page.locator(".thumbs li")).to_have_count(1)


@pytest.mark.slow
async def test_a_picture_can_be_for_control_or_reference(page: Page, server: WebServer) -> None:
    (worker,) = server.workers
    worker.model = msgspec.structs.replace(worker.model, **MODEL_PARTS)
    await open_page(page, server)
    await choose_files(page, file("sketch.png"), file("face.png", make_png(48, 48, "#c33")), file("start.png"))
    uses = page.get_by_role("combobox")
    await expect(uses).to_have_count(3, timeout=15_000)
    await expect(uses.first.get_by_role("option")).to_have_text(
        ["Init image", "Control: canny", "Control: tile", "Reference: face"]
    )
    await expect(page.get_by_text("Weight of each picture")).to_be_visible()
    await page.get_by_role("combobox", name="Use of picture 1: sketch.png").select_option("control:canny")
    await page.get_by_role("combobox", name="Use of picture 2: face.png").select_option("reference:face")
    await expect(page.get_by_text("Weight of each picture")).to_be_hidden()
    await expect(page.get_by_role("button", name="Paint a mask …")).to_be_visible()
    await page.locator("#prompt").fill("a lamp --count 1")
    await page.keyboard.press("Enter")
    card = await wait_for_card(page, 0)
    await expect(card.locator(".action")).to_have_text(
        "used an init image, strength 60 %, followed pictures by canny, face"
    )
    await wait_until_finished(card)
    recipe = (await server.services.job_views.load_view(str(await card.get_attribute("id")).removeprefix("job-"))).task
    assert isinstance(recipe, Recipe)
    assert (len(recipe.controls), len(recipe.references)) == (1, 1)
    await choose_files(page, file("sketch.png"))
    await page.get_by_role("combobox").select_option("control:tile")
    await expect(page.get_by_role("slider", name="Strength")).to_be_hidden()
    worker.model = msgspec.structs.replace(worker.model, controls=())
    await expect(page.get_by_role("combobox")).to_have_value("start", timeout=15_000)
