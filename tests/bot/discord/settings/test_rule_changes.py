"""Rules set in Discord, by command and by card, and their effect on the next request; used as admins do."""

from __future__ import annotations

import asyncio
from typing import Any

import discord
import pytest

from bot.discord.responses import DEFER_AFTER
from bot.discord.settings import cards, ui_parts
from shared.discord_staff import buttons, fields, hired, ids, text

SEES = discord.PermissionOverwrite(view_channel=True)
pytestmark = pytest.mark.asyncio


async def test_a_rule_for_a_role_holds_at_once_and_an_undo_takes_it_back(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        saved = await staff.slash(staff.admin, "settings set", setting="steps", value="5", role=staff.crew)
        assert saved.ephemeral
        assert f"<@&{staff.crew.id}>: no rule → **5**" in text(saved)
        assert "Undo" in buttons(saved)

        refusal = await staff.slash(staff.member, "imagine", prompt="red apple", steps=10)
        assert refusal.ephemeral
        assert "5" in text(refusal)
        await world.ended(await staff.slash(staff.moderator, "imagine", prompt="red apple", steps=10))

        undo = await staff.admin.click(saved.response, label="Undo")
        assert "was taken back" in text(undo)
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple", steps=10))


async def test_the_overview_shows_what_holds_and_changes_it(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        card = await staff.slash(staff.admin, "settings show")
        assert card.ephemeral
        assert "Running at once · 3" in text(card)
        form = await staff.admin.select(card.response, ["running"], custom_id="settings:change")
        assert "value" in fields(form)
        saved = await staff.admin.submit_modal(form, {"value": "4"})
        assert "Running at once: no rule → **4**" in text(saved)
        assert "Running at once · **4**" in text(saved)
        back = await staff.admin.click(saved.response, label="Undo")
        assert "was taken back" in text(back)
        again = await staff.admin.click(back.response, label="All settings")
        assert "Running at once · 3" in text(again)
        assert all(len(each) <= 100 for each in ids(again))


async def test_exceptions_are_added_changed_and_removed_by_form(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        card = await staff.slash(staff.admin, "settings show")
        page = await staff.admin.click(card.response, label="Roles: 0")
        assert "None." in text(page)
        form = await staff.admin.click(page.response, label="Add a rule")
        assert set(fields(form)) == {"who", "setting", "value"}
        values = {"who": [staff.crew], "setting": ["speeds"], "value": "fast, relaxed"}
        added = await staff.admin.submit_modal(form, values)
        assert f"`1` <@&{staff.crew.id}> · Speeds: **fast, relaxed**" in text(added)

        rule = f"role/{staff.crew.id}/speeds"
        form = await staff.admin.select(added.response, [rule], custom_id="settings:change:rule")
        defaults = [each["value"] for each in fields(form)["value"]["options"] if each.get("default")]
        assert defaults == ["fast", "relaxed"]
        changed = await staff.admin.submit_modal(form, {"value": ["relaxed"]})
        assert "Speeds: **relaxed**" in text(changed)
        form = await staff.admin.select(changed.response, [rule], custom_id="settings:change:rule")
        removal = await staff.admin.submit_modal(form, {"value": []})
        assert "relaxed → **no rule**" in text(removal)
        assert "None." in text(removal)
        back = await staff.admin.click(removal.response, label="Back")
        assert "Roles: 0" in buttons(back)


async def test_one_form_serves_everyone_a_channel_and_a_member(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        for values, says in (
            ({"value": "9"}, "Most steps: no rule → **9**"),
            ({"value": "8", "channel": [staff.channel]}, f"<#{staff.channel.id}>: no rule → **8**"),
            ({"value": "7", "who": [staff.member]}, f"<@{staff.member.id}>: no rule → **7**"),
            ({"value": "6", "who": [staff.crew]}, f"<@&{staff.crew.id}>: no rule → **6**"),
            ({"value": "5", "who": [staff.guild.default_role]}, "Most steps: 9 → **5**"),
        ):
            card = await staff.slash(staff.admin, "settings show")
            form = await staff.admin.select(card.response, ["steps"], custom_id="settings:change")
            assert says in text(await staff.admin.submit_modal(form, values))
        card = await staff.slash(staff.admin, "settings show")
        form = await staff.admin.select(card.response, ["steps"], custom_id="settings:change")
        assert fields(form)["value"]["value"] == "5"
        both = await staff.admin.submit_modal(form, {"value": "4", "who": [staff.crew], "channel": [staff.channel]})
        assert "Choose one of channel, role and member" in text(both)
        form = await staff.admin.select(card.response, ["steps"], custom_id="settings:change")
        wrong = await staff.admin.submit_modal(form, {"value": "many"})
        assert "a whole number from 1 to" in text(wrong)
        form = await staff.admin.select(card.response, ["check"], custom_id="settings:change:server")
        assert "No worker can check pictures now" in text(await staff.admin.submit_modal(form, {"value": ["on"]}))


async def test_many_exceptions_have_pages(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        lines = "".join(f"  '{number}':\n    running: 2\n" for number in range(10**17, 10**17 + 40))
        question = await staff.slash(staff.admin, "settings import", file=("a.yml", f"roles:\n{lines}".encode()))
        assert "40 rules" in text(question)
        assert "more" in text(question)
        result = await staff.admin.click(question.response, label="Import")
        assert "40 rules changed" in text(result)
        first = await staff.admin.click(result.response, label="Roles: 40")
        assert "1 of 3" in buttons(first)
        last = await staff.admin.click((await staff.admin.click(first.response, label="▶")).response, label="▶")
        assert "`40`" in text(last)
        assert "`30`" not in text(last)


async def test_cards_and_forms_survive_a_restart(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        card = await staff.slash(staff.admin, "settings show")
        form = await staff.admin.select(card.response, ["queued"], custom_id="settings:change")
        await world.restart()
        saved = await staff.admin.submit_modal(form, {"value": "2"})
        assert "Waiting in line: no rule → **2**" in text(saved)
        await world.restart()
        assert "was taken back" in text(await staff.admin.click(saved.response, label="Undo"))


async def test_a_new_rule_comes_with_a_warning_of_what_limits_its_effect(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="steps", value="50", role=staff.crew)
        wide = text(await staff.slash(staff.admin, "settings set", setting="steps", value="40"))
        assert "1 more specific rule goes first" in wide
        await staff.slash(staff.keeper, "settings budget", setting="steps", value="30")
        assert "This bot's operator allows 30" in text(
            await staff.slash(staff.admin, "settings set", setting="steps", value="45")
        )
        unseen = {staff.guild.default_role: discord.PermissionOverwrite(view_channel=False)}
        hidden = staff.guild.create_text_channel("hidden", overwrites={**unseen, staff.admin: SEES})
        content = text(await staff.slash(staff.admin, "moderation reports", channel=hidden))
        assert "I may not write in that channel" in content


async def test_unset_removes_a_rule_and_bad_rules_are_refused(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2", member=staff.member)
        removal = text(await staff.slash(staff.admin, "settings unset", setting="running", member=staff.member))
        assert "2 → **no rule**" in removal
        for options, says in (
            ({"setting": "runing", "value": "2"}, "the nearest is running"),
            ({"setting": "running", "value": "2", "role": staff.crew, "member": staff.member}, "Choose one of"),
            ({"setting": "together_running", "value": "2", "role": staff.crew}, "cannot be set for a role"),
            ({"setting": "closed", "value": "on"}, "/settings close"),
            ({"setting": "models", "value": "@everyone"}, "names"),
        ):
            refusal = await staff.slash(staff.admin, "settings set", **options)
            assert refusal.ephemeral
            assert says in text(refusal).replace("\\", "")
            assert "@everyone" not in text(refusal)


async def test_the_settings_suggest_names_and_values(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)

        async def suggest(option: str, typed: str, **values: Any) -> list[str]:
            found = await staff.admin.autocomplete(staff.channel, "settings set", option, typed, **values)
            return [each["value"] for each in found]

        assert await suggest("setting", "device time") == [
            "cost_day", "cost_month", "together_cost_day", "together_cost_month",
        ]  # fmt: skip
        assert "closed" not in await suggest("setting", "")
        assert await suggest("value", "emb", setting="models") == ["embedded"]
        assert await suggest("value", "30", setting="cost_day") == ["30 min"]
        assert await suggest("value", "stu", setting="reports") == [str(staff.channel.id)]
        assert await suggest("value", "", setting="no such") == []


async def test_a_slow_answer_still_comes(open_world: Any, monkeypatch: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        administration = world.house.services.rule_admin
        fast = administration.list_rules

        async def slow(guild: str) -> Any:
            await asyncio.sleep(DEFER_AFTER + 0.3)
            return await fast(guild)

        monkeypatch.setattr(administration, "list_rules", slow)
        card = await staff.slash(staff.admin, "settings show")
        await world.until(lambda: card.response is not None and "Running at once" in text(card))
        assert card.ephemeral


async def test_the_other_buttons_of_the_overview(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        card = await staff.slash(staff.owner, "settings show")
        sheet = await staff.owner.click(card.response, label="Export")
        assert sheet.response.id != card.response.id, "the card stays"
        assert sheet.response.attachments[0].filename.endswith(".yaml")
        assert "words" in fields(await staff.owner.click(card.response, label="Words"))
        assert "reason" in fields(await staff.owner.click(card.response, label="Close"))
        assert "Nothing waits." in text(await staff.owner.click(card.response, label="Incidents"))


async def test_a_card_of_another_version_says_so(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        room = world.client.get_channel(staff.channel.id)
        for verb in ("ancient", "page", "add"):
            press = ui_parts.button("Old", verb, "elsewhere", 99)
            card = await room.send(view=ui_parts.layout(ui_parts.row(press)))
            assert "older version" in text(await staff.admin.click(card, label="Old")), verb


async def test_an_internal_error_is_reported_and_the_card_still_works(open_world: Any, monkeypatch: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        card = await staff.slash(staff.admin, "settings show")
        with monkeypatch.context() as patched:
            patched.setattr(cards, "build_history", None)
            broken = await staff.admin.click(card.response, label="History")
            assert "Something broke on our side" in text(broken)
        assert "Nothing yet." in text(await staff.admin.click(card.response, label="History"))
