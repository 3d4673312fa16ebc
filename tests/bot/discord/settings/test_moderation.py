"""Words, blocks, reports, the picture check and incidents, used by admins, moderators and members."""

from __future__ import annotations

from typing import Any

import pytest

from bot.domain.dto import Member
from shared.discord_staff import create_staff, list_button_labels, read_form_fields, read_text

pytestmark = pytest.mark.asyncio


async def test_the_word_filter_is_edited_in_a_form_and_holds_at_once(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        form = await staff.slash(staff.admin, "moderation words")
        assert {"words", "patterns"} == set(read_form_fields(form))
        result = await staff.admin.submit_modal(form, {"words": "bloodbath\n\n gore ", "patterns": "kn[i1]fe{1,2}"})
        assert "Refused words: no rule → **2 words**" in read_text(result)
        assert "Refused patterns: no rule → **1 pattern**" in read_text(result)
        for prompt in ("a bl00dbath", "a kn1fe"):
            refusal = await staff.slash(staff.member, "imagine", prompt=prompt)
            assert refusal.ephemeral
            assert "🚫" in read_text(refusal)
        second_card = await staff.slash(staff.admin, "moderation words")
        assert read_form_fields(second_card)["words"]["value"] == "bloodbath\ngore"
        await staff.admin.submit_modal(second_card, {"words": "bloodbath", "patterns": ""})
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="gore, kn1fe"))


async def test_a_bad_pattern_changes_neither_list_and_returns_the_typed_text(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        form = await staff.slash(staff.admin, "moderation words")
        refusal = await staff.admin.submit_modal(form, {"words": "gore", "patterns": "(unclosed"})
        assert "🚫" in read_text(refusal)
        (attachment,) = refusal.response.attachments
        typed_words = world.env.backend.cdn.get(attachment.url).decode()
        assert "gore" in typed_words
        assert "(unclosed" in typed_words
        assert await world.app.services.rule_admin.list_rules(f"discord:{staff.guild.id}") == []


async def test_an_outdated_form_overwrites_nothing(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        form = await staff.slash(staff.admin, "moderation words")
        await staff.slash(staff.owner, "moderation words", add="gore")
        late_reply = await staff.admin.submit_modal(form, {"words": "bloodbath", "patterns": ""})
        assert "nothing was saved" in read_text(late_reply)
        (attachment,) = late_reply.response.attachments
        assert "bloodbath" in world.env.backend.cdn.get(attachment.url).decode()
        reopened_card = await staff.slash(staff.admin, "moderation words")
        assert read_form_fields(reopened_card)["words"]["value"] == "gore"
        assert "2 words" in read_text(
            await staff.admin.submit_modal(reopened_card, {"words": "gore\nbloodbath", "patterns": ""})
        )


async def test_words_are_added_and_removed_by_command(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        assert "**2 words**" in read_text(await staff.slash(staff.admin, "moderation words", add="gore, bloodbath"))
        one = read_text(await staff.slash(staff.admin, "moderation words", remove="Gore"))
        assert "**1 word (+0, −1)**" in one
        assert "Nothing changed" in read_text(await staff.slash(staff.admin, "moderation words", add="bloodbath"))
        missing_reply = read_text(await staff.slash(staff.admin, "moderation words", remove="gore"))
        assert "not on the list: gore" in missing_reply
        empty_reply = read_text(await staff.slash(staff.admin, "moderation words", remove="bloodbath"))
        assert "no rule" in empty_reply


async def test_a_blocked_member_makes_no_pictures_until_unblocked(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        block_reply = await staff.slash(staff.admin, "moderation block", member=staff.member, reason="spam @everyone")
        assert f"<@{staff.member.id}> is blocked" in read_text(block_reply)
        assert "@everyone" not in read_text(block_reply)
        refusal = await staff.slash(staff.member, "imagine", prompt="red apple")
        assert refusal.ephemeral
        assert "block" in read_text(refusal)
        listing = await staff.slash(staff.moderator, "moderation incidents", which="all")
        assert "blocked a member: member" in read_text(listing)
        assert "spam" in read_text(listing)
        assert "blocked already" in read_text(await staff.slash(staff.admin, "moderation block", member=staff.member))
        assert "no longer" in read_text(await staff.slash(staff.admin, "moderation unblock", member=staff.member))
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple"))
        assert "not blocked here" in read_text(
            await staff.slash(staff.admin, "moderation unblock", member=staff.member)
        )
        assert "You cannot block yourself" in read_text(
            await staff.slash(staff.admin, "moderation block", member=staff.admin)
        )
        outside_user = world.env.create_user("stranger")
        assert "is blocked" in read_text(await staff.slash(staff.admin, "moderation block", member=outside_user))


async def test_a_whole_role_can_be_blocked(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="blocked", value="on", role=staff.member_role)
        assert "block" in read_text(await staff.slash(staff.member, "imagine", prompt="red apple"))
        await world.wait_for_end(await staff.slash(staff.moderator, "imagine", prompt="red apple"))
        second_reply = read_text(await staff.slash(staff.admin, "moderation unblock", member=staff.member))
        assert "not blocked themselves; their role" in second_reply
        await staff.slash(staff.admin, "settings unset", setting="blocked", role=staff.member_role)
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple"))


async def test_reports_wait_in_the_list_until_a_moderator_closes_them(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        card = await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple"))
        (view,) = await world.services.job_views.load_recent()
        for number in range(1, 8):
            witness = world.guild.add_member(world.env.create_user(f"witness{number}"))
            reporter = make_member(witness, staff)
            await world.app.services.moderation.report_picture(view.id, reporter, f"number {number} **bold**")
        listing = await staff.slash(staff.moderator, "moderation incidents")
        assert "Waiting for a moderator" in read_text(listing)
        assert "number 7" in read_text(listing)
        assert "**bold**" not in read_text(listing)
        assert str(card.id) in read_text(listing), "a link to the picture"
        assert list_button_labels(listing).count("Close") == 5
        second = await staff.moderator.click(listing.response, label="▶")
        assert "number 1" in read_text(second)
        first = await staff.moderator.click(second.response, label="◀")
        (newest_incident, *_) = await world.app.services.moderation.list_incidents(
            make_member(staff.moderator, staff, is_moderator=True), 1
        )
        closed_card = await staff.moderator.click(
            first.response, custom_id=f"settings:shut:{newest_incident.number}:waiting:0"
        )
        assert f"No. {newest_incident.number} is closed" in read_text(closed_card)
        assert "number 7" not in read_text(closed_card)
        all_incidents = await staff.moderator.click(closed_card.response, label="Show all")
        assert "number 7" in read_text(all_incidents)
        assert "Only moderators" in read_text(await staff.slash(staff.member, "moderation incidents"))


def make_member(actor: Any, staff: Any, *, is_moderator: bool = False) -> Any:
    return Member(f"discord:{actor.id}", actor.name, f"discord:{staff.guild.id}", is_moderator=is_moderator)


async def test_reports_go_to_a_channel(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        room = staff.guild.create_text_channel("moderators")
        result = await staff.slash(staff.admin, "moderation reports", channel=room)
        assert f"<#{room.id}>" in read_text(result)
        card = await staff.slash(staff.admin, "settings show")
        assert f"Reports go to · **<#{room.id}>**" in read_text(card)
        assert "no rule" in read_text(await staff.slash(staff.admin, "moderation reports"))


async def test_reports_never_go_to_a_channel_of_another_server(open_world: Any) -> None:
    async with open_world() as world:
        foreign = world.channel
        staff = await create_staff(world)
        sheet = f"server:\n  reports: '{foreign.id}'\n".encode()
        for command, options in (
            ("settings set", {"setting": "reports", "value": str(foreign.id)}),
            ("settings set", {"setting": "reports", "value": f"<#{foreign.id}>"}),
            ("settings import", {"file": ("a.yaml", sheet)}),
        ):
            refusal = await staff.slash(staff.admin, command, **options)
            assert "channel of this server" in read_text(refusal), command
        rule_admin = world.app.services.rule_admin
        guild_id = f"discord:{staff.guild.id}"
        assert await rule_admin.list_rules(guild_id) == []
        admin = Member("discord:1", "Ada", guild_id, is_moderator=True, is_admin=True)
        # an older rule, or one whose channel is gone
        await rule_admin.set_rule(admin, "guild", "", "reports", str(foreign.id))
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple"))
        (view,) = await world.services.job_views.load_recent()
        reply = await world.app.services.moderation.report_picture(
            view.id, make_member(staff.moderator, staff), "x" * 400
        )
        assert "list of the moderators" in reply
        assert list(foreign.history()) == []


async def test_the_picture_check_says_when_no_worker_can_do_it(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        switched_on = read_text(await staff.slash(staff.admin, "moderation check", switch="on"))
        assert "Picture check: no rule → **on**" in switched_on
        assert "No worker can check pictures now" in switched_on
        switched_off = read_text(await staff.slash(staff.admin, "moderation check", switch="off"))
        assert "No worker" not in switched_off


async def test_moderation_commands_refuse_members_and_moderators(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        calls: dict[str, dict[str, Any]] = {
            "words": {},
            "block": {"member": staff.admin},
            "unblock": {"member": staff.admin},
            "reports": {},
            "check": {"switch": "on"},
        }
        for name, options in calls.items():
            for actor in (staff.moderator, staff.member):
                refusal = await staff.slash(actor, f"moderation {name}", **options)
                assert refusal.ephemeral
                assert "Only admins (who may manage this server)" in read_text(refusal), (name, actor.name)
        assert await world.app.services.rule_admin.list_rules(f"discord:{staff.guild.id}") == []
