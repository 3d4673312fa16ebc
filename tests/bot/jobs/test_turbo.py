"""Turbo jobs over a real broker and store: what is asked for reaches the worker, and derived jobs keep it."""

from __future__ import annotations

import msgspec
import pytest

from bot.domain.dto import Member
from bot.jobs.init_images import InitImages
from engine.contract import Lora
from shared import app_harness
from shared.app_harness import finish_job, wait_for_end
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


@pytest.fixture(autouse=True)
def _turbo_model(monkeypatch):
    """The fake worker's model has a turbo LoRA."""
    make_profile = app_harness.make_profile

    def with_turbo(*arguments):
        profile = make_profile(*arguments)
        return msgspec.structs.replace(profile, loras=(Lora("turbo"),), samplers=(*profile.samplers, "lcm"))

    monkeypatch.setattr(app_harness, "make_profile", with_turbo)


async def test_a_turbo_job_and_the_jobs_made_from_it_run_four_steps(harness, wait_until, ann, destination):
    app, _, view = await finish_job(harness, wait_until, ann, destination, "a lamp --seed 7 --count 2 --turbo")
    services = app.services
    jobs = {}
    assert (view.state, view.notes) == ("finished", ())
    jobs["vary"] = await services.variations.vary(view.id, 0, BOB, destination)
    jobs["reroll"] = await services.variations.reroll(view.id, BOB, destination)
    (jobs["remix"],) = await services.variations.remix(view.id, 0, "a red lamp", BOB, destination)
    jobs["zoom"] = await services.edits.zoom(view.id, 1, 2.0, BOB, destination)
    images = InitImages((make_png(32, 32),))
    (jobs["imagine"],) = await services.jobs.imagine(
        "a lamp", ann, destination, init_images=images, strength=0.3, turbo=True
    )
    for action, accepted in jobs.items():
        derived = await wait_for_end(app, accepted.job, wait_until)
        task = derived.task
        assert (derived.state, derived.action) == ("finished", action)
        assert (task.sampler, task.guidance, [lora.name for lora in task.loras]) == ("lcm", 1.0, ["turbo"]), action
        assert task.steps - task.first_step == 4, action
