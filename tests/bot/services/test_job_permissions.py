"""From a job that a member may use to one that they may not: the studio checks access at each use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.cli.imagine import local_engine
from bot.cli.imagine.job_inputs import KeyframeRef
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.policy.permissions import OTHER_GUILD, PRIVATE_JOB
from bot.services.job_permissions import ORIGINAL_FORBIDDEN
from tests.bot.conftest import png
from tests.bot.services.test_edits import finished, over

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


def follow_up_actions(services, job, who, here):
    """Every action that leads from an upscaled picture to its original."""
    return {
        "vary": lambda: services.variations.vary(job, 0, who, here),
        "remix": lambda: services.variations.remix(job, 0, "a red lamp", who, here),
        "edit": lambda: services.edits.edit(job, 0, png(64, 64, 255), who, here),
        "zoom": lambda: services.edits.zoom(job, 0, 2.0, who, here),
        "pan": lambda: services.edits.pan(job, 0, "left", who, here),
        "steps": lambda: services.edits.list_branch_steps(job, 0, who),
        "branch": lambda: services.edits.branch(job, 0, 20, who, here),
    }


async def test_a_public_upscale_does_not_open_its_private_original(workplace, until, ann, here):
    app = await workplace.house()
    await workplace.worker()
    await until(lambda: app.services.live_workers())
    await app.services.preferences.set_preference(ann.id, "results", "private")
    (ticket,) = await app.services.jobs.imagine("a lamp --steps 40 --count 1", ann, here)
    first = await over(app, ticket.job, until)
    await app.services.preferences.set_preference(ann.id, "results", "public")
    once = await over(app, (await app.services.variations.upscale(first.id, 0, ann, here)).job, until)
    twice = await over(app, (await app.services.variations.upscale(once.id, 0, ann, here)).job, until)
    assert (first.is_private, once.is_private, twice.is_private) == (True, False, False)
    before = len(await app.services.job_views.load_recent())
    for upscaled in (once, twice):
        for name, ask in follow_up_actions(app.services, upscaled.id, BOB, here).items():
            with pytest.raises(UserError) as caught:
                await ask()
            assert (caught.value.sentence, caught.value.status) == (ORIGINAL_FORBIDDEN.format(PRIVATE_JOB), 403), name
    assert len(await app.services.job_views.load_recent()) == before
    assert await app.services.edits.list_branch_steps(twice.id, 0, ann) == (10, 20), "the author may use it"


async def test_an_upscale_does_not_open_an_original_of_a_hidden_channel_or_another_server(workplace, until, ann, here):
    in_channel = replace(ann, channel="7")
    app, _, first = await finished(workplace, until, in_channel, here)
    upscaled = await over(
        app, (await app.services.variations.upscale(first.id, 0, replace(ann, channel="8"), here)).job, until
    )
    blind = replace(BOB, can_see=lambda channel: channel != "7")
    with pytest.raises(UserError, match="not yours to go on from"):
        await app.services.edits.list_branch_steps(upscaled.id, 0, blind)
    assert await app.services.edits.list_branch_steps(upscaled.id, 0, BOB) == (10, 20)
    with pytest.raises(UserError, match=OTHER_GUILD):
        await app.services.variations.vary(upscaled.id, 0, replace(BOB, guild="other"), here)


async def test_the_terminal_checks_access_in_the_store(workplace, until, ann, here):
    app, _, first = await finished(workplace, until, ann, here)
    rung = KeyframeRef(first.id, 0, 20)
    record, ladder = await local_engine._load_branch_source(app.store, workplace.settings, rung)
    assert (record.id, bool(ladder)) == (first.id, True)
    await app.services.preferences.set_preference(ann.id, "results", "private")
    (ticket,) = await app.services.jobs.imagine("a lamp --steps 40 --count 1", ann, here)
    hidden = await over(app, ticket.job, until)
    with pytest.raises(UserError, match=PRIVATE_JOB):
        await local_engine._load_branch_source(app.store, workplace.settings, KeyframeRef(hidden.id, 0, 20))
