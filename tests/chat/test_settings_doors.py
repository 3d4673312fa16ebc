"""The emergency stop, budgets, and files of rules; pressed by owner, admin, this bot's operator, and others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.rules.sheet import BYTES
from chat.staff import buttons, fields, hired, text

pytestmark = pytest.mark.asyncio


def file(world: Any, result: Any) -> tuple[str, str]:
    """The name and the text of the one file of an answer."""
    (attached,) = result.response.attachments
    return attached.filename, world.env.backend.cdn.get(attached.url).decode()


async def never(*_given: Any) -> None:
    await asyncio.sleep(60)


async def test_close_cancels_what_runs_and_refuses_with_the_reason_until_opened(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        staff = await hired(world)
        world.painter.stand_at = 3
        running = await staff.slash(staff.member, "imagine", prompt="red apple")
        with monkeypatch.context() as long_queue:
            long_queue.setattr(type(world.house.studio), "queue", never)
            form = await staff.slash(staff.owner, "settings close", reason="spam **wave** @everyone")
        assert fields(form)["reason"]["value"] == "spam **wave** @everyone"
        assert "jobs** of this server are cancelled" in form.modal["components"][0]["content"]

        closed = await staff.owner.submit_modal(form, {"reason": "spam **wave** @everyone"})
        assert closed.ephemeral
        assert "1 job was cancelled" in text(closed)
        assert "ancelled" in (await world.ended(running)).content
        refused = await staff.slash(staff.member, "imagine", prompt="red apple")
        assert "spam" in text(refused)
        assert "**wave**" not in text(refused)
        assert "@everyone" not in text(refused)
        assert (await staff.slash(staff.member, "queue")).acknowledged, "looking is not closed"

        shown = await staff.slash(staff.owner, "settings show")
        assert "Closed" in text(shown)
        assert "Close" not in buttons(shown)
        opened = await staff.owner.click(shown.response, label="Open")
        assert "Open." in text(opened)
        world.painter.stand_at = None
        world.painter.going.set()
        await world.ended(await staff.slash(staff.member, "imagine", prompt="red apple"))
        assert "already" in text(await staff.slash(staff.owner, "settings open"))


async def test_only_the_owner_closes(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        for who in (staff.admin, staff.moderator, staff.member):
            assert "Only the server's owner may " in text(await staff.slash(who, "settings close"))
            assert "Only the server's owner may " in text(await staff.slash(who, "settings open"))


async def test_rules_go_out_as_a_file_and_come_back(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.admin, "settings set", setting="queued", value="1", role=staff.crew)
        name, sheet = file(world, await staff.slash(staff.admin, "settings export"))
        assert name.endswith(".yaml")
        assert "running: 2" in sheet

        same = await staff.slash(staff.admin, "settings import", file=(name, sheet.encode()))
        assert "nothing to import" in text(same)
        changed = sheet.replace("running: 2", "running: 3")
        asked = await staff.slash(staff.admin, "settings import", file=(name, changed.encode()))
        assert "Running at once: 2 → **3**" in text(asked)
        assert len(await rules(world, staff)) == 2
        assert "Nothing was changed" in text(await staff.admin.click(asked.response, label="Cancel"))

        asked = await staff.slash(staff.admin, "settings import", file=(name, changed.encode()))
        await world.restart()
        world.client.keepers = frozenset({staff.keeper.id})
        done = await staff.admin.click(asked.response, label="Import")
        assert "Running at once: 2 → **3**" in text(done)
        assert {rule.value for rule in await rules(world, staff)} == {3, 1}
        await staff.admin.click(done.response, label="Undo")
        assert {rule.value for rule in await rules(world, staff)} == {2, 1}


async def rules(world: Any, staff: Any) -> list[Any]:
    return await world.house.desk.administration.rules(f"discord:{staff.guild.id}")


@pytest.mark.parametrize(
    ("name", "payload", "says"),
    [
        ("a.yaml", b"server:\n  running: 2\n  queued: many\n", "Line 3"),
        ("a.yaml", b"server:\n  running: [\n", "Line "),
        ("a.yaml", b"server:\n  # \xff\xfe\n", "Line 2 of the file is not UTF-8"),
        ("a.yaml", b"a: &x [*x]\n", "Line 1"),
        ("a.png", b"\x89PNG", "is no YAML file"),
        ("a.yaml", b"#" * (BYTES + 1), "too large"),
        ("a.yaml", b"server:\n  closed: never\n", "Line 2"),
    ],
)
async def test_a_broken_file_changes_nothing_and_names_the_line(
    open_world: Any, name: str, payload: bytes, says: str
) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        refused = await staff.slash(staff.admin, "settings import", file=(name, payload))
        assert refused.ephemeral
        assert says in text(refused)
        assert [(rule.setting, rule.value) for rule in await rules(world, staff)] == [("running", 2)]


async def test_budgets_are_set_by_whoever_runs_the_bot_also_by_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        home = staff.keeper.user
        here = f"discord:{staff.guild.id}"
        choices = await home.autocomplete("settings budget", "guild", "pictures")
        assert [choice["value"] for choice in choices] == [here]
        assert await staff.admin.autocomplete(staff.channel, "settings budget", "guild", "") == []

        none = await home.slash("settings budget", guild=here)
        assert "None" in text(none)
        set_ = await home.slash("settings budget", guild=here, queued="0", running="1")
        assert "2 rules changed" in text(set_)
        assert "Pictures & co" in text(set_)
        world.painter.stand_at = 2
        await staff.slash(staff.member, "imagine", prompt="red apple")
        refused = await staff.slash(staff.moderator, "imagine", prompt="red apple")
        assert refused.ephemeral
        assert "🚫" in text(refused)
        capped = await staff.slash(staff.admin, "settings set", setting="together_running", value="50")
        assert "🔒" in text(capped)
        assert "🔒" in text(await staff.slash(staff.admin, "settings show"))
        half = await home.slash("settings budget", guild=here, setting="steps")
        assert "needs both" in text(half)
        assert "Say for which server" in text(await home.slash("settings budget", queued="5"))
        gone = await home.slash("settings budget", guild=here, queued="none", running="none")
        assert "2 rules changed" in text(gone)
        assert "no server" in text(await home.slash("settings budget", guild="somewhere", queued="1"))


async def test_nobody_else_sets_budgets(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        for who in (staff.owner, staff.admin, staff.member):
            refused = await staff.slash(who, "settings budget", queued="5")
            assert "Only this bot's operator may " in text(refused)
        assert "Only this bot's operator" in text(await staff.member.user.slash("settings budget", queued="5"))
        assert "ask for it there" in text(await staff.keeper.user.slash("settings show"))
