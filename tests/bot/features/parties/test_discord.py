"""A party in Discord: anybody here says something and votes; the picture follows, and its end names who made it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.features.parties import rules as policy
from bot.features.parties import service
from bot.features.parties.service import ALREADY_OPEN, NO_PARTY, NOT_INVITED, OVER, WEIGHTS_BY_VOTE, PartyService
from shared.discord_jobs import get_message

pytestmark = pytest.mark.asyncio


async def open_party(world: Any, pause_step: int = 5, **options: Any) -> Any:
    """Open a party of alice's, and pause its picture at a step."""
    world.painter.pause_step = pause_step
    result = await world.alice.slash(world.channel, "party", prompt="red apple --steps 20", **options)
    await world.wait_until(lambda: "A party" in world.message(result.response.id).content)
    world.painter.pause_step = None
    return result


def find_buttons(message: Any) -> dict[str, str]:
    """Return the custom ids of a message's buttons by their beginnings, the newest last."""
    ids = [button.custom_id for row in message.components for button in row.children]
    return {each.partition(":")[0]: each for each in ids}


async def run_to(world: Any, step: int, message_id: int) -> Any:
    """Let the picture develop until a step, and return its message then."""
    world.painter.pause_step = step
    world.painter.step_gate.set()
    return await world.wait_until(
        lambda: (m := world.message(message_id)) and f"step {step - 1} of 20" in m.content and m
    )


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words change as soon as they can: a test has no minutes."""
    monkeypatch.setattr(policy, "MIN_CHANGE_SECONDS", 0.0)
    monkeypatch.setattr(service, "find_change_interval", lambda seconds_left, changes: 0.0)
    monkeypatch.setattr(service, "ROUND_SECONDS", 0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
async def test_members_say_and_vote_and_the_picture_follows_to_its_credits(open_world: Any) -> None:
    async with open_world() as world:
        result = await open_party(world, minutes=2)
        (view,) = await world.services.job_views.load_recent()
        refusal = await world.bob.slash(world.channel, "party", prompt="pear")
        assert ALREADY_OPEN in refusal.response.content.replace("\\", "")
        said = await world.bob.slash(world.channel, "say", words="@everyone *blue*")
        assert said.ephemeral
        await world.wait_until(lambda: world.painter.recipes[view.id].amendments)
        (amendment,) = world.painter.recipes[view.id].amendments
        assert [(each.text, round(each.weight, 2)) for each in amendment.change.concepts] == [
            ("red apple", 0.5),
            ("@everyone *blue*", 0.5),
        ]
        assert amendment.change.mixed
        await world.restart()
        opening = await world.alice.click(world.message(result.response.id), label="Say…")
        await world.alice.submit_modal(opening, {"words": "snow"})
        shown = await run_to(world, 8, result.response.id)
        assert "@everyone" not in shown.content
        assert "👍 1 **snow** · alice" in shown.content
        assert "2 take part" in shown.content
        await world.bob.click(shown, custom_id=find_buttons(shown)["votedown"])
        await world.bob.react(shown, "👍🏽")  # changes bob's mind about the newest phrase
        await world.wait_until(lambda: len(world.painter.recipes[view.id].amendments) >= 2)
        async with asyncio.timeout(20):
            while (await world.services.get(PartyService).load_board(view.id)).phrases[-1].votes_for < 2:
                await asyncio.sleep(0.02)
        paces = [message for message in world.painter.control_messages if message.action == "pace"]
        assert paces
        assert 0 < paces[0].pace <= 120 / 15
        world.painter.pause_step = None
        world.painter.step_gate.set()
        ended = await world.wait_for_end(result)
        assert "🎉 A picture by" in ended.content
        assert "alice “snow”" in ended.content
        assert [file.filename for file in ended.attachments][1:] == [f"darkroom-{view.id}-film.webp"]
        assert NO_PARTY in await say_late(world)
        author = Member(view.member_id, view.member_name, view.guild, channel=view.channel)
        with pytest.raises(UserError, match=OVER):
            await world.services.get(PartyService).vote(view.id, None, 1, author)
        views = await world.services.steering.list_amendments(view.id, author)
        assert {(each.member_name, each.text) for each in views} == {("bob", "@everyone *blue*"), ("alice", "snow")}


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
async def test_the_phrase_of_a_member_who_is_blocked_leaves_the_picture(open_world: Any) -> None:
    async with open_world() as world:
        await open_party(world, minutes=2)
        (view,) = await world.services.job_views.load_recent()
        await world.bob.slash(world.channel, "say", words="blue")
        await world.wait_until(lambda: world.painter.recipes[view.id].amendments)
        admin = Member("discord:9", "admin", view.guild, is_admin=True)
        await world.services.rule_admin.set_rule(admin, "user", f"discord:{world.bob.id}", "blocked", "on")
        await world.alice.slash(world.channel, "say", words="snow")
        await world.wait_until(lambda: list_last_words(world, view.id) == ["red apple", "snow"])
        board = await world.services.get(PartyService).load_board(view.id)
        assert [phrase.text for phrase in board.phrases] == ["snow"]
        world.painter.step_gate.set()


def list_last_words(world: Any, job: str) -> list[str]:
    return [concept.text for concept in world.painter.recipes[job].amendments[-1].change.concepts]


async def say_late(world: Any) -> str:
    """Say something once the party is closed, and return the answer."""
    async with asyncio.timeout(20):
        while True:
            answer = (await world.bob.slash(world.channel, "say", words="late")).response.content
            if OVER not in answer:
                return answer.replace("\\", "")
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_party_for_those_who_are_invited_and_its_refusals(open_world: Any) -> None:
    async with open_world() as world:
        carol = world.guild.add_member(world.env.create_user("carol"))
        for options, sentence in (
            ({"prompt": "apple", "minutes": 60}, "1 to 15 minutes"),
            ({"prompt": "{red, green} apple"}, "one prompt"),
            ({"prompt": "apple", "members": "bob"}, "mentions"),
        ):
            refused = await world.alice.slash(world.channel, "party", **options)
            assert sentence in refused.response.content
        result = await open_party(world, members=f"<@{world.bob.id}>")
        message = get_message(world, world.channel.id, result.response.id)
        assert NOT_INVITED in (await carol.slash(world.channel, "say", words="blue")).response.content
        assert WEIGHTS_BY_VOTE[:18] in (await world.bob.slash(world.channel, "say", words="blue::9")).response.content
        assert "hears" in (await world.bob.slash(world.channel, "say", words="blue")).response.content
        assert message.id == result.response.id
        world.painter.step_gate.set()
