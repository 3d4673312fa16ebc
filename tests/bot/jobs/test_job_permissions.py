"""The services check access at each use: a member's own job may lead to one that they may not see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.cli.imagine import local_engine
from bot.cli.imagine.job_inputs import KeyframeRef
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.views import ORIGINAL_FORBIDDEN
from bot.policy.permissions import OTHER_GUILD, PRIVATE_JOB
from shared.app_harness import finish_job, wait_for_end
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


def follow_up_actions(services, job, member, destination):
    """Every action that leads from an upscaled picture to its original."""
    return {
        "vary": lambda: services.variations.vary(job, 0, member, destination),
        "remix": lambda: services.variations.remix(job, 0, "a red lamp", member, destination),
        "edit": lambda: services.edits.edit(job, 0, make_png(64, 64, 255), member, destination),
        "zoom": lambda: services.edits.zoom(job, 0, 2.0, member, destination),
        "pan": lambda: services.edits.pan(job, 0, "left", member, destination),
        "steps": lambda: services.edits.list_branch_steps(job, 0, member),
        "branch": lambda: services.edits.branch(job, 0, 20, member, destination),
    }


async def test_a_public_upscale_does_not_open_its_private_original(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    await app.services.preferences.set_preference(ann.id, "results", "private")
    (accepted,) = await app.services.jobs.imagine("a lamp --steps 40 --count 1", ann, destination)
    first = await wait_for_end(app, accepted.job, wait_until)
    await app.services.preferences.set_preference(ann.id, "results", "public")
    upscaled_once = await wait_for_end(
        app, (await app.services.variations.upscale(first.id, 0, ann, destination)).job, wait_until
    )
    upscaled_twice = await wait_for_end(
        app, (await app.services.variations.upscale(upscaled_once.id, 0, ann, destination)).job, wait_until
    )
    assert (first.is_private, upscaled_once.is_private, upscaled_twice.is_private) == (True, False, False)
    before = len(await app.services.job_views.load_recent())
    for upscale_view in (upscaled_once, upscaled_twice):
        for name, request in follow_up_actions(app.services, upscale_view.id, BOB, destination).items():
            with pytest.raises(UserError) as error:
                await request()
            assert (error.value.sentence, error.value.status) == (ORIGINAL_FORBIDDEN.format(PRIVATE_JOB), 403), name
    assert len(await app.services.job_views.load_recent()) == before
    assert await app.services.edits.list_branch_steps(upscaled_twice.id, 0, ann) == (10, 20), "the author may use it"


async def test_an_upscale_does_not_open_an_original_of_a_hidden_channel_or_another_server(
    harness, wait_until, ann, destination
):
    in_channel = replace(ann, channel="7")
    app, _, first = await finish_job(harness, wait_until, in_channel, destination)
    upscale_view = await wait_for_end(
        app,
        (await app.services.variations.upscale(first.id, 0, replace(ann, channel="8"), destination)).job,
        wait_until,
    )
    member_without_access = replace(BOB, can_see=lambda channel: channel != "7")
    with pytest.raises(UserError, match="you may not use its original"):
        await app.services.edits.list_branch_steps(upscale_view.id, 0, member_without_access)
    assert await app.services.edits.list_branch_steps(upscale_view.id, 0, BOB) == (10, 20)
    with pytest.raises(UserError, match=OTHER_GUILD):
        await app.services.variations.vary(upscale_view.id, 0, replace(BOB, guild="other"), destination)


async def test_the_terminal_checks_access_in_the_store(harness, wait_until, ann, destination):
    app, _, first = await finish_job(harness, wait_until, ann, destination)
    keyframe = KeyframeRef(first.id, 0, 20)
    record, ladder, followed = await local_engine._load_branch_source(app.store, harness.settings, keyframe)
    assert (record.id, bool(ladder), followed) == (first.id, True, {})
    await app.services.preferences.set_preference(ann.id, "results", "private")
    (accepted,) = await app.services.jobs.imagine("a lamp --steps 40 --count 1", ann, destination)
    hidden_view = await wait_for_end(app, accepted.job, wait_until)
    with pytest.raises(UserError, match=PRIVATE_JOB):
        await local_engine._load_branch_source(app.store, harness.settings, KeyframeRef(hidden_view.id, 0, 20))
