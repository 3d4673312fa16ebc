"""`/prefer option`, typed by a member."""

from __future__ import annotations

from typing import Any

import pytest

from bot.features.flag_aliases.discord import render_aliases
from bot.features.flag_aliases.rules import MAX_ALIASES
from shared.discord_staff import read_text


def test_all_flag_aliases_fit_one_message() -> None:
    aliases = {f"{'x' * 22}{n:02}": "*" * 500 for n in range(MAX_ALIASES)}
    message = render_aliases(aliases, "</prefer option set:1234567890123456789>")
    assert len(message) <= 2000
    assert message.count("`--") == MAX_ALIASES


@pytest.mark.asyncio
async def test_flag_aliases_are_set_listed_used_and_deleted(open_world: Any) -> None:
    async with open_world() as world:
        empty_list_reply = await world.alice.slash(world.channel, "prefer option list")
        assert empty_list_reply.ephemeral
        assert "no flag alias yet" in read_text(empty_list_reply)
        change = await world.alice.slash(
            world.channel, "prefer option set", name="mine", value="pale `one` --seed 5 --count 1"
        )
        assert change.ephemeral
        assert "From now on: `--mine` stands for **pale" in read_text(change)
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple --mine")
        assert "--mine stands for" in read_text(result)
        await world.wait_for_end(result)
        view = (await world.services.job_views.load_recent())[0]
        assert (view.prompt, view.task.seed) == ("red apple pale `one` --seed 5 --count 1", 5)
        assert "no flag --mine" in read_text(await world.bob.slash(world.channel, "imagine", prompt="red apple --mine"))
        (offer,) = await world.alice.autocomplete(world.channel, "prefer option set", "name", "mi")
        assert offer["value"] == "mine"
        assert "`--mine`" in read_text(await world.alice.slash(world.channel, "prefer option list"))
        invalid_reply = await world.alice.slash(world.channel, "prefer option set", name="other", value="--steps 9999")
        assert "--steps 9999 is not possible" in read_text(invalid_reply)
        deletion = await world.alice.slash(world.channel, "prefer option set", name="mine")
        assert "`--mine` is deleted" in read_text(deletion)
        assert "no option --mine" in read_text(await world.alice.slash(world.channel, "prefer option set", name="mine"))
