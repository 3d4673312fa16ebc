"""Explanations, the history, presets and undo of rules, used by every role that may see them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from simcord.components import walk_components

from shared.discord_staff import create_staff, list_button_labels, read_text

pytestmark = pytest.mark.asyncio


@pytest.mark.slow
async def test_explain_names_the_rule_that_decides_and_the_usage(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.admin, "settings set", setting="running", value="4", role=staff.member_role)
        world.painter.pause_step = 2
        running_job = await staff.slash(staff.member, "imagine", prompt="red apple")
        await world.wait_until(lambda: "step 1 of" in world.message(running_job.response.id).content)
        content = read_text(await staff.slash(staff.admin, "settings explain", member=staff.member, setting="running"))
        assert f"What holds for <@{staff.member.id}>" in content
        assert "Running at once · **1 of 4**" in content
        assert f"<@&{staff.member_role.id}>" in content, "the role's rule decides"
        assert "2" in content, "and overrides the server's"
        full_text = read_text(await staff.slash(staff.moderator, "settings explain", member=staff.member))
        now = full_text.index("### Now")
        rules_at = full_text.find("### Set by")
        default = full_text.index("### By")
        assert now < full_text.index("Running at once · **1 of 4**") < default
        assert re.search(r"Device time a day · \*\*\d+ s of 30 min\*\*", full_text[now:default])
        assert rules_at == -1, "their only rule limits them now"
        assert "-# Waiting in line · 0 of 7\n" in full_text[default:]
        assert full_text.endswith("-# Blocked · no")
        assert len(full_text) <= 4000
        other = read_text(await staff.slash(staff.admin, "settings explain", member=staff.operator, setting="running"))
        assert "Running at once · **0 of 2**" in other


@pytest.mark.slow
async def test_explain_in_a_channel_and_from_the_overview(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="steps", value="7", channel=staff.channel)
        channel_explanation = read_text(
            await staff.slash(
                staff.admin, "settings explain", member=staff.member, setting="steps", channel=staff.channel
            )
        )
        assert "**7**" in channel_explanation
        assert f"<#{staff.channel.id}>" in channel_explanation
        default_explanation = read_text(
            await staff.slash(staff.admin, "settings explain", member=staff.member, setting="steps")
        )
        assert default_explanation == channel_explanation, "without a channel it explains this one"
        card = await staff.slash(staff.admin, "settings show")
        reply = await staff.admin.select(card.response, [staff.member], custom_id="settings:explain")
        assert f"What holds for <@{staff.member.id}>" in read_text(reply)


@pytest.mark.slow
async def test_the_history_has_pages_and_an_undo_for_each(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        for number in range(2, 9):
            await staff.slash(staff.admin, "settings set", setting="running", value=str(number))
        first = await staff.slash(staff.admin, "settings log")
        assert first.ephemeral
        assert "7 → **8**" in read_text(first)
        assert "1 of 2" in list_button_labels(first)
        second = await staff.admin.click(first.response, label="▶")
        assert "no rule → **2**" in read_text(second)
        first_page = await staff.admin.click(second.response, label="◀")
        newest_change = max(
            await world.app.services.rule_admin.list_changes(f"discord:{staff.guild.id}"), key=lambda c: c.number
        )
        undo = await staff.admin.click(first_page.response, custom_id=f"settings:back:{newest_change.number}:0")
        assert f"No. {newest_change.number} was taken back" in read_text(undo)
        assert "8 → **7**" in read_text(undo)
        second_undo = await staff.slash(staff.admin, "settings undo", number=newest_change.number)
        assert "undone already" in read_text(second_undo)
        assert "was taken back" in read_text(await staff.slash(staff.admin, "settings undo"))
        missing_reply = await staff.slash(staff.admin, "settings undo", number=99999)
        assert "🚫" in read_text(missing_reply)


@pytest.mark.slow
async def test_a_preset_shows_its_changes_and_asks_for_confirmation(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        names = await staff.admin.autocomplete(staff.channel, "settings preset", "name", "lar")
        assert [choice["value"] for choice in names] == ["large server"]
        question = await staff.slash(staff.admin, "settings preset", name="large server")
        assert "Running at once: no rule → **1**" in read_text(question)
        assert await fetch_rules(world, staff) == []
        cancelled_card = await staff.admin.click(question.response, label="Cancel")
        assert "Nothing was changed" in read_text(cancelled_card)
        assert await fetch_rules(world, staff) == []

        card = await staff.slash(staff.admin, "settings show")
        presets = await staff.admin.click(card.response, label="Presets")
        preview = await staff.admin.click(presets.response, custom_id="settings:preset:contest")
        result = await staff.admin.click(preview.response, label="Apply")
        assert "rules changed" in read_text(result)
        assert "Most steps · **100**" in read_text(result)
        await staff.admin.click(result.response, label="Undo")
        assert await fetch_rules(world, staff) == []
        assert "the nearest is" in read_text(await staff.slash(staff.admin, "settings preset", name="hugeserver"))


async def test_an_undo_needs_the_same_role_as_its_change(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.operator, "settings budget", running="9")
        form = await staff.slash(staff.owner, "settings close", reason="night")
        await staff.owner.submit_modal(form, {"reason": "night"})
        for actor, undo_count in ((staff.moderator, 0), (staff.admin, 1), (staff.owner, 2), (staff.operator, 3)):
            card = await staff.slash(actor, "settings log")
            undo_buttons = [each for each in walk_components(card.response.components) if each.get("label") == "Undo"]
            assert [not each.get("disabled") for each in undo_buttons].count(True) == undo_count, actor.name
        close, budget, _ = await world.app.services.rule_admin.list_changes(f"discord:{staff.guild.id}")
        for change, message in ((close, "Only the server's owner"), (budget, "Only this bot's operator")):
            assert message in read_text(await staff.slash(staff.admin, "settings undo", number=change.number))
        assert "was taken back" in read_text(await staff.slash(staff.owner, "settings undo", number=close.number))


async def fetch_rules(world: Any, staff: Any) -> list[Any]:
    return await world.app.services.rule_admin.list_rules(f"discord:{staff.guild.id}")


@pytest.mark.slow
async def test_moderators_see_settings_and_members_do_not(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        for name in ("show", "log", "export"):
            assert "🚫" not in read_text(await staff.slash(staff.moderator, f"settings {name}"))
            assert "Only moderators" in read_text(await staff.slash(staff.member, f"settings {name}"))
        calls: dict[str, dict[str, Any]] = {
            "set": {"setting": "running", "value": "9"},
            "unset": {"setting": "running"},
            "preset": {"name": "contest"},
            "import": {"file": ("a.yaml", b"server:\n  running: 9\n")},
        }
        for name, options in calls.items():
            for actor in (staff.moderator, staff.member, staff.operator):
                refusal = await staff.slash(actor, f"settings {name}", **options)
                is_allowed = actor is staff.operator
                assert ("Only admins" not in read_text(refusal)) == is_allowed, (name, actor.name)
                if is_allowed and name in ("set", "unset"):
                    await staff.slash(staff.admin, "settings undo")
        undo = await staff.slash(staff.member, "settings undo")
        assert "🚫" in read_text(undo)
        look = await staff.slash(staff.member, "settings explain", member=staff.admin)
        assert "Only moderators" in read_text(look)
        assert [(rule.setting, rule.value) for rule in await fetch_rules(world, staff)] == [("running", 2)]


@pytest.mark.slow
async def test_a_card_refuses_a_member_who_lost_the_admin_role(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        card = await staff.slash(staff.admin, "settings show")
        form = await staff.admin.select(card.response, ["running"], custom_id="settings:change")
        world.env.backend.get_guild(staff.guild.id).members[staff.admin.id].role_ids.clear()
        late_reply = await staff.admin.submit_modal(form, {"value": "9"})
        assert "Only admins" in read_text(late_reply)
        for label in ("History", "Presets", "Words", "Export", "Close", "Channels: 0"):
            refusal = await staff.admin.click(card.response, label=label)
            assert "Only" in read_text(refusal), label
        assert await fetch_rules(world, staff) == []


@pytest.mark.slow
async def test_explain_says_when_a_quota_frees(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="cost_day", value="1 h")
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple"))
        content = read_text(await staff.slash(staff.admin, "settings explain", member=staff.member, setting="cost_day"))
        assert re.search(r"\*\*\d+ s of 1 h\*\*, some frees <t:\d+:R>", content)
        assert "the server's rule decides" in content
        assert "no setting" in read_text(
            await staff.slash(staff.admin, "settings explain", member=staff.member, setting="nothing")
        )
