"""The emergency stop, budgets, and files of rules; used by owner, admin, this bot's operator, and others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.policy.rules.yaml_io import MAX_BYTES
from shared.discord_staff import buttons, fields, hired, text

pytestmark = pytest.mark.asyncio


def read_file(world: Any, result: Any) -> tuple[str, str]:
    """The name and the text of an answer's only file."""
    (attachment,) = result.response.attachments
    return attachment.filename, world.env.backend.cdn.get(attachment.url).decode()


async def hang(*_args: Any) -> None:
    await asyncio.sleep(60)


async def test_close_cancels_running_jobs_and_refuses_with_its_reason_until_opened(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        staff = await hired(world)
        world.painter.stand_at = 3
        running = await staff.slash(staff.member, "imagine", prompt="red apple")
        with monkeypatch.context() as long_queue:
            long_queue.setattr(type(world.house.services), "load_queue", hang)
            form = await staff.slash(staff.owner, "settings close", reason="spam **wave** @everyone")
        assert fields(form)["reason"]["value"] == "spam **wave** @everyone"
        assert "jobs** of this server are cancelled" in form.modal["components"][0]["content"]

        closed = await staff.owner.submit_modal(form, {"reason": "spam **wave** @everyone"})
        assert closed.ephemeral
        assert "1 job was cancelled" in text(closed)
        assert "ancelled" in (await world.ended(running)).content
        refusal = await staff.slash(staff.member, "imagine", prompt="red apple")
        assert "spam" in text(refusal)
        assert "**wave**" not in text(refusal)
        assert "@everyone" not in text(refusal)
        assert (await staff.slash(staff.member, "queue")).acknowledged, "the queue stays readable"

        card = await staff.slash(staff.owner, "settings show")
        assert "Closed" in text(card)
        assert "Close" not in buttons(card)
        reply = await staff.owner.click(card.response, label="Open")
        assert "Open." in text(reply)
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


async def test_rules_are_exported_and_imported_as_a_file(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.admin, "settings set", setting="queued", value="1", role=staff.crew)
        name, sheet = read_file(world, await staff.slash(staff.admin, "settings export"))
        assert name.endswith(".yaml")
        assert "running: 2" in sheet

        same = await staff.slash(staff.admin, "settings import", file=(name, sheet.encode()))
        assert "nothing to import" in text(same)
        changed = sheet.replace("running: 2", "running: 3")
        question = await staff.slash(staff.admin, "settings import", file=(name, changed.encode()))
        assert "Running at once: 2 → **3**" in text(question)
        assert len(await fetch_rules(world, staff)) == 2
        assert "Nothing was changed" in text(await staff.admin.click(question.response, label="Cancel"))

        question = await staff.slash(staff.admin, "settings import", file=(name, changed.encode()))
        await world.restart()
        world.client.operator_ids = frozenset({staff.keeper.id})
        result = await staff.admin.click(question.response, label="Import")
        assert "Running at once: 2 → **3**" in text(result)
        assert {rule.value for rule in await fetch_rules(world, staff)} == {3, 1}
        await staff.admin.click(result.response, label="Undo")
        assert {rule.value for rule in await fetch_rules(world, staff)} == {2, 1}


async def fetch_rules(world: Any, staff: Any) -> list[Any]:
    return await world.house.services.rule_admin.list_rules(f"discord:{staff.guild.id}")


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "payload", "says"),
    [
        ("a.yaml", b"server:\n  running: 2\n  queued: many\n", "Line 3"),
        ("a.yaml", b"server:\n  running: [\n", "Line "),
        ("a.yaml", b"server:\n  # \xff\xfe\n", "Line 2 of the file is not UTF-8"),
        ("a.yaml", b"a: &x [*x]\n", "Line 1"),
        ("a.png", b"\x89PNG", "is no YAML file"),
        ("a.yaml", b"#" * (MAX_BYTES + 1), "too large"),
        ("a.yaml", b"server:\n  closed: never\n", "Line 2"),
    ],
)
async def test_a_broken_file_changes_nothing_and_names_the_line(
    open_world: Any, name: str, payload: bytes, says: str
) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        refusal = await staff.slash(staff.admin, "settings import", file=(name, payload))
        assert refusal.ephemeral
        assert says in text(refusal)
        assert [(rule.setting, rule.value) for rule in await fetch_rules(world, staff)] == [("running", 2)]


async def test_the_operator_sets_budgets_also_by_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        staff = await hired(world)
        home = staff.keeper.user
        here = f"discord:{staff.guild.id}"
        choices = await home.autocomplete("settings budget", "guild", "pictures")
        assert [choice["value"] for choice in choices] == [here]
        assert await staff.admin.autocomplete(staff.channel, "settings budget", "guild", "") == []

        none = await home.slash("settings budget", guild=here)
        assert "None" in text(none)
        saved = await home.slash("settings budget", guild=here, queued="0", running="1")
        assert "2 rules changed" in text(saved)
        assert "Pictures & co" in text(saved)
        world.painter.stand_at = 2
        await staff.slash(staff.member, "imagine", prompt="red apple")
        refusal = await staff.slash(staff.moderator, "imagine", prompt="red apple")
        assert refusal.ephemeral
        assert "🚫" in text(refusal)
        capped = await staff.slash(staff.admin, "settings set", setting="together_running", value="50")
        assert "🔒" in text(capped)
        assert "🔒" in text(await staff.slash(staff.admin, "settings show"))
        half = await home.slash("settings budget", guild=here, setting="steps")
        assert "needs both" in text(half)
        assert "Say for which server" in text(await home.slash("settings budget", queued="5"))
        removal = await home.slash("settings budget", guild=here, queued="none", running="none")
        assert "2 rules changed" in text(removal)
        assert "no server" in text(await home.slash("settings budget", guild="somewhere", queued="1"))


async def test_nobody_else_sets_budgets(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await hired(world)
        for who in (staff.owner, staff.admin, staff.member):
            refusal = await staff.slash(who, "settings budget", queued="5")
            assert "Only this bot's operator may " in text(refusal)
        assert "Only this bot's operator" in text(await staff.member.user.slash("settings budget", queued="5"))
        assert "use it there" in text(await staff.keeper.user.slash("settings show"))
