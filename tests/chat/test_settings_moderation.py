"""Words, blocks, reports, the picture check and incidents, pressed by admins, moderators and members."""

from __future__ import annotations

from typing import Any

import pytest

from bot.views import Member
from chat.staff import buttons, fields, hired, text

pytestmark = pytest.mark.asyncio


async def test_words_are_edited_in_a_form_and_hold_at_once(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        form = await staff.slash(staff.admin, "moderation words")
        assert {"words", "patterns"} == set(fields(form))
        done = await staff.admin.submit_modal(form, {"words": "bloodbath\n\n gore ", "patterns": "kn[i1]fe{1,2}"})
        assert "Refused words: no rule → **2 words**" in text(done)
        assert "Refused patterns: no rule → **1 pattern**" in text(done)
        for prompt in ("a bl00dbath", "a kn1fe"):
            refused = await staff.slash(staff.member, "imagine", prompt=prompt)
            assert refused.ephemeral
            assert "🚫" in text(refused)
        again = await staff.slash(staff.admin, "moderation words")
        assert fields(again)["words"]["value"] == "bloodbath\ngore"
        await staff.admin.submit_modal(again, {"words": "bloodbath", "patterns": ""})
        await world.ended(await staff.slash(staff.member, "imagine", prompt="gore, kn1fe"))


async def test_a_bad_pattern_changes_neither_list_and_loses_nothing(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        form = await staff.slash(staff.admin, "moderation words")
        refused = await staff.admin.submit_modal(form, {"words": "gore", "patterns": "(unclosed"})
        assert "🚫" in text(refused)
        (kept,) = refused.response.attachments
        typed = world.env.backend.cdn.get(kept.url).decode()
        assert "gore" in typed
        assert "(unclosed" in typed
        assert await world.house.desk.administration.rules(f"discord:{staff.guild.id}") == []


async def test_a_form_that_was_open_too_long_takes_away_nothing(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        form = await staff.slash(staff.admin, "moderation words")
        await staff.slash(staff.owner, "moderation words", add="gore")
        late = await staff.admin.submit_modal(form, {"words": "bloodbath", "patterns": ""})
        assert "nothing was saved" in text(late)
        (kept,) = late.response.attachments
        assert "bloodbath" in world.env.backend.cdn.get(kept.url).decode()
        again = await staff.slash(staff.admin, "moderation words")
        assert fields(again)["words"]["value"] == "gore"
        assert "2 words" in text(await staff.admin.submit_modal(again, {"words": "gore\nbloodbath", "patterns": ""}))


async def test_single_words_by_command(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        assert "**2 words**" in text(await staff.slash(staff.admin, "moderation words", add="gore, bloodbath"))
        one = text(await staff.slash(staff.admin, "moderation words", remove="Gore"))
        assert "**1 word (+0, −1)**" in one
        assert "Nothing changed" in text(await staff.slash(staff.admin, "moderation words", add="bloodbath"))
        missing = text(await staff.slash(staff.admin, "moderation words", remove="gore"))
        assert "not on the list: gore" in missing
        none = text(await staff.slash(staff.admin, "moderation words", remove="bloodbath"))
        assert "no rule" in none


async def test_a_blocked_member_makes_nothing_until_unblocked(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        blocked = await staff.slash(staff.admin, "moderation block", member=staff.member, reason="spam @everyone")
        assert f"<@{staff.member.id}> is blocked" in text(blocked)
        assert "@everyone" not in text(blocked)
        refused = await staff.slash(staff.member, "imagine", prompt="red apple")
        assert refused.ephemeral
        assert "block" in text(refused)
        listed = await staff.slash(staff.moderator, "moderation incidents", which="all")
        assert "blocked a member: member" in text(listed)
        assert "spam" in text(listed)
        assert "blocked already" in text(await staff.slash(staff.admin, "moderation block", member=staff.member))
        assert "no longer" in text(await staff.slash(staff.admin, "moderation unblock", member=staff.member))
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        assert "not blocked here" in text(await staff.slash(staff.admin, "moderation unblock", member=staff.member))
        assert "That is you" in text(await staff.slash(staff.admin, "moderation block", member=staff.admin))
        stranger = world.env.create_user("stranger")
        assert "is blocked" in text(await staff.slash(staff.admin, "moderation block", member=stranger))


async def test_a_whole_role_can_be_blocked(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="blocked", value="on", role=staff.crew)
        assert "block" in text(await staff.slash(staff.member, "imagine", prompt="red apple"))
        await world.ended(await staff.slash(staff.moderator, "imagine", prompt="red apple"))
        still = text(await staff.slash(staff.admin, "moderation unblock", member=staff.member))
        assert "not blocked themselves; their role" in still
        await staff.slash(staff.admin, "settings unset", setting="blocked", role=staff.crew)
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))


async def test_reports_wait_in_the_list_until_a_moderator_closes_them(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        shown = await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        (view,) = await world.studio.recent()
        for number in range(1, 8):
            who = world.guild.add_member(world.env.create_user(f"witness{number}"))
            asked = world_member(who, staff)
            await world.house.desk.moderation.report(view.id, asked, f"number {number} **bold**")
        listed = await staff.slash(staff.moderator, "moderation incidents")
        assert "Waiting for a moderator" in text(listed)
        assert "number 7" in text(listed)
        assert "**bold**" not in text(listed)
        assert str(shown.id) in text(listed), "a link to the picture"
        assert buttons(listed).count("Close") == 5
        second = await staff.moderator.click(listed.response, label="▶")
        assert "number 1" in text(second)
        first = await staff.moderator.click(second.response, label="◀")
        (newest, *_) = await world.house.desk.moderation.incidents(world_member(staff.moderator, staff, mod=True), 1)
        closed = await staff.moderator.click(first.response, custom_id=f"settings:shut:{newest.number}:waiting:0")
        assert f"No. {newest.number} is closed" in text(closed)
        assert "number 7" not in text(closed)
        everything = await staff.moderator.click(closed.response, label="Show all")
        assert "number 7" in text(everything)
        assert "Only moderators" in text(await staff.slash(staff.member, "moderation incidents"))


def world_member(who: Any, staff: Any, *, mod: bool = False) -> Any:
    return Member(f"discord:{who.id}", who.name, f"discord:{staff.guild.id}", moderator=mod)


async def test_reports_go_to_a_channel(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        room = staff.guild.create_text_channel("moderators")
        done = await staff.slash(staff.admin, "moderation reports", channel=room)
        assert f"<#{room.id}>" in text(done)
        shown = await staff.slash(staff.admin, "settings show")
        assert f"Reports go to · **<#{room.id}>**" in text(shown)
        assert "no rule" in text(await staff.slash(staff.admin, "moderation reports"))


async def test_no_server_puts_its_reports_into_another_ones_channel(open_world: Any) -> None:
    async with open_world() as world:
        theirs = world.channel
        staff = await hired(world)
        sheet = f"server:\n  reports: '{theirs.id}'\n".encode()
        for command, options in (
            ("settings set", {"setting": "reports", "value": str(theirs.id)}),
            ("settings set", {"setting": "reports", "value": f"<#{theirs.id}>"}),
            ("settings import", {"file": ("a.yaml", sheet)}),
        ):
            refused = await staff.slash(staff.admin, command, **options)
            assert "channel of this server" in text(refused), command
        administration, here = world.house.desk.administration, f"discord:{staff.guild.id}"
        assert await administration.rules(here) == []
        admin = Member("discord:1", "Ada", here, moderator=True, admin=True)
        await administration.set(admin, "guild", "", "reports", str(theirs.id))  # an older rule, or a channel that left
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        (view,) = await world.studio.recent()
        said = await world.house.desk.moderation.report(view.id, world_member(staff.moderator, staff), "x" * 400)
        assert "list of the moderators" in said
        assert list(theirs.history()) == []


async def test_the_picture_check_says_when_nobody_can_do_it(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        on = text(await staff.slash(staff.admin, "moderation check", switch="on"))
        assert "Picture check: no rule → **on**" in on
        assert "No worker can check pictures now" in on
        off = text(await staff.slash(staff.admin, "moderation check", switch="off"))
        assert "No worker" not in off


async def test_members_and_moderators_are_refused_with_a_sentence(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        asked: dict[str, dict[str, Any]] = {
            "words": {},
            "block": {"member": staff.admin},
            "unblock": {"member": staff.admin},
            "reports": {},
            "check": {"switch": "on"},
        }
        for name, options in asked.items():
            for who in (staff.moderator, staff.member):
                refused = await staff.slash(who, f"moderation {name}", **options)
                assert refused.ephemeral
                assert "Only admins (who may manage this server)" in text(refused), (name, who.name)
        assert await world.house.desk.administration.rules(f"discord:{staff.guild.id}") == []
