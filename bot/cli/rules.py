"""`darkroom rules`: limits, set by the operator on the command line, with or without a running bot.

Writes into the data folder's store; a running bot reads the rules at the next request. Slow imports happen inside the
commands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.cli.options import format_minute, print_json
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.domain.dto import Member
    from bot.policy.rules import Rule, RuleChange, Scope
    from bot.services.rule_admin import RuleAdmin

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Limits of members, channels, roles and servers (docs/limits.md). Without --guild: ceilings over all servers.",
)

OPERATOR_NAME = "this bot's operator"  # as members read it
EVERYWHERE = "*"  # as `bot.policy.rules.EVERYWHERE`, which is slow to import


def prefix_discord_id(identifier: str) -> str:
    """Prefix a bare number with `discord:`: it is a server or a member of Discord."""
    return f"discord:{identifier}" if identifier.isascii() and identifier.isdigit() else identifier


Guild = Annotated[
    str, typer.Option(metavar="ID", callback=prefix_discord_id, help="A server by its id; local is the chatroom here.")
]
Channel = Annotated[str, typer.Option(metavar="ID", help="The rule is for a channel.")]
Role = Annotated[str, typer.Option(metavar="ID", help="The rule is for a role.")]
User = Annotated[str, typer.Option(metavar="ID", help="The rule is for a user, as discord:123.")]
Ceiling = Annotated[bool, typer.Option("--ceiling", help="A ceiling for the server, which its admins cannot raise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the store (DARKROOM_DATA).")]


@app.command()
def show(guild: Guild = EVERYWHERE, as_json: AsJson = False, data: Data = None) -> None:
    """Show the rules of a server, or the ceilings over all servers."""
    from bot.policy.rules import SETTINGS
    from bot.policy.rules.explanations import describe_subject
    from bot.policy.rules.value_parser import format_setting_value

    rules: list[Rule] = run_with_rule_admin(data, lambda admin: admin.list_rules(guild))
    lines = list[str]()
    rows = list[dict[str, Any]]()
    for rule in rules:
        own_name = {"operator": "ceiling", "guild": "server"}.get(rule.scope)
        text = format_setting_value(SETTINGS[rule.setting], rule.value).replace("\n", ", ")
        lines.append(f"{own_name or describe_subject(rule.scope, rule.subject):<28} {rule.setting:<20} {text}")
        names = ("guild", "scope", "subject", "setting", "value")
        rows.append({name: getattr(rule, name) for name in names} | {"text": text})
    if as_json:
        print_json(rows)
    else:
        typer.echo("\n".join(lines) or "No rules are set: the bot's defaults hold.")


@app.command("set")
def set_rule(
    setting: Annotated[str, typer.Argument(help="Which setting, as cost_day.")],
    value: Annotated[str, typer.Argument(help="Its value, as 30 min, 512x512 or 'no limit'.")],
    guild: Guild = EVERYWHERE,
    channel: Channel = "",
    role: Role = "",
    user: User = "",
    ceiling: Ceiling = False,
    data: Data = None,
) -> None:
    """Set one rule."""
    scope, subject = _resolve_scope(guild, channel, role, user, ceiling)
    operator = operator_member(guild)
    _change(data, lambda admin: admin.set_rule(operator, scope, subject, setting, value))


@app.command()
def unset(
    setting: Annotated[str, typer.Argument(help="Which setting.")],
    guild: Guild = EVERYWHERE,
    channel: Channel = "",
    role: Role = "",
    user: User = "",
    ceiling: Ceiling = False,
    data: Data = None,
) -> None:
    """Remove one rule."""
    scope, subject = _resolve_scope(guild, channel, role, user, ceiling)
    _change(data, lambda admin: admin.unset_rule(operator_member(guild), scope, subject, setting))


@app.command()
def budget(
    limits: Annotated[list[str], typer.Argument(metavar="SETTING=VALUE …", help="An empty value takes one away.")],
    guild: Guild = EVERYWHERE,
    data: Data = None,
) -> None:
    """Set ceilings of a server that nobody there can raise, several at once: together_cost_day=10h cost_day=1h."""
    values: dict[str, str | None] = {}
    for limit in limits:
        name, equals, value = limit.partition("=")
        if not equals:
            raise UserError(f"“{limit[:40]}” is no SETTING=VALUE, as in cost_day=1h.")
        values[name.strip()] = value.strip() or None
    _change(data, lambda admin: admin.set_ceilings(operator_member(guild), guild, **values))


@app.command()
def explain(
    user: Annotated[str, typer.Argument(help="The member, as discord:123 or local:ann.")],
    setting: Annotated[str | None, typer.Argument(help="Only this setting.")] = None,
    guild: Guild = "local",
    channel: Channel = "",
    role: Annotated[list[str] | None, typer.Option(metavar="ID", help="A role of the member; may be repeated.")] = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Show what holds for a member in a server, how much of it is used, and which rule decides."""
    from dataclasses import asdict

    from bot.domain.dto import Member

    member = Member(user, user, guild, roles=tuple(role or ()), channel=channel)
    explanations = run_with_rule_admin(data, lambda admin: admin.explain(guild, member, setting))
    if as_json:
        rows = [asdict(explanation) for explanation in explanations]
        print_json([row | {"frees": row.pop("frees_at"), "taken": row.pop("used_share")} for row in rows])
    else:
        sentences = (each.sentence + (f" Used: {each.used}." if each.used else "") for each in explanations)
        typer.echo("\n".join(sentences))


@app.command()
def export(
    out: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The file to write; otherwise it is printed.")
    ] = None,
    guild: Guild = "local",
    data: Data = None,
) -> None:
    """Print or write a server's rules as YAML."""
    text = run_with_rule_admin(data, lambda admin: admin.export_yaml(guild))
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command("import")
def import_rules(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="YAML, as export writes it.")],
    guild: Guild = "local",
    data: Data = None,
) -> None:
    """Replace all rules of a server by those of a YAML file: all of it or nothing."""
    from bot.policy.rules.planned_changes import MAX_BYTES

    with file.open("rb") as stream:
        text = stream.read(MAX_BYTES + 1).decode("utf-8", "replace")
    _change(data, lambda admin: admin.import_yaml(operator_member(guild), text))


@app.command()
def log(
    guild: Guild = EVERYWHERE,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 20,
    data: Data = None,
) -> None:
    """Show who changed what, the newest first."""
    from bot.policy.rules.explanations import summarise_change

    changes = run_with_rule_admin(data, lambda admin: admin.list_changes(guild, limit))
    for change in changes:
        typer.echo(f"{format_minute(change.changed_at)}  {summarise_change(change)}")
    if not changes:
        typer.echo("Nothing was changed.")


@app.command()
def undo(
    number: Annotated[int | None, typer.Argument(help="Which change; the newest if none is named.")] = None,
    guild: Guild = EVERYWHERE,
    data: Data = None,
) -> None:
    """Undo a change."""
    _change(data, lambda admin: admin.undo_change(operator_member(guild), number))


@app.command()
def close(
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; members read it when they are refused.")] = "",
    guild: Guild = EVERYWHERE,
    data: Data = None,
) -> None:
    """Stop a server, or without --guild all: take no new jobs, cancel open ones and refund what they did not use."""
    operator = replace(operator_member(guild), name=OPERATOR_NAME)
    change = run_with_rule_admin(data, lambda admin: admin.mark_closed(operator, reason))
    if change is None:
        typer.echo("It is closed already.")
        return
    _print_change(change)
    # it does so on its next rounds (`bot.jobs.control`), a stopped bot when it starts
    typer.echo("A running bot cancels the open jobs there within seconds and refunds what they did not use.")


@app.command("open")
def reopen(guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Take new jobs again after close."""
    _change(data, lambda admin: admin.open_guild(operator_member(guild)))


def operator_member(guild: str) -> Member:
    """Return the operator as a member: only operators use this command line."""
    from bot.domain.dto import Member

    return Member("operator:terminal", "terminal", guild, is_operator=True)


def _resolve_scope(guild: str, channel: str, role: str, user: str, ceiling: bool) -> tuple[Scope, str]:
    """Return the scope and subject of a rule. Raise `UserError` for more than one."""
    subjects: tuple[tuple[Scope, str], ...] = (("channel", channel), ("role", role), ("user", user))
    choices = [choice for choice in subjects if choice[1]]
    choices += [("operator", "")] if ceiling else []
    if len(choices) > 1:
        raise UserError("A rule is for one of --channel, --role, --user or --ceiling.")
    return choices[0] if choices else ("operator" if guild == EVERYWHERE else "guild", "")


def run_with_rule_admin(data: Path | None, action: Callable[[RuleAdmin], Awaitable[Any]]) -> Any:
    """Open the store, run `action` on its `RuleAdmin`, close the store."""
    from bot.app.settings import load_settings
    from bot.cli.store_session import run_with_store
    from bot.services.rule_admin import RuleAdmin

    settings = load_settings(data)
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    limits = settings.limits
    return run_with_store(settings.database, lambda store: action(RuleAdmin(store, refuse_cancel, limits=limits)))


async def refuse_cancel(_job: str) -> str:
    """Cancel nothing: the command line has no broker. Raises `UserError`."""
    raise UserError("Jobs are cancelled by the running bot.")


def _change(data: Path | None, action: Callable[[RuleAdmin], Awaitable[RuleChange]]) -> None:
    _print_change(run_with_rule_admin(data, action))


def _print_change(change: RuleChange) -> None:
    """Print what was changed, and how to undo it."""
    from bot.policy.rules.explanations import describe_step

    for step in change.steps:
        typer.echo(describe_step(step))
    guild = "" if change.guild == EVERYWHERE else f" --guild {change.guild}"
    typer.echo(f"Change {change.number}: `darkroom rules undo {change.number}{guild}` takes it back.")
