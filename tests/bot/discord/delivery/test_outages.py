"""Outages, limits, deleted messages, a bot that was offline: every finished picture arrives, once."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import discord
import pytest

from bot.discord import responses
from bot.discord.cards import pictures
from bot.discord.cards.job_cards import Card
from bot.discord.delivery import courier, discord_api, edit_policy, final_messages
from bot.discord.delivery.discord_api import DestinationGone, MessageClient, RetryLater
from bot.discord.delivery.edit_policy import Edit
from bot.discord.delivery.tracked_messages import TrackedMessages
from bot.domain.dto import Member
from bot.domain.errors import UserError
from shared.discord_jobs import start_paused_job, wait_until_delivered

pytestmark = pytest.mark.asyncio

BY_TOKEN = "/webhooks/*/messages/*"
IN_CHANNEL = "/channels/*/messages/*"


def edit_paths(world: Any) -> list[str]:
    return [each.path for each in world.env.http_requests if each.method == "PATCH"]


def has_picture(message: discord.Message) -> bool:
    return message.attachments[0].filename.startswith("darkroom-")


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_outage_delays_a_final_but_does_not_lose_it(open_world: Any, status: int) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        world.env.inject_error("PATCH", "*", status=status, times=2)
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))


@pytest.mark.slow
async def test_a_dead_token_falls_back_to_the_channel(open_world: Any) -> None:
    async with open_world() as world:
        world.env.inject_error("PATCH", BY_TOKEN, status=401, code=50027, message="Invalid Webhook Token", times=None)
        result = await start_paused_job(world)
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))
        by_token = [path for path in edit_paths(world) if path.startswith("/webhooks/")]
        assert len(by_token) == 1, "a dead token is not tried again: Discord counts such requests"
        assert len(edit_paths(world)) >= 3
        (view,) = await world.services.job_views.load_recent()
        assert (await world.deliveries.answer_destination(view.id)).address["token_until"] == "0"


async def test_with_a_valid_token_no_channel_route_is_used(open_world: Any) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        world.painter.step_gate.set()
        await world.wait_for_end(result)
        assert edit_paths(world)
        assert not any(path.startswith("/channels/") for path in edit_paths(world))


async def test_a_job_that_ended_while_the_bot_was_offline_is_shown_once(open_world: Any) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        await world.stop_courier()
        world.painter.step_gate.set()
        await world.wait_until(lambda: world.painter.finished_jobs)
        (job,) = world.painter.finished_jobs
        while (await world.services.job_views.load_view(job)).state != "finished":
            await asyncio.sleep(0.02)
        await world.restart()
        final_message = await world.wait_for_end(result)
        assert has_picture(final_message)
        assert len(world.channel.history()) == 1
        await wait_until_delivered(world)
        before = len(edit_paths(world))
        await world.restart()
        await asyncio.sleep(0.5)
        assert len(edit_paths(world)) == before, "it is not shown again"


async def test_a_final_missed_in_a_store_outage_is_delivered_later(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        await world.stop_courier()
        original = world.deliveries.answer_destination
        is_failing = [True]

        async def fail_or_answer(job: str) -> Any:
            if is_failing[0]:
                raise OSError("the disk is away")
            return await original(job)

        monkeypatch.setattr(courier, "SWEEP_SECONDS", 0.2)
        monkeypatch.setattr(world.deliveries, "answer_destination", fail_or_answer)
        monkeypatch.setattr(world.deliveries, "list_undelivered", fail_three_times(world.deliveries.list_undelivered))
        await world.restart()
        world.painter.step_gate.set()
        await world.wait_until(lambda: "was not handled" in caplog.text)
        await world.wait_until(lambda: world.painter.finished_jobs)
        is_failing[0] = False
        assert has_picture(await world.wait_for_end(result))


def fail_three_times(original: Any) -> Any:
    answers = [OSError("the disk is away")] * 3

    async def fail_first(kind: Any) -> Any:
        if answers:
            raise answers.pop()
        return await original(kind)

    return fail_first


async def test_a_message_whose_id_was_not_stored_is_found_again(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_messages, "ID_GRACE_SECONDS", 0.5)
    async with open_world() as world:
        result = await start_paused_job(world)
        await world.stop_courier()
        (view,) = await world.services.job_views.load_recent()
        await world.deliveries.update_address(view.id, message="")
        world.painter.step_gate.set()
        await world.wait_until(lambda: world.painter.finished_jobs)
        await world.restart()
        assert has_picture(await world.wait_for_end(result))
        assert len(world.channel.history()) == 1


async def test_a_sweep_and_an_event_at_once_track_one_message(open_world: Any) -> None:
    """With two, the final was rendered from the view of the one that never heard of the end: *It failed.*"""
    async with open_world() as world:
        await start_paused_job(world)
        (view,) = await world.services.job_views.load_recent()
        destination = await world.deliveries.answer_destination(view.id)
        messages = TrackedMessages(world.services, time.monotonic)
        first, second = await asyncio.gather(*(messages.track(view, destination) for _ in range(2)))
        assert first is second is messages[view.id]


@pytest.mark.slow
async def test_a_slow_first_answer_is_not_given_up(open_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_messages, "ID_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(courier, "SWEEP_SECONDS", 0.3)
    async with open_world() as world:
        show = responses._send_card

        async def record_slowly(*args: Any, **kwargs: Any) -> int:
            if not kwargs["is_first"]:
                await world.wait_until(lambda: len(world.painter.finished_jobs) == 2)
                await asyncio.sleep(1.0)
            return await show(*args, **kwargs)

        monkeypatch.setattr(responses, "_send_card", record_slowly)
        await world.alice.slash(world.channel, "imagine", prompt="{red, blue} apple")
        await world.wait_until(lambda: [len(each.attachments) for each in world.channel.history()] == [1, 1])
        await world.wait_until(lambda: not world.client.pending_tokens)
        await wait_until_delivered(world)
        assert [has_picture(each) for each in world.channel.history()] == [True, True]
        first, message = world.channel.history()
        job = await world.deliveries.find_job(str(message.id))
        await world.deliveries.update_address(job, message="")
        await world.deliveries.mark_delivered(job, "answer", final_messages.RESPONSE_NEVER_ARRIVED)
        await message.edit(content="it came all the same", attachments=[], view=None)
        await world.deliveries.update_address(job, message=str(message.id))
        await world.wait_until(lambda: world.message(message.id).attachments)
        await wait_until_delivered(world)
        assert (await world.deliveries.list_deliveries(job))["answer"].reason == ""
        assert world.message(first.id).content == first.content


@pytest.mark.slow
@pytest.mark.parametrize("stored_content", [b"", b"\x89PNG\r\n\x1a\n and nothing that it promised"])
async def test_a_missing_or_broken_picture_leaves_no_message_stuck(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, stored_content: bytes
) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)

        async def pictures(*_: object) -> list[bytes]:
            if not stored_content:
                raise UserError("This picture is not kept any more.", 404)
            return 4 * [stored_content]

        monkeypatch.setattr(world.services.gallery, "read_all_for_members", pictures)
        world.painter.step_gate.set()
        final_message = await world.wait_for_end(result)
        assert "Its picture cannot be shown" in final_message.content
        await wait_until_delivered(world)


async def test_a_picture_that_is_too_large_is_made_smaller(open_world: Any) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        world.env.inject_error("PATCH", "*", status=413, code=40005, message="Request entity too large", times=3)
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))


async def test_an_old_message_that_takes_no_more_edits_counts_as_gone(open_world: Any) -> None:
    async with open_world() as world:
        old = await start_paused_job(world)
        (view,) = await world.services.job_views.load_recent()
        await world.deliveries.update_address(view.id, token_until="0")
        await world.restart()
        path = f"/channels/*/messages/{old.response.id}"
        world.env.inject_error("PATCH", path, status=429, code=30046, message="Maximum number of edits", times=None)
        world.painter.step_gate.set()
        (direct_message,) = await world.wait_until(world.alice.user.dm_channel.history)
        assert "too old to be changed" in direct_message.content


@pytest.mark.slow
async def test_an_outage_costs_one_rendering_and_one_warning(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edit_policy, "FIRST_PAUSE", 0.1)
    rendered_jobs = []
    original_encode = pictures._encode_pictures

    def count_rendering(*args: Any) -> Any:
        rendered_jobs.append(args)
        return original_encode(*args)

    monkeypatch.setattr(pictures, "_encode_pictures", count_rendering)
    monkeypatch.setattr(discord_api, "_delivery_error", lambda error: RetryLater(0.0, error, outage=True))
    async with open_world() as world:
        result = await start_paused_job(world)
        world.env.inject_error("PATCH", "*", status=503, times=4)
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))
    assert len(rendered_jobs) == 1
    assert caplog.text.count("Discord is unreachable") == 1


async def test_a_given_up_delivery_is_retried_without_a_restart(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(edit_policy, "FIRST_JOB_PAUSE", 0.5)
    monkeypatch.setattr(courier, "SWEEP_SECONDS", 0.2)
    async with open_world() as world:
        result = await start_paused_job(world)
        original = world.deliveries.mark_delivered
        is_disk_full = [True]

        async def mark_or_fail(*args: Any) -> None:
            if is_disk_full[0]:
                is_disk_full[0] = False
                raise OSError("the disk is full")
            await original(*args)

        monkeypatch.setattr(world.deliveries, "mark_delivered", mark_or_fail)
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))
        await world.wait_until(lambda: not is_disk_full[0])
        await wait_until_delivered(world)


async def test_a_final_card_that_discord_rejects_ends_with_a_reason(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "MAX_ATTEMPTS", 1)
    async with open_world() as world:
        await start_paused_job(world)
        form_error = {"status": 400, "code": 50035, "message": "Invalid Form Body", "times": None}
        world.env.inject_error("PATCH", "*", **form_error)
        world.env.inject_error("POST", "/channels/*/messages", **form_error)
        world.painter.step_gate.set()
        (view,) = await world.services.job_views.load_recent()
        while (await world.services.job_views.load_view(view.id)).state != "finished":
            await asyncio.sleep(0.02)
        await wait_until_delivered(world)
        undeliverable = await world.deliveries.list_undeliverable(view.member_id)
        assert undeliverable == {view.id: f"{discord_api.UNKNOWN_REASON} {discord_api.UNKNOWN_REASON}"}


@pytest.mark.slow
@pytest.mark.parametrize("is_readable", [True, False])
async def test_a_notice_from_before_a_long_absence_in_a_busy_channel_is_not_repeated(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, is_readable: bool
) -> None:
    monkeypatch.setattr(discord_api, "CLOCK_MARGIN", 1000 * 86_400.0)  # the simulated Discord has another clock
    async with open_world() as world:
        admin = Member("discord:1", "admin", f"discord:{world.guild.id}", is_admin=True)
        await world.app.services.rule_admin.set_rule(admin, "guild", "", "long_ping", "0")
        await start_paused_job(world)
        original_update = world.deliveries.update_address
        block_event = asyncio.Event()

        async def block_at_notice(job: str, role: Any = "answer", /, **address: str) -> None:
            if role == "notice" and "message" in address:
                block_event.set()
                await asyncio.Event().wait()
            await original_update(job, role, **address)

        monkeypatch.setattr(world.deliveries, "update_address", block_at_notice)
        world.painter.step_gate.set()
        await block_event.wait()
        await world.stop_courier()
        monkeypatch.setattr(world.deliveries, "update_address", original_update)
        if not is_readable:
            monkeypatch.setattr(discord_api, "NONCE_SECONDS", 0.0)
            closed_error = {"status": 403, "code": 50001, "message": "Missing Access", "times": None}
            world.env.inject_error("GET", "/channels/*/messages", **closed_error)
        else:
            for number in range(55):
                await world.bob.send(world.channel, f"talk {number}")
        await world.restart()
        await wait_until_delivered(world)
        notices = [each for each in world.channel.history() if each.content.startswith("<@")]
        assert len(notices) == 1
        (view,) = await world.services.job_views.load_recent()
        assert (await world.deliveries.list_deliveries(view.id))["notice"].reason == (
            "" if is_readable else discord_api.CANNOT_READ_CHANNEL
        )


async def test_a_too_large_preview_is_replaced_by_text(open_world: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with open_world() as world:
        world.env.inject_error("PATCH", "*", status=413, code=40005, message="Request entity too large", times=1)
        result = await start_paused_job(world)
        assert world.message(result.response.id).attachments == []
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))
        assert "was not edited" not in caplog.text


async def test_a_preview_that_hangs_does_not_hold_up_its_final(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_messages, "EDIT_TIMEOUT", 0.5)
    async with open_world() as world:
        request = world.client.http.request
        hung_routes = []
        global_limit = world.client.http._global_over = asyncio.Event()

        async def hang_on_edit(route: Any, **kwargs: Any) -> Any:
            if route.method == "PATCH" and kwargs.get("files") and "darkroom-" not in str(kwargs["files"][0].filename):
                hung_routes.append(route)
                await asyncio.sleep(1.0)
                global_limit.set()  # as the library does after its sleep
                await asyncio.sleep(60.0)
            return await request(route, **kwargs)

        world.client.http.request = hang_on_edit
        world.painter.pause_step = 5
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.wait_until(lambda: hung_routes)
        world.painter.pause_step = None
        world.painter.step_gate.set()
        async with asyncio.timeout(15):
            assert has_picture(await world.wait_for_end(result))
        assert global_limit.is_set(), "the library sleeps to the end"


async def test_a_rate_limit_by_the_library_counts_as_gone_for_an_old_message(open_world: Any) -> None:
    async with open_world() as world:
        for age, kind in ((7200.0, DestinationGone), (60.0, RetryLater)):
            message = discord.utils.time_snowflake(datetime.fromtimestamp(time.time() - age, UTC))
            address = {"channel": str(world.channel.id), "message": str(message)}

            async def raise_rate_limit(*_: object, **__: object) -> None:
                raise discord.RateLimited(40.0)

            world.client.http.edit_message = raise_rate_limit
            with pytest.raises(kind):
                await MessageClient(world.client).edit(address, Card("words"), (), time.time())


@pytest.mark.parametrize(("times", "held_method"), [(3, True), (4, False)])
async def test_an_endless_limit_holds_up_one_message_and_not_its_bucket(times: int, held_method: bool) -> None:
    services = SimpleNamespace(job_views=None, deliveries=None, rule_admin=None)
    post = courier.Courier(services, None)  # type: ignore[arg-type]
    case = SimpleNamespace(rate_limit_count=0, frames={}, has_new_frames=False)
    post._messages = {"a": case}  # type: ignore[assignment]

    async def raise_rate_limit(*_: object) -> None:
        raise RetryLater(5.0, "limited", rate_limited=True)

    post._try_send = raise_rate_limit  # type: ignore[method-assign]
    for _ in range(times):
        post.edit_policy._get_bucket("c").blocked_until = 0.0
        await post._send_edit(Edit("a", "c", "final", courier.FinalMessage("a", "answer"), 0.0))
    assert (post.edit_policy._get_bucket("c").blocked_until > 0.0) == held_method


async def test_commands_are_registered_once_and_not_at_each_start(open_world: Any) -> None:
    async with open_world() as world:

        def registrations() -> int:
            return sum(each.method == "PUT" and each.path.endswith("/commands") for each in world.env.http_requests)

        assert registrations() == 1
        await world.restart()
        assert registrations() == 1
        (world.folder / "synced").write_text("another tree")
        await world.restart()
        assert registrations() == 2


async def test_an_internal_error_gives_an_apology_and_a_log_line(
    open_world: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:

        async def raise_error(*_args: object, **_kwargs: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(world.services.jobs, "imagine", raise_error)
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        assert result.ephemeral
        assert "Something broke on our side" in result.response.content
        assert "a bug" in caplog.text
        assert world.env.errors, "simcord saw it too"
