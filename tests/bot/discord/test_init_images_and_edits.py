"""Init images, blends, and edits of finished pictures, by command and by button."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from PIL import Image
from simcord.components import walk_components

from bot.discord import responses
from bot.discord.components.branches import CONTINUE_HINT, MAX_KEYFRAMES, spread_steps
from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages
from engine.contract import Branch, ImageToImage
from shared.discord_jobs import imagine, newest_view
from shared.discord_staff import list_custom_ids, read_followups, read_form_fields, read_text
from shared.model_parts import MODEL_PARTS
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
PICTURE = ("a.png", make_png(64, 32))
OTHER = ("b.png", make_png(32, 32, 20))
MASK = ("m.png", make_png(64, 32, 255))
SQUARE = ("m.png", make_png(64, 64, 255))


async def test_imagine_takes_an_init_image_and_a_mask(open_world: Any) -> None:
    async with open_world() as world:
        result = await world.alice.slash(world.channel, "imagine", prompt="a lamp", image=PICTURE, strength=0.4)
        final_message = await world.wait_for_end(result)
        start = (await newest_view(world)).task.start
        recipe = (await newest_view(world)).task
        assert isinstance(start, ImageToImage)
        assert (start.strength, len(start.pictures), start.mask) == (0.4, 1, None)
        assert recipe.width == 2 * recipe.height, "the init image gives the shape"
        assert "More…" in world.labels(final_message)
        await world.wait_for_end(
            await world.alice.slash(world.channel, "imagine", prompt="a lamp", image=PICTURE, mask=MASK)
        )
        assert (await newest_view(world)).task.start.mask is not None


async def test_a_bad_init_image_mask_or_branch_is_refused_ephemerally(open_world: Any) -> None:
    async with open_world() as world:

        async def read_refusal(**options: Any) -> str:
            result = await world.alice.slash(world.channel, "imagine", prompt="a lamp", **options)
            assert result.ephemeral or all(each.ephemeral for each in result.followups)
            return "\n".join(read_text(each) for each in (result.response, *result.followups) if each)

        assert "🚫" in await read_refusal(image=("a.png", b"no picture"))
        assert "add that picture as image" in await read_refusal(mask=MASK)
        assert "so it takes no image" in await read_refusal(image=PICTURE, branch="x:4")
        assert "names no job" in await read_refusal(branch="whatever")
        assert await world.services.job_views.load_recent() == []


async def test_imagine_takes_control_and_reference_pictures_that_live_workers_can_follow(open_world: Any) -> None:
    async with open_world() as world:

        async def read_refusal(**options: Any) -> str:
            result = await world.alice.slash(world.channel, "imagine", prompt="a lamp", **options)
            return "\n".join(read_text(each) for each in (result.response, *result.followups) if each)

        assert "no controls for embedded" in await read_refusal(control="canny", control_image=PICTURE)
        world.painter.model = msgspec.structs.replace(world.painter.model, **MODEL_PARTS)
        await world.wait_until(lambda: world.services.catalog.find_entry(None).profile.controls)
        for typed, names in (("", ["canny", "tile"]), ("canny:0.5, t", ["canny:0.5, tile"])):
            choices = await world.alice.autocomplete(world.channel, "imagine", "control", typed)
            assert [choice["value"] for choice in choices] == names
        assert "as --control NAME: canny, tile" in await read_refusal(control_image=PICTURE)
        assert "so it takes no image" in await read_refusal(reference=PICTURE, branch="x:4")
        result = await world.alice.slash(
            world.channel,
            "imagine",
            prompt="a lamp by <moebius>",
            control="canny:0.8:0-0.5",
            control_image=PICTURE,
            reference=OTHER,
        )
        await world.wait_for_end(result)
        view = await newest_view(world)
        (control,), (reference,) = view.task.controls, view.task.references
        assert (view.state, view.task.start) == ("finished", None)
        assert (control.name, control.scale, control.stop, reference.name) == ("canny", 0.8, 0.5, "face")
        assert control.picture != reference.picture
        assert view.task.width == 2 * view.task.height, "the control picture gives the shape"
        assert [part.name for part in view.task.embeddings] == ["moebius"]


@dataclass
class HugeAttachment:
    url: str = "https://cdn.discordapp.com/never"
    size: int = responses.MAX_FILE_BYTES + 1
    filename: str = "huge.png"


async def test_a_too_large_init_image_is_never_downloaded(open_world: Any) -> None:
    with pytest.raises(UserError, match=r"huge.png has 16\.0 MiB, and the limit is 16 MiB"):
        responses.to_remote_file(HugeAttachment())
    attachment = HugeAttachment("https://cdn.discordapp.com/attachments/1/2/bär.png?ex=1&hm=a&", 5)
    assert (
        responses.to_remote_file(attachment).url == "https://cdn.discordapp.com/attachments/1/2/b%C3%A4r.png?ex=1&hm=a&"
    )
    async with open_world(worker=False) as world:
        init_images = InitImages((responses.to_remote_file(HugeAttachment("https://cdn.discordapp.com/gone", 5)),))
        with pytest.raises(UserError, match=r"did not let me download huge\.png"):
            await world.services.jobs.imagine(
                "", Member("discord:1", "Ann", "discord:2"), Destination("discord"), init_images=init_images
            )


async def test_urls_in_a_prompt_become_init_images(open_world: Any) -> None:
    async with open_world() as world:
        url = "https://cdn.discordapp.com/attachments/1/2/cat.png?ex=65&is=66&hm=aa&"
        world.uploads.extra_files[url] = make_png(64, 32)
        await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt=f"<{url}> a lamp --iw 1"))
        view = await newest_view(world)
        assert (view.prompt, view.action, view.task.start.strength) == ("a lamp --iw 1", "imagine", 0.6)
        assert view.task.width == 2 * view.task.height
        await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt=f"{url} a lamp", image=OTHER))
        view = await newest_view(world)
        assert (view.action, len(view.task.start.pictures)) == ("blend", 2)
        invalid_reply = await world.alice.slash(world.channel, "imagine", prompt="https://evil.example/a.png a lamp")
        assert invalid_reply.ephemeral
        assert "Only pictures that were uploaded to Discord or here" in read_text(invalid_reply)
        assert not any("evil" in url for url in world.uploads.fetched_urls)


async def test_edit_needs_a_model_that_edits(open_world: Any) -> None:
    async with open_world() as world:
        values = {"picture": PICTURE, "words": "make it red", "picture2": OTHER}
        reply = await world.alice.slash(world.channel, "edit", **values)
        assert reply.ephemeral
        assert "No worker has a model that edits pictures by words" in read_text(reply)


async def test_blend_takes_weights_and_needs_no_prompt(open_world: Any) -> None:
    async with open_world() as world:
        values = {"weights": "3, 1", "aspect": "1:1"}
        result = await world.alice.slash(world.channel, "blend", image1=PICTURE, image2=OTHER, **values)
        card = await world.wait_for_end(result)
        assert card.content.startswith("**without a prompt** · alice · blended")
        view = await newest_view(world)
        assert view.action == "blend"
        assert [one.weight for one in view.task.start.pictures] == [3, 1]
        assert view.task.width == view.task.height
        invalid_reply = await world.alice.slash(world.channel, "blend", image1=PICTURE, image2=OTHER, weights="3")
        assert "one weight" in read_text(invalid_reply)
        assert invalid_reply.ephemeral


async def test_more_under_a_grid_offers_a_menu_for_each_picture(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, count=2, seed=7)
        job = (await newest_view(world)).id
        await world.restart()
        menus = await world.bob.click(grid, label="More…")
        assert menus.ephemeral
        assert list_custom_ids(menus) == [f"onward:{job}:0", f"onward:{job}:1"]
        for press, action in (("zoomsome", "zoom"), ("panleft", "pan")):
            card = await world.wait_for_end(
                await world.bob.select(menus.response, [press], custom_id=f"onward:{job}:1")
            )
            view = await newest_view(world)
            assert (view.action, view.parent_image, view.member_name) == (action, (job, 1), "bob")
            assert view.task.start.mask
            assert " 2" in card.content


async def test_make_square_outpaints_a_wide_picture_and_refuses_a_square(open_world: Any) -> None:
    async with open_world() as world:
        grid = await world.wait_for_end(
            await world.alice.slash(world.channel, "imagine", prompt="a lamp", image=PICTURE, count=1)
        )
        wide_view = await newest_view(world)
        assert wide_view.task.width == 2 * wide_view.task.height
        menus = await world.bob.click(grid, label="More…")
        await world.wait_for_end(
            await world.bob.select(menus.response, ["square"], custom_id=f"onward:{wide_view.id}:0")
        )
        view = await newest_view(world)
        assert (view.action, view.parent_image) == ("zoom", (wide_view.id, 0))
        assert (view.task.width, view.task.height) == (64, 64)
        assert view.task.start.mask
        with pytest.raises(UserError, match="a square already"):
            await world.services.edits.zoom_to_square(
                view.id, 0, Member("local:ann", "Ann", "local"), Destination("web")
            )


@pytest.mark.slow
async def test_compare_shows_a_picture_beside_its_parent(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, count=2)
        variation = await world.wait_for_end(await world.alice.click(grid, label="V2"))
        view = await newest_view(world)
        menus = await world.bob.click(variation, label="More…")
        reply = await world.bob.select(menus.response, ["compare"], custom_id=f"onward:{view.id}:1")
        assert reply.ephemeral
        assert read_text(reply).startswith("Before: **red apple**\nAfter: **")
        (attachment,) = reply.response.attachments
        with Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url))) as comparison:
            assert comparison.width > comparison.height
        await world.client.services.moderation.delete_pictures(
            view.parent_image[0], Member(view.member_id, "alice", view.guild)
        )
        missing_reply = await world.bob.select(menus.response, ["compare"], custom_id=f"onward:{view.id}:1")
        assert "🚫" in read_followups(missing_reply)


@pytest.mark.slow
async def test_two_presses_in_a_row_make_one_job(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, count=1)
        upscale = await world.wait_for_end(await world.alice.click(grid, label="U1"))
        replies = [await world.alice.click(upscale, label="Zoom out 2×") for _ in range(2)]
        assert sum("already on its way" in read_text(each) for each in replies) == 1
        assert [view.action for view in await world.services.job_views.load_recent()] == ["zoom", "upscale", "imagine"]


@pytest.mark.slow
async def test_edit_inpaints_the_mask_from_a_form(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, count=1)
        first = await newest_view(world)
        menus = await world.bob.click(grid, label="More…")
        form = await world.bob.select(menus.response, ["edit"], custom_id=f"onward:{first.id}:0")
        assert set(read_form_fields(form)) == {"mask", "prompt", "strength"}
        invalid_reply = await world.bob.submit_modal(form, {"mask": SQUARE, "prompt": "red apple", "strength": "much"})
        assert "from 0.05 to 1" in read_text(invalid_reply)
        form = await world.bob.select(menus.response, ["edit"], custom_id=f"onward:{first.id}:0")
        reply = await world.bob.submit_modal(form, {"mask": SQUARE, "prompt": "a worm", "strength": "0,7"})
        await world.wait_for_end(reply)
        view = await newest_view(world)
        assert (view.action, view.prompt, view.parent_image) == ("edit", "a worm", (first.id, 0))
        assert view.task.start.strength == 0.7
        assert view.task.start.mask


@pytest.mark.slow
async def test_a_branch_by_contact_sheet_menu_and_form(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, count=2, seed=7)
        first = await newest_view(world)
        upscale = await world.wait_for_end(await world.alice.click(grid, label="U2"))
        reply = await world.bob.click(upscale, label="Branch…")
        assert reply.ephemeral
        assert len(reply.response.attachments) == 1
        (menu,) = (each for each in walk_components(reply.response.components) if "custom_id" in each)
        assert menu["custom_id"] == f"rungs:{first.id}:1"
        assert [option["value"] for option in menu["options"]] == ["4", "8", "12", "16"]
        await world.restart()
        form = await world.bob.select(reply.response, ["8"], custom_id=menu["custom_id"])
        assert read_form_fields(form)["prompt"]["value"] == "red apple"
        await world.wait_for_end(
            await world.bob.submit_modal(form, {"prompt": "red apple", "seed": "9", "steps": "60"})
        )
        view = await newest_view(world)
        assert (view.action, view.parent_image, view.prompt) == ("branch", (first.id, 1), "red apple")
        assert (view.task.steps, view.task.start.keyframe_step) == (60, 8)
        assert (view.task.start.has_new_noise, view.task.seed) == (True, 9)
        form = await world.bob.select(reply.response, ["8"], custom_id=menu["custom_id"])
        invalid_reply = await world.bob.submit_modal(
            form, {"prompt": "pear --sampler ddim", "seed": "", "guidance": ""}
        )
        assert "cannot be changed" in read_text(invalid_reply)


@pytest.mark.slow
async def test_a_stopped_job_can_be_continued_to_its_end_by_a_branch(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, prompt="red apple --stop 50 --steps 40", count=1)
        first = await newest_view(world)
        menus = await world.bob.click(grid, label="More…")
        reply = await world.bob.select(menus.response, ["branch"], custom_id=f"onward:{first.id}:0")
        (menu,) = (each for each in walk_components(reply.response.components) if "custom_id" in each)
        descriptions = [option.get("description") for option in menu["options"]]
        assert descriptions == [*[None] * (len(descriptions) - 1), CONTINUE_HINT]
        last = menu["options"][-1]["value"]
        form = await world.bob.select(reply.response, [last], custom_id=menu["custom_id"])
        await world.wait_for_end(
            await world.bob.submit_modal(form, {"prompt": read_form_fields(form)["prompt"]["value"]})
        )
        view = await newest_view(world)
        assert (view.action, view.task.start.step, view.task.end_step) == ("branch", int(last), 40)


@pytest.mark.slow
async def test_a_branch_can_be_typed_as_job_picture_and_step(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world, count=2)
        first = await newest_view(world)
        suggestions = await world.alice.autocomplete(world.channel, "imagine", "branch", "", prompt="pear")
        assert [each["value"] for each in suggestions] == [first.id]
        for reference, index, step in ((f"{first.id.lower()}/2:12", 1, 12), (first.id, 0, 12), (f"{first.id}:9", 0, 8)):
            await world.wait_for_end(
                await world.alice.slash(world.channel, "imagine", prompt="a pear", branch=reference)
            )
            view = await newest_view(world)
            assert (view.action, view.prompt, view.parent_image) == ("branch", "a pear", (first.id, index)), reference
            assert isinstance(view.task.start, Branch)
            assert view.task.start.step == step, reference


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 47, 200])
async def test_a_branch_menu_offers_twelve_keyframes_with_the_first_and_the_last(count: int) -> None:
    steps = list(range(4, 4 + count))
    spread = spread_steps(steps)
    assert len(spread) == len(set(spread)) == min(count, MAX_KEYFRAMES)
    assert (spread[0], spread[-1]) == (steps[0], steps[-1])
    assert spread == sorted(spread)
