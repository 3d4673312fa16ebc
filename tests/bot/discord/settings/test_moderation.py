"""Words, blocks, reports, the picture check and incidents, used by admins, moderators and members."""

from __future__ import annotations

from typing import Any

import pytest

from bot.domain.dto import Member
from shared.discord_staff import buttons, fields, hired, text

pytestmark = pytest.mark.asyncio


async def test_the_word_filter_is_edited_in_a_form_and_holds_at_once(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        form = await staff.slash(staff.admin, "moderation words")
        assert {"words", "patterns"} == set(fields(form))
        result = await staff.admin.submit_modal(form, {"words": "bloodbath\n\n gore ", "patterns": "kn[i1]fe{1,2}"})
        assert "Refused words: no rule → **2 words**" in text(result)
        assert "Refused patterns: no rule → **1 pattern**" in text(result)
        for prompt in ("a bl00dbath", "a kn1fe"):
            refusal = await staff.slash(staff.member, "imagine", prompt=prompt)
            assert refusal.ephemeral
            assert "🚫" in text(refusal)
        again = await staff.slash(staff.admin, "moderation words")
        assert fields(again)["words"]["value"] == "bloodbath\ngore"
        await staff.admin.submit_modal(again, {"words": "bloodbath", "patterns": ""})
        await world.ended(await staff.slash(staff.member, "imagine", prompt="gore, kn1fe"))


async def test_a_bad_pattern_changes_neither_list_and_returns_the_typed_text(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        form = await staff.slash(staff.admin, "moderation words")
        refusal = await staff.admin.submit_modal(form, {"words": "gore", "patterns": "(unclosed"})
        assert "🚫" in text(refusal)
        (attachment,) = refusal.response.attachments
        typed = world.env.backend.cdn.get(attachment.url).decode()
        assert "gore" in typed
        assert "(unclosed" in typed
        assert await world.house.services.rule_admin.list_rules(f"discord:{staff.guild.id}") == []


async def test_an_outdated_form_overwrites_nothing(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        form = await staff.slash(staff.admin, "moderation words")
        await staff.slash(staff.owner, "moderation words", add="gore")
        late = await staff.admin.submit_modal(form, {"words": "bloodbath", "patterns": ""})
        assert "nothing was saved" in text(late)
        (attachment,) = late.response.attachments
        assert "bloodbath" in world.env.backend.cdn.get(attachment.url).decode()
        again = await staff.slash(staff.admin, "moderation words")
        assert fields(again)["words"]["value"] == "gore"
        assert "2 words" in text(await staff.admin.submit_modal(again, {"words": "gore\nbloodbath", "patterns": ""}))


async def test_words_are_added_and_removed_by_command(open_world: Any) -> None:
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


async def test_a_blocked_member_makes_no_pictures_until_unblocked(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        blocked = await staff.slash(staff.admin, "moderation block", member=staff.member, reason="spam @everyone")
        assert f"<@{staff.member.id}> is blocked" in text(blocked)
        assert "@everyone" not in text(blocked)
        refusal = await staff.slash(staff.member, "imagine", prompt="red apple")
        assert refusal.ephemeral
        assert "block" in text(refusal)
        listing = await staff.slash(staff.moderator, "moderation incidents", which="all")
        assert "blocked a member: member" in text(listing)
        assert "spam" in text(listing)
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
        card = await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        (view,) = await world.services.job_views.load_recent()
        for number in range(1, 8):
            who = world.guild.add_member(world.env.create_user(f"witness{number}"))
            reporter = make_member(who, staff)
            await world.house.services.moderation.report_picture(view.id, reporter, f"number {number} **bold**")
        listing = await staff.slash(staff.moderator, "moderation incidents")
        assert "Waiting for a moderator" in text(listing)
        assert "number 7" in text(listing)
        assert "**bold**" not in text(listing)
        assert str(card.id) in text(listing), "a link to the picture"
        assert buttons(listing).count("Close") == 5
        second = await staff.moderator.click(listing.response, label="▶")
        assert "number 1" in text(second)
        first = await staff.moderator.click(second.response, label="◀")
        (newest, *_) = await world.house.services.moderation.list_incidents(
            make_member(staff.moderator, staff, mod=True), 1
        )
        closed = await staff.moderator.click(first.response, custom_id=f"settings:shut:{newest.number}:waiting:0")
        assert f"No. {newest.number} is closed" in text(closed)
        assert "number 7" not in text(closed)
        everything = await staff.moderator.click(closed.response, label="Show all")
        assert "number 7" in text(everything)
        assert "Only moderators" in text(await staff.slash(staff.member, "moderation incidents"))


def make_member(who: Any, staff: Any, *, mod: bool = False) -> Any:
    return Member(f"discord:{who.id}", who.name, f"discord:{staff.guild.id}", is_moderator=mod)


async def test_reports_go_to_a_channel(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        room = staff.guild.create_text_channel("moderators")
        result = await staff.slash(staff.admin, "moderation reports", channel=room)
        assert f"<#{room.id}>" in text(result)
        card = await staff.slash(staff.admin, "settings show")
        assert f"Reports go to · **<#{room.id}>**" in text(card)
        assert "no rule" in text(await staff.slash(staff.admin, "moderation reports"))


async def test_reports_never_go_to_a_channel_of_another_server(open_world: Any) -> None:
    async with open_world() as world:
        foreign = world.channel
        staff = await hired(world)
        sheet = f"server:\n  reports: '{foreign.id}'\n".encode()
        for command, options in (
            ("settings set", {"setting": "reports", "value": str(foreign.id)}),
            ("settings set", {"setting": "reports", "value": f"<#{foreign.id}>"}),
            ("settings import", {"file": ("a.yaml", sheet)}),
        ):
            refusal = await staff.slash(staff.admin, command, **options)
            assert "channel of this server" in text(refusal), command
        administration, here = world.house.services.rule_admin, f"discord:{staff.guild.id}"
        assert await administration.list_rules(here) == []
        admin = Member("discord:1", "Ada", here, is_moderator=True, is_admin=True)
        # an older rule, or one whose channel is gone
        await administration.set_rule(admin, "guild", "", "reports", str(foreign.id))
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        (view,) = await world.services.job_views.load_recent()
        reply = await world.house.services.moderation.report_picture(
            view.id, make_member(staff.moderator, staff), "x" * 400
        )
        assert "list of the moderators" in reply
        assert list(foreign.history()) == []


async def test_the_picture_check_says_when_no_worker_can_do_it(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        on = text(await staff.slash(staff.admin, "moderation check", switch="on"))
        assert "Picture check: no rule → **on**" in on
        assert "No worker can check pictures now" in on
        off = text(await staff.slash(staff.admin, "moderation check", switch="off"))
        assert "No worker" not in off


async def test_moderation_commands_refuse_members_and_moderators(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        calls: dict[str, dict[str, Any]] = {
            "words": {},
            "block": {"member": staff.admin},
            "unblock": {"member": staff.admin},
            "reports": {},
            "check": {"switch": "on"},
        }
        for name, options in calls.items():
            for who in (staff.moderator, staff.member):
                refusal = await staff.slash(who, f"moderation {name}", **options)
                assert refusal.ephemeral
                assert "Only admins (who may manage this server)" in text(refusal), (name, who.name)
        assert await world.house.services.rule_admin.list_rules(f"discord:{staff.guild.id}") == []
