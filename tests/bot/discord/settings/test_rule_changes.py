"""Admins set rules in Discord by command and by card; the next request follows them."""

from __future__ import annotations

import asyncio
from typing import Any

import discord
import msgspec
import pytest

from bot.discord.responses import DEFER_AFTER
from bot.discord.settings import cards
from bot.discord.settings.responses import make_button, make_layout
from shared.discord_staff import create_staff, list_button_labels, list_custom_ids, read_form_fields, read_text
from shared.model_parts import MODEL_PARTS

SEES = discord.PermissionOverwrite(view_channel=True)
pytestmark = pytest.mark.asyncio


async def test_a_rule_for_a_role_holds_at_once_and_an_undo_takes_it_back(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        saved_card = await staff.slash(staff.admin, "settings set", setting="steps", value="5", role=staff.member_role)
        assert saved_card.ephemeral
        assert f"<@&{staff.member_role.id}>: no rule → **5**" in read_text(saved_card)
        assert "Undo" in list_button_labels(saved_card)

        refusal = await staff.slash(staff.member, "imagine", prompt="red apple", steps=10)
        assert refusal.ephemeral
        assert "5" in read_text(refusal)
        await world.wait_for_end(await staff.slash(staff.moderator, "imagine", prompt="red apple", steps=10))

        undo = await staff.admin.click(saved_card.response, label="Undo")
        assert "was taken back" in read_text(undo)
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple", steps=10))


async def test_the_overview_shows_what_holds_and_changes_it(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        card = await staff.slash(staff.admin, "settings show")
        assert card.ephemeral
        assert "Running at once · 3" in read_text(card)
        form = await staff.admin.select(card.response, ["running"], custom_id="settings:change")
        assert "value" in read_form_fields(form)
        saved_card = await staff.admin.submit_modal(form, {"value": "4"})
        assert "Running at once: no rule → **4**" in read_text(saved_card)
        assert "Running at once · **4**" in read_text(saved_card)
        previous_card = await staff.admin.click(saved_card.response, label="Undo")
        assert "was taken back" in read_text(previous_card)
        all_settings = await staff.admin.click(previous_card.response, label="All settings")
        assert "Running at once · 3" in read_text(all_settings)
        assert all(len(each) <= 100 for each in list_custom_ids(all_settings))


async def test_exceptions_are_added_changed_and_removed_by_form(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        card = await staff.slash(staff.admin, "settings show")
        page = await staff.admin.click(card.response, label="Roles: 0")
        assert "None." in read_text(page)
        form = await staff.admin.click(page.response, label="Add a rule")
        assert set(read_form_fields(form)) == {"who", "setting", "value"}
        values = {"who": [staff.member_role], "setting": ["speeds"], "value": "fast, relaxed"}
        added_card = await staff.admin.submit_modal(form, values)
        assert f"`1` <@&{staff.member_role.id}> · Speeds: **fast, relaxed**" in read_text(added_card)

        rule = f"role/{staff.member_role.id}/speeds"
        form = await staff.admin.select(added_card.response, [rule], custom_id="settings:change:rule")
        defaults = [each["value"] for each in read_form_fields(form)["value"]["options"] if each.get("default")]
        assert defaults == ["fast", "relaxed"]
        changed_card = await staff.admin.submit_modal(form, {"value": ["relaxed"]})
        assert "Speeds: **relaxed**" in read_text(changed_card)
        form = await staff.admin.select(changed_card.response, [rule], custom_id="settings:change:rule")
        removal = await staff.admin.submit_modal(form, {"value": []})
        assert "relaxed → **no rule**" in read_text(removal)
        assert "None." in read_text(removal)
        previous_card = await staff.admin.click(removal.response, label="Back")
        assert "Roles: 0" in list_button_labels(previous_card)


async def test_one_form_sets_a_rule_for_the_server_a_channel_or_a_member(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        for values, message in (
            ({"value": "9"}, "Most steps: no rule → **9**"),
            ({"value": "8", "channel": [staff.channel]}, f"<#{staff.channel.id}>: no rule → **8**"),
            ({"value": "7", "who": [staff.member]}, f"<@{staff.member.id}>: no rule → **7**"),
            ({"value": "6", "who": [staff.member_role]}, f"<@&{staff.member_role.id}>: no rule → **6**"),
            ({"value": "5", "who": [staff.guild.default_role]}, "Most steps: 9 → **5**"),
        ):
            card = await staff.slash(staff.admin, "settings show")
            form = await staff.admin.select(card.response, ["steps"], custom_id="settings:change")
            assert message in read_text(await staff.admin.submit_modal(form, values))
        card = await staff.slash(staff.admin, "settings show")
        form = await staff.admin.select(card.response, ["steps"], custom_id="settings:change")
        assert read_form_fields(form)["value"]["value"] == "5"
        second_value_reply = await staff.admin.submit_modal(
            form, {"value": "4", "who": [staff.member_role], "channel": [staff.channel]}
        )
        assert "Choose one of channel, role and member" in read_text(second_value_reply)
        form = await staff.admin.select(card.response, ["steps"], custom_id="settings:change")
        invalid_reply = await staff.admin.submit_modal(form, {"value": "many"})
        assert "a whole number from 1 to" in read_text(invalid_reply)
        form = await staff.admin.select(card.response, ["check"], custom_id="settings:change:server")
        assert "No worker can check pictures now" in read_text(await staff.admin.submit_modal(form, {"value": ["on"]}))


async def test_many_exceptions_have_pages(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        lines = "".join(f"  '{number}':\n    running: 2\n" for number in range(10**17, 10**17 + 40))
        question = await staff.slash(staff.admin, "settings import", file=("a.yml", f"roles:\n{lines}".encode()))
        assert "40 rules" in read_text(question)
        assert "more" in read_text(question)
        result = await staff.admin.click(question.response, label="Import")
        assert "40 rules changed" in read_text(result)
        first = await staff.admin.click(result.response, label="Roles: 40")
        assert "1 of 3" in list_button_labels(first)
        last = await staff.admin.click((await staff.admin.click(first.response, label="▶")).response, label="▶")
        assert "`40`" in read_text(last)
        assert "`30`" not in read_text(last)


async def test_cards_and_forms_survive_a_restart(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        card = await staff.slash(staff.admin, "settings show")
        form = await staff.admin.select(card.response, ["queued"], custom_id="settings:change")
        await world.restart()
        saved_card = await staff.admin.submit_modal(form, {"value": "2"})
        assert "Waiting in line: no rule → **2**" in read_text(saved_card)
        await world.restart()
        assert "was taken back" in read_text(await staff.admin.click(saved_card.response, label="Undo"))


async def test_a_new_rule_comes_with_a_warning_of_what_limits_its_effect(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="steps", value="50", role=staff.member_role)
        server_reply = read_text(await staff.slash(staff.admin, "settings set", setting="steps", value="40"))
        assert "1 more specific rule goes first" in server_reply
        await staff.slash(staff.operator, "settings budget", setting="steps", value="30")
        assert "This bot's operator allows 30" in read_text(
            await staff.slash(staff.admin, "settings set", setting="steps", value="45")
        )
        hidden_permissions = {staff.guild.default_role: discord.PermissionOverwrite(view_channel=False)}
        hidden_channel = staff.guild.create_text_channel("hidden", overwrites={**hidden_permissions, staff.admin: SEES})
        content = read_text(await staff.slash(staff.admin, "moderation reports", channel=hidden_channel))
        assert "I may not write in that channel" in content


async def test_unset_removes_a_rule_and_bad_rules_are_refused(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2", member=staff.member)
        removal = read_text(await staff.slash(staff.admin, "settings unset", setting="running", member=staff.member))
        assert "2 → **no rule**" in removal
        for options, message in (
            ({"setting": "runing", "value": "2"}, "the nearest is running"),
            ({"setting": "running", "value": "2", "role": staff.member_role, "member": staff.member}, "Choose one of"),
            ({"setting": "together_running", "value": "2", "role": staff.member_role}, "cannot be set for a role"),
            ({"setting": "closed", "value": "on"}, "/settings close"),
            ({"setting": "models", "value": "@everyone"}, "names"),
        ):
            refusal = await staff.slash(staff.admin, "settings set", **options)
            assert refusal.ephemeral
            assert message in read_text(refusal).replace("\\", "")
            assert "@everyone" not in read_text(refusal)


async def test_the_settings_suggest_names_and_values(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)

        async def suggest(option: str, typed_text: str, **values: Any) -> list[str]:
            choices = await staff.admin.autocomplete(staff.channel, "settings set", option, typed_text, **values)
            return [each["value"] for each in choices]

        assert await suggest("setting", "device time") == [
            "cost_day",
            "cost_month",
            "relaxed_day",
            "together_cost_day",
            "together_cost_month",
        ]
        assert "closed" not in await suggest("setting", "")
        assert await suggest("value", "emb", setting="models") == ["embedded"]
        world.painter.model = msgspec.structs.replace(world.painter.model, **MODEL_PARTS)
        await world.wait_until(lambda: world.services.catalog.find_entry(None).profile.controls)
        assert await suggest("value", "", setting="controls") == ["canny", "tile", "all", "none"]
        assert await suggest("value", "", setting="references") == ["face", "all", "none"]
        assert await suggest("value", "30", setting="cost_day") == ["30 min"]
        assert await suggest("value", "stu", setting="reports") == [str(staff.channel.id)]
        assert await suggest("value", "", setting="no such") == []


async def test_a_slow_answer_still_comes(open_world: Any, monkeypatch: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        rule_admin = world.app.services.rule_admin
        original_list = rule_admin.list_rules

        async def list_slowly(guild: str) -> Any:
            await asyncio.sleep(DEFER_AFTER + 0.3)
            return await original_list(guild)

        monkeypatch.setattr(rule_admin, "list_rules", list_slowly)
        card = await staff.slash(staff.admin, "settings show")
        await world.wait_until(lambda: card.response is not None and "Running at once" in read_text(card))
        assert card.ephemeral


async def test_the_other_buttons_of_the_overview(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        card = await staff.slash(staff.owner, "settings show")
        sheet = await staff.owner.click(card.response, label="Export")
        assert sheet.response.id != card.response.id, "the card stays"
        assert sheet.response.attachments[0].filename.endswith(".yaml")
        assert "words" in read_form_fields(await staff.owner.click(card.response, label="Words"))
        assert "reason" in read_form_fields(await staff.owner.click(card.response, label="Close"))
        assert "Nothing waits." in read_text(await staff.owner.click(card.response, label="Incidents"))


async def test_a_card_of_another_version_says_so(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        room = world.client.get_channel(staff.channel.id)
        for verb in ("ancient", "page", "add"):
            press = make_button("Old", verb, "elsewhere", 99)
            card = await room.send(view=make_layout(discord.ui.ActionRow(press)))
            assert "another version" in read_text(await staff.admin.click(card, label="Old")), verb


async def test_an_internal_error_is_reported_and_the_card_still_works(open_world: Any, monkeypatch: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        card = await staff.slash(staff.admin, "settings show")
        with monkeypatch.context() as patches:
            patches.setattr(cards, "build_history", None)
            failed_card = await staff.admin.click(card.response, label="History")
            assert "Something broke on our side" in read_text(failed_card)
        assert "Nothing yet." in read_text(await staff.admin.click(card.response, label="History"))
