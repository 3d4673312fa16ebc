"""Rules set in Discord, by command and by card, and what follows for the next request; pressed as admins do."""

from __future__ import annotations

from typing import Any

import pytest

from chat.staff import buttons, fields, hired, ids, text

pytestmark = pytest.mark.asyncio


async def test_a_rule_for_a_role_holds_at_once_and_an_undo_takes_it_back(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        made = await staff.slash(staff.admin, "settings set", setting="steps", value="5", role=staff.crew)
        assert made.ephemeral
        assert f"<@&{staff.crew.id}>: no rule → **5**" in text(made)
        assert "Undo" in buttons(made)

        refused = await staff.slash(staff.member, "imagine", prompt="red apple", steps=10)
        assert refused.ephemeral
        assert "5" in text(refused)
        await world.ended(await staff.slash(staff.moderator, "imagine", prompt="red apple", steps=10))

        undone = await staff.admin.click(made.response, label="Undo")
        assert "was taken back" in text(undone)
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple", steps=10))


async def test_the_overview_shows_what_holds_and_changes_it(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        shown = await staff.slash(staff.admin, "settings show")
        assert shown.ephemeral
        assert "Running at once · 3" in text(shown)
        form = await staff.admin.select(shown.response, ["running"], custom_id="settings:change")
        assert "value" in fields(form)
        saved = await staff.admin.submit_modal(form, {"value": "4"})
        assert "Running at once: no rule → **4**" in text(saved)
        assert "Running at once · **4**" in text(saved)
        back = await staff.admin.click(saved.response, label="Undo")
        assert "was taken back" in text(back)
        again = await staff.admin.click(back.response, label="All settings")
        assert "Running at once · 3" in text(again)
        assert all(len(each) <= 100 for each in ids(again))
