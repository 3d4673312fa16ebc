"""Where a job's final card goes: one answer, one notice that pings, one direct message; never two of a kind."""

from __future__ import annotations

import asyncio
from typing import Any

import discord
import pytest

from bot.discord.delivery import final_messages
from bot.domain.dto import Member
from shared.discord_jobs import get_message, start_paused_job, wait_until_delivered

pytestmark = pytest.mark.asyncio


async def make_jobs_long(world: Any, seconds: int = 0) -> None:
    """Treat every job as long from now on."""
    admin = Member("discord:1", "admin", f"discord:{world.guild.id}", is_admin=True)
    await world.app.services.rule_admin.set_rule(admin, "guild", "", "long_ping", str(seconds))


async def set_preferences(world: Any, **values: str) -> None:
    for name, text in values.items():
        await world.app.services.preferences.set_preference(f"discord:{world.alice.id}", name, text)


def direct_messages(world: Any) -> list[discord.Message]:
    """List Alice's direct messages."""
    return world.alice.user.dm_channel.history()


def has_picture(message: Any) -> bool:
    return any(each.filename.startswith("darkroom-") for each in message.attachments)


async def only_job_id(world: Any) -> str:
    (view,) = await world.services.job_views.load_recent()
    return view.id


async def test_a_long_job_ends_with_a_new_message_that_pings_its_author_alone(open_world: Any) -> None:
    async with open_world() as world:
        await make_jobs_long(world)
        result = await start_paused_job(world)
        world.painter.step_gate.set()
        await wait_until_delivered(world)
        answer, notice = sorted(world.channel.history(), key=lambda each: each.id)
        assert answer.id == result.response.id
        assert notice.content.startswith(f"<@{world.alice.id}>")
        assert [each.id for each in notice.mentions] == [world.alice.id]
        assert not notice.mention_everyone
        assert has_picture(notice)
        assert notice.attachments[0].description == "red apple"
        assert world.labels(notice)[0] == "U1"
        assert notice.reference
        assert notice.reference.message_id == answer.id
        assert "\n" not in answer.content
        assert f"/{world.channel.id}/{notice.id}" in answer.content
        assert answer.attachments == []
        assert answer.components == []
        assert answer.mentions == []
        posts = [each.json for each in world.env.http_requests if each.method == "POST" and "/channels" in each.path]
        assert [post["enforce_nonce"] for post in posts] == [True]
        assert len(posts[0]["nonce"]) <= 25
        assert posts[0]["allowed_mentions"] == {"parse": [], "users": [world.alice.id]}
        deliveries = await world.deliveries.list_deliveries(await only_job_id(world))
        assert deliveries["notice"].message == str(notice.id)
        assert await world.deliveries.find_job(str(notice.id)) == await world.deliveries.find_job(str(answer.id))


@pytest.mark.slow
async def test_short_jobs_and_jobs_without_ping_end_in_their_answer(open_world: Any) -> None:
    async with open_world() as world:
        await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        await make_jobs_long(world)
        await set_preferences(world, ping="off")
        final_message = await world.wait_for_end(await start_and_resume(world))
        await wait_until_delivered(world)
        assert has_picture(final_message)
        assert len(world.channel.history()) == 2
        assert world.env.backend.dm_channels == {}


async def start_and_resume(world: Any) -> Any:
    result = await start_paused_job(world)
    world.painter.step_gate.set()
    return result


async def test_a_failed_long_job_pings_its_author_in_a_notice(open_world: Any) -> None:
    async with open_world() as world:
        await make_jobs_long(world)
        await world.alice.slash(world.channel, "imagine", prompt="impossible apple")
        await wait_until_delivered(world)
        answer, notice = sorted(world.channel.history(), key=lambda each: each.id)
        assert "out of bounds" in notice.content
        assert [each.id for each in notice.mentions] == [world.alice.id]
        assert "It failed" in answer.content


async def test_where_the_bot_may_not_post_the_answer_shows_the_pictures(open_world: Any) -> None:
    async with open_world() as world:
        await make_jobs_long(world)
        quiet_channel = world.guild.create_text_channel(
            "quiet", overwrites={world.client.user: discord.PermissionOverwrite(send_messages=False)}
        )
        await start_paused_job(world, channel_handle=quiet_channel)
        world.painter.step_gate.set()
        await wait_until_delivered(world)
        (message,) = quiet_channel.history()
        assert has_picture(message)
        notice = (await world.deliveries.list_deliveries(await only_job_id(world)))["notice"]
        assert notice.reason == "I am not allowed to write in its channel."
        assert await world.deliveries.list_undeliverable(f"discord:{world.alice.id}") == {}


async def test_with_the_direct_preference_pictures_also_come_by_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        await set_preferences(world, direct="on")
        final_message = await world.wait_for_end(await start_and_resume(world))
        await wait_until_delivered(world)
        assert has_picture(final_message)
        (direct_message,) = direct_messages(world)
        assert has_picture(direct_message)
        assert world.labels(direct_message) == world.labels(final_message)
        assert "comes to you" not in direct_message.content


async def break_destination(world: Any, failure: str, message: int) -> None:
    backend = world.env.backend
    if failure == "message":
        backend.delete_message(world.channel.id, message)
        return
    code, status = {"channel": (10003, 404), "access": (50001, 403), "archived": (50083, 400)}[failure]
    world.env.inject_error("*", f"/channels/{world.channel.id}*", status=status, code=code, message=failure, times=None)
    world.env.inject_error("*", "/webhooks/*", status=404, code=10015, message="Unknown Webhook", times=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "explanation"),
    [
        ("message", "message was deleted"),
        ("channel", "channel was deleted"),
        ("access", "no longer see its channel"),
        ("archived", "thread is archived"),
    ],
)
async def test_a_lost_destination_sends_the_pictures_to_the_author(
    open_world: Any, failure: str, explanation: str
) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        await break_destination(world, failure, result.response.id)
        world.painter.step_gate.set()
        await wait_until_delivered(world)
        (direct_message,) = direct_messages(world)
        assert has_picture(direct_message)
        assert explanation in direct_message.content
        assert "So it comes to you." in direct_message.content
        assert [each for each in world.channel.history() if has_picture(each)] == []


async def test_with_closed_direct_messages_a_result_waits_with_its_reason(open_world: Any) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        await break_destination(world, "message", result.response.id)
        closed_error = {"status": 403, "code": 50007, "message": "Cannot send messages to this user", "times": None}
        world.env.inject_error("POST", "/channels/*/messages", **closed_error)
        world.painter.step_gate.set()
        await wait_until_delivered(world)
        undeliverable = await world.deliveries.list_undeliverable(f"discord:{world.alice.id}")
        assert undeliverable == {
            await only_job_id(world): "Its message was deleted. Your direct messages are closed to me."
        }
        after = await world.bob.slash(world.channel, "queue")
        assert after.ephemeral, "the courier and the bot live on"


async def test_an_answer_that_never_arrived_is_replaced_by_a_new_message(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_messages, "ID_GRACE_SECONDS", 0.3)
    async with open_world() as world:
        world.env.inject_error("POST", "/interactions/*", status=404, code=10062, message="Unknown interaction")
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await wait_until_delivered(world)
        (message,) = world.channel.history()
        assert has_picture(message)
        assert [each.id for each in message.mentions] == [world.alice.id]


async def make_results_private(world: Any) -> None:
    """Make Alice's results private from now on."""
    await set_preferences(world, results="private")


async def test_a_private_result_is_ephemeral(open_world: Any) -> None:
    async with open_world() as world:
        await make_results_private(world)
        result = await start_paused_job(world)
        assert result.ephemeral
        world.painter.step_gate.set()
        await wait_until_delivered(world)
        assert world.channel.history() == [], "ephemeral"
        message = get_message(world, world.channel.id, result.response.id)
        assert message.attachments[0]["filename"].startswith("darkroom-")
        assert not any(each.path.startswith("/channels/") for each in world.env.http_requests)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["old", "expired"])
async def test_a_late_private_result_goes_to_a_direct_message(open_world: Any, failure: str) -> None:
    async with open_world() as world:
        await make_results_private(world)
        await start_paused_job(world)
        if failure == "old":
            await world.deliveries.update_address(await only_job_id(world), token_until="0")
        else:
            expired_error = {"status": 401, "code": 50027, "message": "Invalid Webhook Token", "times": None}
            world.env.inject_error("PATCH", "/webhooks/*", **expired_error)
        world.painter.step_gate.set()
        await wait_until_delivered(world)
        (direct_message,) = direct_messages(world)
        assert has_picture(direct_message)
        assert "15 minutes" in direct_message.content
        assert world.channel.history() == []


@pytest.mark.slow
async def test_a_long_private_job_pings_by_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        await make_jobs_long(world)
        await make_results_private(world)
        result = await start_and_resume(world)
        await wait_until_delivered(world)
        (direct_message,) = direct_messages(world)
        assert has_picture(direct_message)
        assert world.channel.history() == []
        assert get_message(world, world.channel.id, result.response.id).attachments


@pytest.mark.slow
@pytest.mark.parametrize("expects_public", [True, False])
async def test_a_slow_private_answer_is_never_public(open_world: Any, monkeypatch: Any, expects_public: bool) -> None:
    async with open_world() as world:
        await make_results_private(world)
        if not expects_public:  # the quick check says public, the accepted job says private
            monkeypatch.setattr("bot.discord.responses._is_likely_private", return_false)
        original_imagine = world.services.jobs.imagine

        async def imagine_slowly(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(2.0)
            return await original_imagine(*args, **kwargs)

        monkeypatch.setattr(world.services.jobs, "imagine", imagine_slowly)
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await wait_until_delivered(world)
        assert world.channel.history() == []
        messages = [each for each in world.env.backend.messages[world.channel.id].values() if each.attachments]
        assert [each.is_ephemeral for each in messages] == [True]


async def return_false(_: object) -> bool:
    return False


async def test_a_token_that_expires_during_an_upload_falls_back_to_the_channel(open_world: Any) -> None:
    async with open_world() as world:
        result = await start_paused_job(world)
        request = world.client.http.request
        times = [0]

        async def request_slowly(route: Any, **kwargs: Any) -> Any:
            if route.method == "PATCH" and "/webhooks/" in route.url and kwargs.get("files"):
                times[0] += 1
                await asyncio.sleep(0.5)
                error = discord.HTTPException(
                    UnauthorizedResponse(), {"code": 50027, "message": "Invalid Webhook Token"}
                )
                raise error
            return await request(route, **kwargs)

        world.client.http.request = request_slowly
        world.painter.step_gate.set()
        assert has_picture(await world.wait_for_end(result))
        await wait_until_delivered(world)
        assert times == [1]
        assert len(world.channel.history()) == 1


class UnauthorizedResponse(Any):
    status = 401
    reason = "Unauthorized"
