"""`darkroom rules`: limits, set by the operator on the command line, with or without a running bot.

Writes into the data folder's store; a running bot reads the rules at the next request. Slow imports happen inside the
commands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.refused import Refused

if TYPE_CHECKING:
    from bot.desk.administration import Administration
    from bot.rules import Change, Rule, Scope
    from bot.views import Member

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Limits of members, channels, roles and servers (docs/limits.md). Without --guild: ceilings over all servers.",
)

EVERYWHERE = "*"  # as `bot.rules.EVERYWHERE`, which is slow to import


def discord(guild: str) -> str:
    """Prefix a bare number with `discord:`: it is a server or a member of Discord."""
    return f"discord:{guild}" if guild.isascii() and guild.isdigit() else guild


Guild = Annotated[
    str,
    typer.Option(metavar="ID", callback=discord, help="A server by its id; local is the chatroom here."),
]
Channel = Annotated[str, typer.Option(metavar="ID", help="The rule is for a channel.")]
Role = Annotated[str, typer.Option(metavar="ID", help="The rule is for a role.")]
User = Annotated[str, typer.Option(metavar="ID", help="The rule is for a user, as discord:123.")]
House = Annotated[bool, typer.Option("--house", help="A ceiling for the server, which its admins cannot raise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the store (DARKROOM_DATA).")]


@app.command()
def show(guild: Guild = EVERYWHERE, as_json: AsJson = False, data: Data = None) -> None:
    """Show the rules of a server, or the ceilings over all servers."""
    from bot.rules.reading import written
    from bot.rules.telling import subject

    def line(rule: Rule) -> str:
        whom = {"house": "ceiling", "guild": "server"}.get(rule.scope) or subject(rule.scope, rule.subject)
        return f"{whom:<28} {rule.setting:<20} {_text(rule)}"

    def _text(rule: Rule) -> str:
        return written(_setting(rule.setting), rule.value).replace("\n", ", ")

    rules = run(data, lambda desk: desk.rules(guild))
    if as_json:
        names = ("guild", "scope", "subject", "setting", "value")
        _print_json([{name: getattr(rule, name) for name in names} | {"text": _text(rule)} for rule in rules])
    else:
        typer.echo("\n".join(map(line, rules)) or "No rules are set: the bot's defaults hold.")


@app.command("set")
def set_one(
    setting: Annotated[str, typer.Argument(help="Which setting, as cost_day.")],
    value: Annotated[str, typer.Argument(help="Its value, as 30 min, 512x512 or 'no limit'.")],
    guild: Guild = EVERYWHERE, channel: Channel = "", role: Role = "", user: User = "", house: House = False,
    data: Data = None,
) -> None:  # fmt: skip
    """Set one rule."""
    scope, subject = _whom(guild, channel, role, user, house)
    tell(run(data, lambda desk: desk.set(member(guild), scope, subject, setting, value)))


@app.command()
def unset(
    setting: Annotated[str, typer.Argument(help="Which setting.")],
    guild: Guild = EVERYWHERE, channel: Channel = "", role: Role = "", user: User = "", house: House = False,
    data: Data = None,
) -> None:  # fmt: skip
    """Remove one rule."""
    scope, subject = _whom(guild, channel, role, user, house)
    tell(run(data, lambda desk: desk.unset(member(guild), scope, subject, setting)))


@app.command()
def budget(
    limits: Annotated[list[str], typer.Argument(metavar="SETTING=VALUE …", help="An empty value takes one away.")],
    guild: Guild = EVERYWHERE,
    data: Data = None,
) -> None:
    """Set ceilings of a server that nobody there can raise, several at once: together_cost_day=10h cost_day=1h."""
    given: dict[str, str | None] = {}
    for limit in limits:
        name, equals, value = limit.partition("=")
        if not equals:
            raise Refused(f"“{limit[:40]}” is no SETTING=VALUE, as in cost_day=1h.")
        given[name.strip()] = value.strip() or None
    tell(run(data, lambda desk: desk.budget(member(guild), guild, **given)))


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

    from bot.views import Member

    who = Member(user, user, guild, roles=tuple(role or ()), channel=channel)
    found = run(data, lambda desk: desk.explain(guild, who, setting))
    if as_json:
        _print_json([asdict(one) for one in found])
    else:
        typer.echo("\n".join(one.sentence + (f" Used: {one.used}." if one.used else "") for one in found))


@app.command()
def export(
    out: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The file to write; otherwise it is printed.")
    ] = None,
    guild: Guild = "local",
    data: Data = None,
) -> None:
    """Print or write a server's rules as YAML."""
    text = run(data, lambda desk: desk.export(guild))
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command("import")
def bring(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="YAML, as export writes it.")],
    guild: Guild = "local",
    data: Data = None,
) -> None:
    """Replace all rules of a server by those of a YAML file: all of it or nothing."""
    from bot.rules.sheet import BYTES

    with file.open("rb") as opened:
        text = opened.read(BYTES + 1).decode("utf-8", "replace")
    tell(run(data, lambda desk: desk.bring(member(guild), text)))


@app.command()
def log(
    guild: Guild = EVERYWHERE,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 20,
    data: Data = None,
) -> None:
    """Show who changed what, the newest first."""
    from bot.rules.telling import summed

    changes = run(data, lambda desk: desk.changes(guild, limit))
    for change in changes:
        typer.echo(f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(change.at))}  {summed(change)}")
    if not changes:
        typer.echo("Nothing was changed.")


@app.command()
def undo(
    number: Annotated[int | None, typer.Argument(help="Which change; the newest if none is named.")] = None,
    guild: Guild = EVERYWHERE,
    data: Data = None,
) -> None:
    """Undo a change."""
    tell(run(data, lambda desk: desk.undo(member(guild), number)))


def member(guild: str) -> Member:
    """Return the operator as a member: only operators use this command line."""
    from bot.views import Member

    return Member("house:terminal", "terminal", guild, house=True)


def _whom(guild: str, channel: str, role: str, user: str, house: bool) -> tuple[Scope, str]:
    """Return the scope and subject of a rule. Raise `Refused` for more than one."""
    given: list[tuple[Scope, str]] = [
        *([("channel", channel)] if channel else []), *([("role", role)] if role else []),
        *([("user", user)] if user else []), *([("house", "")] if house else []),
    ]  # fmt: skip
    if len(given) > 1:
        raise Refused("A rule is for one of --channel, --role, --user or --house.")
    return given[0] if given else ("house" if guild == EVERYWHERE else "guild", "")


def run(data: Path | None, act: Callable[[Administration], Awaitable[Any]]) -> Any:
    """Open the store, run `act` on its `Administration`, close the store."""
    from bot.cli.at_the_store import at_the_store
    from bot.config import load
    from bot.desk.administration import Administration

    settings = load(**({} if data is None else {"data": data}))
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def never(_job: str) -> str:
        raise Refused("Jobs are cancelled by the running bot.")

    return at_the_store(settings.database, lambda store: act(Administration(store, never, limits=settings.limits)))


def _setting(name: str) -> Any:
    from bot.rules import SETTINGS

    return SETTINGS[name]


def tell(change: Change) -> None:
    """Print what was changed, and how to undo it."""
    from bot.rules.telling import described

    for step in change.steps:
        typer.echo(described(step))
    guild = "" if change.guild == EVERYWHERE else f" --guild {change.guild}"
    typer.echo(f"Change {change.number}: `darkroom rules undo {change.number}{guild}` takes it back.")


def _print_json(found: list[Any]) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
