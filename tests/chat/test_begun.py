"""Pictures that members bring, blends, and what goes on from a finished picture, typed and pressed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image
from simcord.components import walk_components

from bot.chat import brought
from bot.chat.presses.branching import OFFERED, spread
from bot.chat.presses.rung import ONWARD
from bot.desk.bringing import Bring
from bot.refused import Refused
from bot.views import Member, Place
from chat.jobs import made
from chat.pictures import png
from chat.staff import fields, ids, said, text
from engine.job import Branch, Forward

pytestmark = pytest.mark.asyncio
PICTURE, OTHER, MASK = (("a.png", png(64, 32)), ("b.png", png(32, 32, 20)), ("m.png", png(64, 32, 255)))
SQUARE = ("m.png", png(64, 64, 255))


async def newest(world: Any) -> Any:
    return (await world.studio.recent())[0]


async def test_a_prompt_begins_with_a_picture(open_world: Any) -> None:
    async with open_world() as world:
        asked = await world.alice.slash(world.channel, "imagine", prompt="a lamp", image=PICTURE, strength=0.4)
        final = await world.ended(asked)
        start, recipe = (await newest(world)).recipe.start, (await newest(world)).recipe
        assert isinstance(start, Forward)
        assert (start.strength, len(start.pictures), start.mask) == (0.4, 1, None)
        assert recipe.width == 2 * recipe.height, "the picture gives the shape"
        assert "More…" in world.labels(final)
        await world.ended(await world.alice.slash(world.channel, "imagine", prompt="a lamp", image=PICTURE, mask=MASK))
        assert (await newest(world)).recipe.start.mask is not None


async def test_what_cannot_be_begun_with_is_said_to_its_asker_alone(open_world: Any) -> None:
    async with open_world() as world:

        async def refused(**options: Any) -> str:
            result = await world.alice.slash(world.channel, "imagine", prompt="a lamp", **options)
            assert result.ephemeral or all(each.ephemeral for each in result.followups)
            return "\n".join(text(each) for each in (result.response, *result.followups) if each)

        assert "🚫" in await refused(image=("a.png", b"no picture"))
        assert "add that picture as image" in await refused(mask=MASK)
        assert "so it takes no image" in await refused(image=PICTURE, branch="x:4")
        assert "names no job" in await refused(branch="whatever")
        assert await world.studio.recent() == []


@dataclass
class Huge:
    url: str = "https://cdn.discordapp.com/never"
    size: int = brought.MOST + 1
    filename: str = "huge.png"


async def test_a_picture_that_is_too_large_is_not_fetched_at_all(open_world: Any) -> None:
    with pytest.raises(Refused, match=r"huge.png has 16\.0 MiB, and the limit is 16 MiB"):
        brought.remote(Huge())
    named = Huge("https://cdn.discordapp.com/attachments/1/2/bär.png?ex=1&hm=a&", 5)
    assert brought.remote(named).url == "https://cdn.discordapp.com/attachments/1/2/b%C3%A4r.png?ex=1&hm=a&"
    async with open_world(worker=False) as world:
        bring = Bring((brought.remote(Huge("https://cdn.discordapp.com/gone", 5)),))
        with pytest.raises(Refused, match=r"did not let me download huge\.png"):
            await world.studio.imagine("", Member("discord:1", "Ann", "discord:2"), Place("discord"), bring=bring)


async def test_a_prompt_begins_with_addresses(open_world: Any) -> None:
    async with open_world() as world:
        at = "https://cdn.discordapp.com/attachments/1/2/cat.png?ex=65&is=66&hm=aa&"
        world.uploads.more[at] = png(64, 32)
        await world.ended(await world.alice.slash(world.channel, "imagine", prompt=f"<{at}> a lamp --iw 1"))
        view = await newest(world)
        assert (view.prompt, view.action, view.recipe.start.strength) == ("a lamp --iw 1", "imagine", 0.6)
        assert view.recipe.width == 2 * view.recipe.height
        await world.ended(await world.alice.slash(world.channel, "imagine", prompt=f"{at} a lamp", image=OTHER))
        view = await newest(world)
        assert (view.action, len(view.recipe.start.pictures)) == ("blend", 2)
        wrong = await world.alice.slash(world.channel, "imagine", prompt="https://evil.example/a.png a lamp")
        assert wrong.ephemeral
        assert "Only pictures that were uploaded to Discord or here" in text(wrong)
        assert not any("evil" in url for url in world.uploads.fetched)


async def test_pictures_are_blended_with_weights_and_without_words(open_world: Any) -> None:
    async with open_world() as world:
        asked = await world.alice.slash(world.channel, "blend", image1=PICTURE, image2=OTHER, weights="3, 1")
        card = await world.ended(asked)
        assert card.content.startswith("**without a prompt** · alice · blended")
        view = await newest(world)
        assert view.action == "blend"
        assert [one.weight for one in view.recipe.start.pictures] == [3, 1]
        wrong = await world.alice.slash(world.channel, "blend", image1=PICTURE, image2=OTHER, weights="3")
        assert "one weight" in text(wrong)
        assert wrong.ephemeral


async def test_more_under_a_grid_goes_on_from_each_of_its_pictures(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, count=2, seed=7)
        job = (await newest(world)).id
        await world.restart()
        menus = await world.bob.click(grid, label="More…")
        assert menus.ephemeral
        assert ids(menus) == [f"onward:{job}:0", f"onward:{job}:1"]
        for press, action in (("zoomsome", "zoom"), ("panleft", "pan")):
            card = await world.ended(await world.bob.select(menus.response, [press], custom_id=f"onward:{job}:1"))
            view = await newest(world)
            assert (view.action, view.parent, view.member_name) == (action, (job, 1), "bob")
            assert view.recipe.start.mask
            assert " 2" in card.content


async def test_a_wide_picture_becomes_a_square_and_a_square_stays_one(open_world: Any) -> None:
    async with open_world() as world:
        grid = await world.ended(
            await world.alice.slash(world.channel, "imagine", prompt="a lamp", image=PICTURE, count=1)
        )
        wide = await newest(world)
        assert wide.recipe.width == 2 * wide.recipe.height
        menus = await world.bob.click(grid, label="More…")
        await world.ended(await world.bob.select(menus.response, ["square"], custom_id=f"onward:{wide.id}:0"))
        view = await newest(world)
        assert (view.action, view.parent) == ("zoom", (wide.id, 0))
        assert (view.recipe.width, view.recipe.height) == (64, 64)
        assert view.recipe.start.mask
        with pytest.raises(Refused, match="a square already"):
            await world.studio.square(view.id, 0, Member("local:ann", "Ann", "local"), Place("web"))


async def test_a_picture_is_shown_beside_the_one_that_it_was_made_from(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, count=2)
        varied = await world.ended(await world.alice.click(grid, label="V2"))
        view = await newest(world)
        menus = await world.bob.click(varied, label="More…")
        shown = await world.bob.select(menus.response, ["compare"], custom_id=f"onward:{view.id}:1")
        assert shown.ephemeral
        assert text(shown).startswith("Before: **red apple**\nAfter: **")
        (attachment,) = shown.response.attachments
        with Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url))) as both:
            assert both.width > both.height
        await world.client.desk.moderation.delete(view.parent[0], Member(view.member_id, "alice", view.guild))
        gone = await world.bob.select(menus.response, ["compare"], custom_id=f"onward:{view.id}:1")
        assert "🚫" in said(gone)


async def test_two_presses_in_a_row_make_one_job(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, count=1)
        enlarged = await world.ended(await world.alice.click(grid, label="U1"))
        pressed = [await world.alice.click(enlarged, label="Zoom out 2×") for _ in range(2)]
        assert sum("already on its way" in text(each) for each in pressed) == 1
        assert [view.action for view in await world.studio.recent()] == ["zoom", "upscale", "imagine"]


async def test_a_part_is_drawn_anew_from_a_form(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, count=1)
        first = await newest(world)
        menus = await world.bob.click(grid, label="More…")
        asked = await world.bob.select(menus.response, ["edit"], custom_id=f"onward:{first.id}:0")
        assert set(fields(asked)) == {"mask", "prompt", "strength"}
        wrong = await world.bob.submit_modal(asked, {"mask": SQUARE, "prompt": "red apple", "strength": "much"})
        assert "from 0.05 to 1" in text(wrong)
        asked = await world.bob.select(menus.response, ["edit"], custom_id=f"onward:{first.id}:0")
        sent = await world.bob.submit_modal(asked, {"mask": SQUARE, "prompt": "a worm", "strength": "0,7"})
        await world.ended(sent)
        view = await newest(world)
        assert (view.action, view.prompt, view.parent) == ("edit", "a worm", (first.id, 0))
        assert view.recipe.start.strength == 0.7
        assert view.recipe.start.mask


async def test_branching_off_midway_by_sheet_menu_and_form(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, count=2, seed=7)
        first = await newest(world)
        enlarged = await world.ended(await world.alice.click(grid, label="U2"))
        shown = await world.bob.click(enlarged, label="Branch…")
        assert shown.ephemeral
        assert len(shown.response.attachments) == 1
        (menu,) = (each for each in walk_components(shown.response.components) if "custom_id" in each)
        assert menu["custom_id"] == f"rungs:{first.id}:1"
        assert [option["value"] for option in menu["options"]] == ["4", "8", "12", "16"]
        await world.restart()
        asked = await world.bob.select(shown.response, ["8"], custom_id=menu["custom_id"])
        assert fields(asked)["prompt"]["value"] == "red apple"
        await world.ended(await world.bob.submit_modal(asked, {"prompt": "red apple", "seed": "9", "steps": "60"}))
        view = await newest(world)
        assert (view.action, view.parent, view.prompt) == ("branch", (first.id, 1), "red apple")
        assert (view.recipe.steps, view.recipe.start.left) == (60, 8)
        assert (view.recipe.start.fresh, view.recipe.seed) == (True, 9)
        asked = await world.bob.select(shown.response, ["8"], custom_id=menu["custom_id"])
        wrong = await world.bob.submit_modal(asked, {"prompt": "pear --sampler ddim", "seed": "", "guidance": ""})
        assert "cannot be changed" in text(wrong)


async def test_what_was_stopped_is_offered_its_end(open_world: Any) -> None:
    async with open_world() as world:
        grid = await made(world, prompt="red apple --stop 50 --steps 40", count=1)
        first = await newest(world)
        menus = await world.bob.click(grid, label="More…")
        shown = await world.bob.select(menus.response, ["branch"], custom_id=f"onward:{first.id}:0")
        (menu,) = (each for each in walk_components(shown.response.components) if "custom_id" in each)
        said = [option.get("description") for option in menu["options"]]
        assert said == [*[None] * (len(said) - 1), ONWARD]
        last = menu["options"][-1]["value"]
        asked = await world.bob.select(shown.response, [last], custom_id=menu["custom_id"])
        await world.ended(await world.bob.submit_modal(asked, {"prompt": fields(asked)["prompt"]["value"]}))
        view = await newest(world)
        assert (view.action, view.recipe.start.step, view.recipe.last) == ("branch", int(last), 40)


async def test_a_branch_is_typed_as_job_picture_and_step(open_world: Any) -> None:
    async with open_world() as world:
        await made(world, count=2)
        first = await newest(world)
        offered = await world.alice.autocomplete(world.channel, "imagine", "branch", "", prompt="pear")
        assert [each["value"] for each in offered] == [first.id]
        for said, index, step in ((f"{first.id.lower()}/2:12", 1, 12), (first.id, 0, 12), (f"{first.id}:9", 0, 8)):
            await world.ended(await world.alice.slash(world.channel, "imagine", prompt="a pear", branch=said))
            view = await newest(world)
            assert (view.action, view.prompt, view.parent) == ("branch", "a pear", (first.id, index)), said
            assert isinstance(view.recipe.start, Branch)
            assert view.recipe.start.step == step, said


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 47, 200])
async def test_of_many_rungs_a_dozen_are_offered_from_the_first_to_the_last(count: int) -> None:
    steps = list(range(4, 4 + count))
    found = spread(steps)
    assert len(found) == len(set(found)) == min(count, OFFERED)
    assert (found[0], found[-1]) == (steps[0], steps[-1])
    assert found == sorted(found)
