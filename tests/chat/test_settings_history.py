"""Who decides what, and what was changed: explanations, the history, presets and undo, by everybody who may look."""

from __future__ import annotations

import re
from typing import Any

import pytest
from simcord.components import walk_components

from chat.staff import buttons, hired, text

pytestmark = pytest.mark.asyncio


async def test_explain_names_the_rule_that_decides_and_the_use(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.admin, "settings set", setting="running", value="4", role=staff.crew)
        world.painter.stand_at = 2
        running = await staff.slash(staff.member, "imagine", prompt="red apple")
        await world.until(lambda: "step 1 of" in world.message(running.response.id).content)
        said = text(await staff.slash(staff.admin, "settings explain", member=staff.member, setting="running"))
        assert f"What holds for <@{staff.member.id}>" in said
        assert "Running at once · **1 of 4**" in said
        assert f"<@&{staff.crew.id}>" in said, "the role's rule decides"
        assert "2" in said, "over the server's"
        all_of_it = text(await staff.slash(staff.moderator, "settings explain", member=staff.member))
        now, ruled, default = all_of_it.index("### Now"), all_of_it.find("### Set by"), all_of_it.index("### By")
        assert now < all_of_it.index("Running at once · **1 of 4**") < default
        assert re.search(r"Device time a day · \*\*\d+ s of 30 min\*\*", all_of_it[now:default])
        assert ruled == -1, "the one rule for them limits them now"
        assert "-# Waiting in line · 0 of 7\n" in all_of_it[default:]
        assert all_of_it.endswith("-# Blocked · no")
        assert len(all_of_it) <= 4000
        other = text(await staff.slash(staff.admin, "settings explain", member=staff.keeper, setting="running"))
        assert "Running at once · **0 of 2**" in other


async def test_explain_in_a_channel_and_from_the_overview(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="steps", value="7", channel=staff.channel)
        there = text(
            await staff.slash(
                staff.admin, "settings explain", member=staff.member, setting="steps", channel=staff.channel
            )
        )
        assert "**7**" in there
        assert f"<#{staff.channel.id}>" in there
        here = text(await staff.slash(staff.admin, "settings explain", member=staff.member, setting="steps"))
        assert here == there, "without a channel it is about this one"
        shown = await staff.slash(staff.admin, "settings show")
        chosen = await staff.admin.select(shown.response, [staff.member], custom_id="settings:explain")
        assert f"What holds for <@{staff.member.id}>" in text(chosen)


async def test_the_history_has_pages_and_an_undo_for_each(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        for number in range(2, 9):
            await staff.slash(staff.admin, "settings set", setting="running", value=str(number))
        first = await staff.slash(staff.admin, "settings log")
        assert first.ephemeral
        assert "7 → **8**" in text(first)
        assert "1 of 2" in buttons(first)
        second = await staff.admin.click(first.response, label="▶")
        assert "no rule → **2**" in text(second)
        back = await staff.admin.click(second.response, label="◀")
        newest = max(await world.house.desk.administration.changes(f"discord:{staff.guild.id}"), key=lambda c: c.number)
        undone = await staff.admin.click(back.response, custom_id=f"settings:back:{newest.number}:0")
        assert f"No. {newest.number} was taken back" in text(undone)
        assert "8 → **7**" in text(undone)
        again = await staff.slash(staff.admin, "settings undo", number=newest.number)
        assert "undone already" in text(again)
        assert "was taken back" in text(await staff.slash(staff.admin, "settings undo"))
        missing = await staff.slash(staff.admin, "settings undo", number=99999)
        assert "🚫" in text(missing)


async def test_a_preset_shows_what_it_would_change_and_asks(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        names = await staff.admin.autocomplete(staff.channel, "settings preset", "name", "lar")
        assert [choice["value"] for choice in names] == ["large server"]
        asked = await staff.slash(staff.admin, "settings preset", name="large server")
        assert "Running at once: no rule → **1**" in text(asked)
        assert await rules(world, staff) == []
        left = await staff.admin.click(asked.response, label="Cancel")
        assert "Nothing was changed" in text(left)
        assert await rules(world, staff) == []

        shown = await staff.slash(staff.admin, "settings show")
        offered = await staff.admin.click(shown.response, label="Presets")
        seen = await staff.admin.click(offered.response, custom_id="settings:preset:contest")
        done = await staff.admin.click(seen.response, label="Apply")
        assert "rules changed" in text(done)
        assert "Most steps · **100**" in text(done)
        await staff.admin.click(done.response, label="Undo")
        assert await rules(world, staff) == []
        assert "the nearest is" in text(await staff.slash(staff.admin, "settings preset", name="hugeserver"))


async def test_an_undo_takes_what_the_change_took(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.keeper, "settings budget", running="9")
        form = await staff.slash(staff.owner, "settings close", reason="night")
        await staff.owner.submit_modal(form, {"reason": "night"})
        for who, may in ((staff.moderator, 0), (staff.admin, 1), (staff.owner, 2), (staff.keeper, 3)):
            shown = await staff.slash(who, "settings log")
            found = [each for each in walk_components(shown.response.components) if each.get("label") == "Undo"]
            assert [not each.get("disabled") for each in found].count(True) == may, who.name
        close, budget, _ = await world.house.desk.administration.changes(f"discord:{staff.guild.id}")
        for change, says in ((close, "Only the server's owner"), (budget, "Only this bot's operator")):
            assert says in text(await staff.slash(staff.admin, "settings undo", number=change.number))
        assert "was taken back" in text(await staff.slash(staff.owner, "settings undo", number=close.number))


async def rules(world: Any, staff: Any) -> list[Any]:
    return await world.house.desk.administration.rules(f"discord:{staff.guild.id}")


async def test_moderators_look_and_members_do_not(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        for name in ("show", "log", "export"):
            assert "🚫" not in text(await staff.slash(staff.moderator, f"settings {name}"))
            assert "Only moderators" in text(await staff.slash(staff.member, f"settings {name}"))
        asked: dict[str, dict[str, Any]] = {
            "set": {"setting": "running", "value": "9"},
            "unset": {"setting": "running"},
            "preset": {"name": "contest"},
            "import": {"file": ("a.yaml", b"server:\n  running: 9\n")},
        }
        for name, options in asked.items():
            for who in (staff.moderator, staff.member, staff.keeper):
                refused = await staff.slash(who, f"settings {name}", **options)
                allowed = who is staff.keeper
                assert ("Only admins" not in text(refused)) == allowed, (name, who.name)
                if allowed and name in ("set", "unset"):
                    await staff.slash(staff.admin, "settings undo")
        undo = await staff.slash(staff.member, "settings undo")
        assert "🚫" in text(undo)
        look = await staff.slash(staff.member, "settings explain", member=staff.admin)
        assert "Only moderators" in text(look)
        assert [(rule.setting, rule.value) for rule in await rules(world, staff)] == [("running", 2)]


async def test_a_card_in_the_hands_of_somebody_who_lost_their_standing(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        shown = await staff.slash(staff.admin, "settings show")
        form = await staff.admin.select(shown.response, ["running"], custom_id="settings:change")
        world.env.backend.get_guild(staff.guild.id).members[staff.admin.id].role_ids.clear()
        late = await staff.admin.submit_modal(form, {"value": "9"})
        assert "Only admins" in text(late)
        for label in ("History", "Presets", "Words", "Export", "Close", "Channels: 0"):
            refused = await staff.admin.click(shown.response, label=label)
            assert "Only" in text(refused), label
        assert await rules(world, staff) == []


async def test_explain_says_when_something_frees(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="cost_day", value="1 h")
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        said = text(await staff.slash(staff.admin, "settings explain", member=staff.member, setting="cost_day"))
        assert re.search(r"\*\*\d+ s of 1 h\*\*, some frees <t:\d+:R>", said)
        assert "the server's rule decides" in said
        assert "no setting" in text(
            await staff.slash(staff.admin, "settings explain", member=staff.member, setting="nothing")
        )
