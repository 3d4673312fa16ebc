"""The emergency stop, budgets, and files of rules; used by owner, admin, this bot's operator, and others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.policy.rules.planned_changes import MAX_BYTES
from shared.discord_staff import create_staff, list_button_labels, read_form_fields, read_text

pytestmark = pytest.mark.asyncio


def read_file(world: Any, result: Any) -> tuple[str, str]:
    """Reads the name and the text of an answer's only file."""
    (attachment,) = result.response.attachments
    return attachment.filename, world.env.backend.cdn.get(attachment.url).decode()


async def hang(*_args: Any) -> None:
    await asyncio.sleep(60)


async def test_close_cancels_running_jobs_and_refuses_with_its_reason_until_opened(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        world.painter.pause_step = 3
        running_job = await staff.slash(staff.member, "imagine", prompt="red apple")
        with monkeypatch.context() as long_queue:
            long_queue.setattr(type(world.services.job_views), "load_queue", hang)
            form = await staff.slash(staff.owner, "settings close", reason="spam **wave** @everyone")
        assert read_form_fields(form)["reason"]["value"] == "spam **wave** @everyone"
        assert "jobs** of this server are cancelled" in form.modal["components"][0]["content"]

        closed_card = await staff.owner.submit_modal(form, {"reason": "spam **wave** @everyone"})
        assert closed_card.ephemeral
        assert "1 job was cancelled" in read_text(closed_card)
        assert "ancelled" in (await world.wait_for_end(running_job)).content
        refusal = await staff.slash(staff.member, "imagine", prompt="red apple")
        assert "spam" in read_text(refusal)
        assert "**wave**" not in read_text(refusal)
        assert "@everyone" not in read_text(refusal)
        assert (await staff.slash(staff.member, "queue")).acknowledged, "the queue stays readable"

        card = await staff.slash(staff.owner, "settings show")
        assert "Closed" in read_text(card)
        assert "Close" not in list_button_labels(card)
        reply = await staff.owner.click(card.response, label="Open")
        assert "Open." in read_text(reply)
        world.painter.pause_step = None
        world.painter.step_gate.set()
        await world.wait_for_end(await staff.slash(staff.member, "imagine", prompt="red apple"))
        assert "already" in read_text(await staff.slash(staff.owner, "settings open"))


async def test_only_the_owner_closes(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        for actor in (staff.admin, staff.moderator, staff.member):
            assert "Only the server's owner may " in read_text(await staff.slash(actor, "settings close"))
            assert "Only the server's owner may " in read_text(await staff.slash(actor, "settings open"))


async def test_rules_are_exported_and_imported_as_a_file(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        await staff.slash(staff.admin, "settings set", setting="queued", value="1", role=staff.member_role)
        name, sheet = read_file(world, await staff.slash(staff.admin, "settings export"))
        assert name.endswith(".yaml")
        assert "running: 2" in sheet

        unchanged_reply = await staff.slash(staff.admin, "settings import", file=(name, sheet.encode()))
        assert "nothing to import" in read_text(unchanged_reply)
        changed_sheet = sheet.replace("running: 2", "running: 3")
        question = await staff.slash(staff.admin, "settings import", file=(name, changed_sheet.encode()))
        assert "Running at once: 2 → **3**" in read_text(question)
        assert len(await fetch_rules(world, staff)) == 2
        assert "Nothing was changed" in read_text(await staff.admin.click(question.response, label="Cancel"))

        question = await staff.slash(staff.admin, "settings import", file=(name, changed_sheet.encode()))
        await world.restart()
        world.client.operator_ids = frozenset({staff.operator.id})
        result = await staff.admin.click(question.response, label="Import")
        assert "Running at once: 2 → **3**" in read_text(result)
        assert {rule.value for rule in await fetch_rules(world, staff)} == {3, 1}
        await staff.admin.click(result.response, label="Undo")
        assert {rule.value for rule in await fetch_rules(world, staff)} == {2, 1}


async def fetch_rules(world: Any, staff: Any) -> list[Any]:
    return await world.app.services.rule_admin.list_rules(f"discord:{staff.guild.id}")


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "payload", "message"),
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
    open_world: Any, name: str, payload: bytes, message: str
) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        await staff.slash(staff.admin, "settings set", setting="running", value="2")
        refusal = await staff.slash(staff.admin, "settings import", file=(name, payload))
        assert refusal.ephemeral
        assert message in read_text(refusal)
        assert [(rule.setting, rule.value) for rule in await fetch_rules(world, staff)] == [("running", 2)]


async def test_the_operator_sets_budgets_also_by_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        staff = await create_staff(world)
        home = staff.operator.user
        guild_id = f"discord:{staff.guild.id}"
        choices = await home.autocomplete("settings budget", "guild", "pictures")
        assert [choice["value"] for choice in choices] == [guild_id]
        assert await staff.admin.autocomplete(staff.channel, "settings budget", "guild", "") == []

        no_budget_reply = await home.slash("settings budget", guild=guild_id)
        assert "None" in read_text(no_budget_reply)
        saved_reply = await home.slash("settings budget", guild=guild_id, queued="0", running="1")
        assert "2 rules changed" in read_text(saved_reply)
        assert "Pictures & co" in read_text(saved_reply)
        world.painter.pause_step = 2
        await staff.slash(staff.member, "imagine", prompt="red apple")
        refusal = await staff.slash(staff.moderator, "imagine", prompt="red apple")
        assert refusal.ephemeral
        assert "🚫" in read_text(refusal)
        capped_reply = await staff.slash(staff.admin, "settings set", setting="together_running", value="50")
        assert "🔒" in read_text(capped_reply)
        assert "🔒" in read_text(await staff.slash(staff.admin, "settings show"))
        half = await home.slash("settings budget", guild=guild_id, setting="steps")
        assert "needs both" in read_text(half)
        assert "Say for which server" in read_text(await home.slash("settings budget", queued="5"))
        removal = await home.slash("settings budget", guild=guild_id, queued="none", running="none")
        assert "2 rules changed" in read_text(removal)
        assert "no server" in read_text(await home.slash("settings budget", guild="somewhere", queued="1"))


async def test_nobody_else_sets_budgets(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        staff = await create_staff(world)
        for actor in (staff.owner, staff.admin, staff.member):
            refusal = await staff.slash(actor, "settings budget", queued="5")
            assert "Only this bot's operator may " in read_text(refusal)
        assert "Only this bot's operator" in read_text(await staff.member.user.slash("settings budget", queued="5"))
        assert "use it there" in read_text(await staff.operator.user.slash("settings show"))
