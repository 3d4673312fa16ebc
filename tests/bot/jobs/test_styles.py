"""Styles of real jobs: which prompts get them, and what becomes of them where a picture is changed."""

from __future__ import annotations

from typing import Any

import pytest

from bot.app import wiring
from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages
from engine.contract import JobRejected, Recipe
from engine.prompt.style_guide import StyleGuide
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
GUIDE = StyleGuide("3d render", {"flat design": frozenset({"fox"})})
STYLES = ("3d render", "flat design")


@pytest.fixture(autouse=True)
def _guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "read_style_guide", lambda: GUIDE)


async def open_with_worker(harness: Any, wait_until: Any) -> Any:
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    return app


async def load_recipe(app: Any, job: str) -> Recipe:
    return (await app.services.job_views.load_record(job)).task


async def imagine(app: Any, text: str, ann: Member, destination: Destination, **options: Any) -> tuple[str, Recipe]:
    (accepted,) = await app.services.jobs.imagine(text, ann, destination, **options)
    return accepted.job, await load_recipe(app, accepted.job)


async def test_prompts_of_listed_things_get_styles(
    harness: Any, wait_until: Any, ann: Member, destination: Destination
) -> None:
    app = await open_with_worker(harness, wait_until)
    for text, expected in (("fox, cute", STYLES), ("fox --raw", ()), ("lamp", ()), ("fox, oil painting", ())):
        assert (await imagine(app, text, ann, destination))[1].styles == expected
    _, recipe = await imagine(app, "fox", ann, destination, init_images=InitImages((make_png(64, 64),)))
    assert recipe.styles == (), "the picture has a style"


async def test_a_job_that_waits_for_its_first_worker_is_the_same(
    harness: Any, ann: Member, destination: Destination
) -> None:
    app = await harness.open_app()
    assert (await imagine(app, "fox", ann, destination))[1].styles == STYLES


@pytest.mark.slow
async def test_a_picture_that_is_zoomed_out_of_keeps_its_style(
    harness: Any, wait_until: Any, ann: Member, destination: Destination
) -> None:
    app = await open_with_worker(harness, wait_until)
    job, _ = await imagine(app, "fox --seed 4 --count 2 --steps 4", ann, destination)

    async def is_finished() -> bool:
        return (await app.services.job_views.load_view(job)).state == "finished"

    await wait_until(is_finished)
    zoomed = await app.services.edits.zoom(job, 1, 1.5, ann, destination)
    recipe = await load_recipe(app, zoomed.job)
    assert (recipe.styles, recipe.concepts[0].text) == ((STYLES[(4 + 1) % 2],), "fox")


async def test_a_damaged_list_of_styles_stops_the_bot_in_one_sentence(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> StyleGuide:
        raise JobRejected("The model's styles/labels.json cannot be read: it is cut off.", "model")

    monkeypatch.setattr(wiring, "read_style_guide", refuse)
    with pytest.raises(UserError, match=r"labels\.json cannot be read"):
        await harness.open_app()
