"""The real bot survives Discord's faults: every picture is shown exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tools.loopback.faults import EDITS
from tools.loopback.server import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def start_three_jobs(scene: Any) -> list[Any]:
    """Starts three jobs and waits for their first previews."""
    scene.harness.painter.speed = 0.1
    acts = [await scene.imagine(f"{word} pear") for word in ("red", "green", "blue")]
    await wait_until(lambda: all(act.message.attachments for act in acts))
    return acts


async def assert_each_shown_once(scene: Any, *acts: Any) -> None:
    """Asserts that each job's picture is in its own answer, and nowhere else."""
    finals = await scene.wait_for_finals(*acts)
    assert sorted(one.id for one in finals) == sorted(act.message.id for act in acts)
    assert len(scene.loopback.world.list_messages(scene.channel.id)) == len(acts)
    descriptions = {each["description"] for one in finals for each in one.attachments}
    assert len(descriptions) == len(acts)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_storm_of_errors_loses_no_picture(scene: Any, status: int) -> None:
    acts = await start_three_jobs(scene)
    storm = scene.loopback.faults.storm(status, path=EDITS, method="PATCH", seconds=2.0, retry_after=0.7)
    await assert_each_shown_once(scene, *acts)
    assert storm.met_count > 0


@pytest.mark.slow
async def test_edits_that_took_effect_but_answered_an_error_show_each_picture_once(scene: Any) -> None:
    acts = await start_three_jobs(scene)
    storm = scene.loopback.faults.storm(502, path=EDITS, method="PATCH", times=4, carried_out=True)
    broken_lines = scene.loopback.faults.break_lines(path=EDITS, method="PATCH", times=3, carried_out=True)
    await assert_each_shown_once(scene, *acts)
    assert storm.met_count == 4
    assert broken_lines.met_count == 3


@pytest.mark.slow
async def test_a_global_rate_limit_loses_no_picture(scene: Any) -> None:
    acts = await start_three_jobs(scene)
    storm = scene.loopback.faults.storm(429, path=EDITS, times=3, retry_after=1.0, is_global=True)
    await assert_each_shown_once(scene, *acts)
    assert storm.met_count == 3


@pytest.mark.slow
async def test_slow_uploads_and_slow_answers_lose_no_picture(scene: Any) -> None:
    acts = await start_three_jobs(scene)
    slow_answers = scene.loopback.faults.slow_down(1.5, path=EDITS, method="PATCH", times=4, delay_after=1.0)
    await assert_each_shown_once(scene, *acts)
    assert slow_answers.met_count == 4


async def test_a_token_that_dies_during_a_job_is_replaced_by_the_channel(scene: Any) -> None:
    """The token expires at once, so the final goes by channel."""
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    await wait_until(lambda: act.message.attachments)
    scene.loopback.rules.expired_tokens.add(act.record.token)
    scene.resume_jobs()
    await assert_each_shown_once(scene, act)
    last = [each for each in scene.loopback.requests if each.method == "PATCH" and each.status == 200][-1]
    assert last.path == f"/channels/{scene.channel.id}/messages/{act.message.id}"


async def test_a_token_that_expires_after_15_minutes_loses_no_picture(scene: Any) -> None:
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    await wait_until(lambda: act.message.attachments)
    scene.loopback.world.advance_clock_by(15 * 60)
    scene.resume_jobs()
    await assert_each_shown_once(scene, act)
    assert any(each.status == 401 and act.record.token in each.path for each in scene.loopback.requests)


async def test_a_picture_that_is_too_large_is_sent_smaller(scene: Any) -> None:
    scene.alice = scene.person("modest", attachment_size_limit=3000)
    scene.loopback.rules.max_file_bytes = 1500  # less than the interaction stated
    act = await scene.imagine()
    (message,) = await scene.wait_for_finals(act)
    assert message.attachments[0]["size"] <= 1500
    assert any(each.status == 413 and act.record.token in each.path for each in scene.loopback.requests)


async def test_the_next_command_works_after_the_gateway_drops(scene: Any) -> None:
    gateway = scene.loopback.gateway
    before = len(gateway.log)
    gateway.close_connections()
    act = await scene.imagine("sent while nobody listened")
    assert gateway.log[before:] == [("RESUME", 0)]
    await assert_each_shown_once(scene, act)


@pytest.mark.slow
async def test_jobs_survive_a_session_that_cannot_be_resumed(scene: Any) -> None:
    gateway = scene.loopback.gateway
    before = len(gateway.log)
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    gateway.drop_sessions()
    await wait_until(gateway.has_all_shards)
    assert gateway.log[before:] == [("INVALID", 0), ("IDENTIFY", 0)]
    scene.resume_jobs()
    second_act = await scene.imagine("a pear")
    await assert_each_shown_once(scene, act, second_act)


@pytest.mark.slow
async def test_a_bot_killed_during_a_job_shows_each_picture_once(scene: Any) -> None:
    """The next process continues, and each job has exactly one message."""
    scene.harness.painter.pause_step = 10
    acts = [await scene.imagine("one"), await scene.imagine("two")]
    await wait_until(lambda: all(act.message.attachments for act in acts))
    await scene.harness.bot.kill()
    scene.resume_jobs()
    await asyncio.sleep(0.5)  # jobs that end now have no listener
    await scene.harness.bot.start()
    await assert_each_shown_once(scene, *acts)


@pytest.mark.slow
async def test_a_bot_killed_before_it_stored_the_first_answer_shows_the_picture_once(scene: Any) -> None:
    """The answer is under way to Discord, and takes effect while the bot dies."""
    scene.loopback.faults.slow_down(0.0, path="/interactions/*", times=1, delay_after=3.0)
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    await scene.harness.bot.kill()
    scene.resume_jobs()
    await scene.harness.bot.start()
    await assert_each_shown_once(scene, act)
