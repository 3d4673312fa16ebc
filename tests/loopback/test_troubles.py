"""What Discord may do to a bot, the real bot survives: every picture is shown, once, whatever was in the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loopback.server import until
from loopback.troubles import EDITS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def three(scene: Any) -> list[Any]:
    """Three jobs at work, with their first previews out."""
    scene.street.painter.speed = 0.1
    acts = [await scene.imagine(f"{word} pear") for word in ("red", "green", "blue")]
    await until(lambda: all(act.message.attachments for act in acts))
    return acts


async def all_once(scene: Any, *acts: Any) -> None:
    """Each job's picture stands in its own answer, and nowhere else."""
    finals = await scene.shown(*acts)
    assert sorted(one.id for one in finals) == sorted(act.message.id for act in acts)
    assert len(scene.loopback.world.messages(scene.channel.id)) == len(acts)
    words = {each["description"] for one in finals for each in one.attachments}
    assert len(words) == len(acts)


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_storm_of_errors(scene: Any, status: int) -> None:
    acts = await three(scene)
    storm = scene.loopback.troubles.storm(status, path=EDITS, method="PATCH", seconds=2.0, retry_after=0.7)
    await all_once(scene, *acts)
    assert storm.met > 0


async def test_edits_that_took_effect_and_said_that_they_did_not(scene: Any) -> None:
    acts = await three(scene)
    storm = scene.loopback.troubles.storm(502, path=EDITS, method="PATCH", times=4, carried_out=True)
    broken = scene.loopback.troubles.break_lines(path=EDITS, method="PATCH", times=3, carried_out=True)
    await all_once(scene, *acts)
    assert storm.met == 4
    assert broken.met == 3


async def test_a_limit_of_all_requests_together(scene: Any) -> None:
    acts = await three(scene)
    storm = scene.loopback.troubles.storm(429, path=EDITS, times=3, retry_after=1.0, everywhere=True)
    await all_once(scene, *acts)
    assert storm.met == 3


async def test_slow_uploads_and_slow_answers(scene: Any) -> None:
    acts = await three(scene)
    slow = scene.loopback.troubles.slow(1.5, path=EDITS, method="PATCH", times=4, late=1.0)
    await all_once(scene, *acts)
    assert slow.met == 4


async def test_a_token_that_dies_in_the_midst_of_a_job(scene: Any) -> None:
    """At once by order; the final goes over the channel."""
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    await until(lambda: act.message.attachments)
    scene.loopback.laws.dead.add(act.record.token)
    scene.go_on()
    await all_once(scene, act)
    last = [each for each in scene.loopback.asked if each.method == "PATCH" and each.status == 200][-1]
    assert last.path == f"/channels/{scene.channel.id}/messages/{act.message.id}"


async def test_a_token_that_is_a_quarter_of_an_hour_old(scene: Any) -> None:
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    await until(lambda: act.message.attachments)
    scene.loopback.world.later(15 * 60)
    scene.go_on()
    await all_once(scene, act)
    assert any(each.status == 401 and act.record.token in each.path for each in scene.loopback.asked)


async def test_a_picture_that_is_too_large_takes_a_smaller_form(scene: Any) -> None:
    scene.alice = scene.person("modest", attachment_size_limit=3000)
    scene.loopback.laws.file = 1500  # less than was told
    act = await scene.imagine()
    (message,) = await scene.shown(act)
    assert message.attachments[0]["size"] <= 1500
    assert any(each.status == 413 and act.record.token in each.path for each in scene.loopback.asked)


async def test_the_gateway_drops_and_the_next_command_works(scene: Any) -> None:
    gateway = scene.loopback.gateway
    before = len(gateway.log)
    gateway.drop()
    act = await scene.imagine("sent while nobody listened")
    assert gateway.log[before:] == [("RESUME", 0)]
    await all_once(scene, act)


async def test_a_session_that_cannot_be_resumed(scene: Any) -> None:
    gateway = scene.loopback.gateway
    before = len(gateway.log)
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    gateway.forget()
    await until(gateway.ready)
    assert gateway.log[before:] == [("INVALID", 0), ("IDENTIFY", 0)]
    scene.go_on()
    again = await scene.imagine("a pear")
    await all_once(scene, act, again)


async def test_killed_in_the_midst_of_a_job(scene: Any) -> None:
    """The next process goes on, and there is one message and no more."""
    scene.street.painter.stand_at = 10
    acts = [await scene.imagine("one"), await scene.imagine("two")]
    await until(lambda: all(act.message.attachments for act in acts))
    await scene.street.bot.kill()
    scene.go_on()
    await asyncio.sleep(0.5)  # what ends now is told to nobody
    await scene.street.bot.start()
    await all_once(scene, *acts)


async def test_killed_before_the_first_answer_was_noted(scene: Any) -> None:
    """The answer is on its way to Discord, and takes effect while its sender dies."""
    scene.loopback.troubles.slow(0.0, path="/interactions/*", times=1, late=3.0)
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    await scene.street.bot.kill()
    scene.go_on()
    await scene.street.bot.start()
    await all_once(scene, act)
