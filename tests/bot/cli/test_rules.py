"""`darkroom rules`: the operator's commands, and how a running bot applies them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bot.__main__ import main
from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError


def run_rules_command(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["darkroom", "rules", *words, "--data", str(folder)])
    with pytest.raises(SystemExit) as error:
        main()
    return int(error.value.code or 0)


@pytest.fixture
def rules(monkeypatch, tmp_path, capsys):
    def run(*words: str, is_refused: bool = False) -> str:
        code = run_rules_command(monkeypatch, tmp_path / "data", *words)
        output = capsys.readouterr()
        assert (code != 0) is is_refused, output
        return output.err if is_refused else output.out

    return run


def test_set_show_explain_and_undo(rules):
    assert rules("show") == "No rules are set: the bot's defaults hold.\n"
    assert rules("set", "cost_day", "2 h") == (
        "cost_day for the operator's ceiling: no rule → 2 h\nChange 1: `darkroom rules undo 1` takes it back.\n"
    )
    rules("set", "cost_day", "1h", "--guild", "g", "--role", "7")
    rules("budget", "together_cost_day=10 h", "running=2", "--guild", "g")
    shown_rules = json.loads(rules("show", "--guild", "g", "--json"))
    assert [(rule["scope"], rule["subject"], rule["setting"], rule["text"]) for rule in shown_rules] == [
        ("operator", "", "running", "2"),
        ("operator", "", "together_cost_day", "10 h"),
        ("role", "7", "cost_day", "1 h"),
    ]
    assert "role 7                       cost_day             1 h" in rules("show", "--guild", "g")
    (explanation,) = json.loads(rules("explain", "discord:1", "cost_day", "--guild", "g", "--role", "7", "--json"))
    assert (explanation["value"], explanation["used"]) == ("1 h", "0 s of 1 h")
    assert explanation["sentence"] == (
        "cost_day is 1 h: the rule for role 7 decides; this bot's operator allows at most 2 h over all servers."
    )
    assert "running is 2: this bot's operator decides" in rules("explain", "discord:1", "--guild", "g")
    assert "budget by terminal: 2 rules" in rules("log", "--guild", "g")
    rules("budget", "running=", "--guild", "g")
    rules("undo", "--guild", "g")
    assert "running" in rules("show", "--guild", "g")
    rules("unset", "cost_day", "--guild", "g", "--role", "7")
    assert " cost_day " not in rules("show", "--guild", "g")


def test_a_bare_number_is_an_id_on_discord(rules):
    rules("set", "running", "2", "--guild", "123", "--user", "456")
    (rule,) = json.loads(rules("show", "--guild", "discord:123", "--json"))
    assert (rule["guild"], rule["subject"]) == ("discord:123", "discord:456")
    assert "running is 2" in rules("explain", "discord:456", "running", "--guild", "123")


def test_export_and_import(rules, tmp_path):
    rules("set", "running", "2", "--guild", "g")
    rules("set", "blocked", "on", "--guild", "g", "--user", "discord:5")
    file = tmp_path / "rules.yaml"
    rules("export", str(file), "--guild", "g")
    assert rules("export", "--guild", "g") == file.read_text()
    rules("import", str(file), "--guild", "h")
    assert rules("show", "--guild", "h") == rules("show", "--guild", "g")
    file.write_text("server:\n  runing: 3\n")
    assert "Line 2 of the file: There is no setting “runing”" in rules(
        "import", str(file), "--guild", "h", is_refused=True
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "cost_dya", "1h"), "There is no setting “cost_dya”; the nearest is cost_day."),
        (("set", "running", "many"), "running cannot be “many”: it takes a whole number from 1 to 1000."),
        (("set", "running", "1", "--role", "1", "--user", "2"), "A rule is for one of --channel, --role, --user or"),
        (("set", "running", "1", "--role", "1"), "running cannot be set for a role; it can for: operator, user."),
        (("budget", "running"), "“running” is no SETTING=VALUE, as in cost_day=1h."),
        (("undo",), "There is nothing to undo."),
        (("import", "nowhere.yaml"), "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(rules, words, message):
    assert message in " ".join(rules(*words, is_refused=True).split())


@pytest.mark.asyncio
async def test_a_running_bot_applies_rules_from_the_terminal(harness, monkeypatch, capsys):
    app = await harness.open_app()
    bob = Member("discord:5", "Bob", "g")
    await app.services.jobs.imagine("a lamp", bob, Destination("web", {}))

    def run_command() -> int:
        return run_rules_command(monkeypatch, harness.settings.data, "set", "steps", "10", "--guild", "g")

    assert await asyncio.to_thread(run_command) == 0
    with pytest.raises(UserError, match="at most 10 are allowed here"):
        await app.services.jobs.imagine("a lamp", bob, Destination("web", {}))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_operator_closes_one_server_or_all_from_the_terminal(harness, monkeypatch, capsys, wait_until):
    app = await harness.open_app()
    bob = Member("discord:5", "Bob", "discord:7", is_owner=True)
    eve = Member("discord:6", "Eve", "discord:8")
    destination = Destination("web", {})

    async def run_command(*words: str, code: int = 0) -> str:
        assert await asyncio.to_thread(run_rules_command, monkeypatch, harness.settings.data, *words) == code
        return "".join(capsys.readouterr())

    async def state(job: str) -> tuple[str, float]:
        record = await app.store.get_job(job)
        return record.state, record.charged

    async def is_cancelled(job: str) -> bool:
        return await state(job) == ("cancelled", 0.0)

    bob_job, eve_job = [(await app.services.jobs.imagine("a lamp", one, destination))[0].job for one in (bob, eve)]
    assert "cancels the open jobs there within seconds" in await run_command(
        "close", "--guild", "7", "--reason", "abuse"
    )
    assert "It is closed already." in await run_command("close", "--guild", "7", "--reason", "abuse")
    with pytest.raises(UserError, match=r"accepts no new jobs: abuse \(closed by this bot's operator\)"):
        await app.services.jobs.imagine("a lamp", bob, destination)
    with pytest.raises(UserError, match="only they can open it"):
        await app.services.rule_admin.open_guild(bob)
    await wait_until(lambda: is_cancelled(bob_job))
    assert (await state(eve_job))[0] == "queued"
    await run_command("close", "--reason", "moving")
    await wait_until(lambda: is_cancelled(eve_job))
    await run_command("open")
    await app.services.jobs.imagine("a lamp", eve, destination)
    await run_command("open", "--guild", "7")
    await app.services.jobs.imagine("a lamp", bob, destination)
    assert "It is open already." in await run_command("open", "--guild", "7", code=2)
