"""`darkroom api-key`: makes, lists and revokes the keys of programs that ask for pictures over HTTP.

Works on the store, with or without a running bot, which notices at the next request. Slow imports happen inside the
command.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.cli.options import AsJson, Data
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

    from bot.app.settings import Settings
    from bot.policy.limits import Limits
    from bot.store import Store
    from bot.store.members.api_keys import ApiKey

BUDGET_SETTINGS = {"day": "cost_day", "month": "cost_month"}
MAX_SECONDS = 3653 * 86_400


@dataclass(frozen=True)
class _NewKey:
    """A key with its secret. `budgets`: setting → the effective value. `notes`: of features, on an older such key."""

    key: ApiKey
    secret: str
    budgets: dict[str, str]
    notes: list[str]


def api_key(
    name: Annotated[str, typer.Argument(help="A name for the program, as open-webui.")] = "",
    scopes: Annotated[str, typer.Option(metavar="NAMES", help="What it may do, as imagine,read.")] = "imagine,read",
    budget: Annotated[str, typer.Option(metavar="TIME/day", help="Device time, as 2h/day or 10h/month.")] = "",
    expires: Annotated[str, typer.Option(metavar="TIME", help="When it ends by itself, as 90d; else never.")] = "",
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke the key: its next request is refused.")] = False,
    list_keys: Annotated[bool, typer.Option("--list", help="List the keys, with their last use.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Make a key for a program that asks for pictures over HTTP. It is a member, with rules and limits of its own."""
    if bool(name) == list_keys or (list_keys and revoke):
        raise UserError("Name one key, or ask for --list.")
    from bot.cli.store_session import load_store_settings, run_with_store

    settings = load_store_settings(data)
    if list_keys:
        typer.echo(_format_list(run_with_store(settings.database, _list_keys), as_json))
    elif revoke:
        notes = run_with_store(settings.database, lambda store: _revoke_key(store, name))
        typer.echo(_format_revoked(name, notes, as_json))
    else:
        typer.echo(_create_key(settings, name, _split_names(scopes), budget, expires, as_json))


def _create_key(
    settings: Settings, name: str, scopes: Collection[str], budget: str, expires: str, as_json: bool
) -> str:
    from bot.cli.store_session import run_with_store

    rule = _parse_budget(budget)
    seconds = parse_time("--expires", expires)
    new_key = run_with_store(
        settings.database, lambda store: _write_key(store, settings.limits, name, scopes, rule, seconds)
    )
    key = new_key.key
    secret = new_key.secret
    budgets = new_key.budgets
    if as_json:
        return json.dumps(_to_dict(key) | {"key": secret, "budgets": budgets, "notes": new_key.notes}, indent=1)
    until = "" if key.expires is None else f" until {_format_day(key.expires)}"
    budget_note = (
        f"Its device time: {budgets['cost_day']} a day, {budgets['cost_month']} a month. "
        f"`darkroom rules explain {key.member}` says why."
    )
    return "\n\n".join(
        [
            f"The key {name}, for {', '.join(sorted(key.scopes))}{until}. It is shown only now, and stored nowhere:",
            f"  {secret}",
            "Programs send it as `Authorization: Bearer KEY`, or as the password of `Basic`, with any user name.",
            budget_note,
            *new_key.notes,
        ]
    )


async def _write_key(
    store: Store,
    limits: Limits,
    name: str,
    scopes: Collection[str],
    rule: tuple[str, str] | None,
    seconds: float | None,
) -> _NewKey:
    """Set the budget, then add the key: at no moment is it without one.

    An older key of its name may have left budgets, which still hold, and what its features say of it.
    """
    from bot.cli.rules import operator_member, refuse_cancel
    from bot.domain.dto import Member
    from bot.services.api_keys import ApiKeys
    from bot.services.rule_admin import RuleAdmin
    from bot.web.middleware import GUILD

    keys = ApiKeys(store, clock=time.time)
    key = await keys.prepare(name, scopes, seconds)
    rule_admin = RuleAdmin(store, refuse_cancel, limits=limits)
    if rule is not None:
        await rule_admin.set_rule(operator_member(GUILD), "user", key.member, *rule)
    secret = await keys.add(key)
    member = Member(key.member, key.name, GUILD)
    budgets = {
        setting: explanation.value
        for setting in BUDGET_SETTINGS.values()
        for explanation in await rule_admin.explain(GUILD, member, setting)
    }
    return _NewKey(key, secret, budgets, await keys.list_notes(name))


async def _list_keys(store: Store) -> list[ApiKey]:
    from bot.services.api_keys import ApiKeys

    return await ApiKeys(store, clock=time.time).list_all()


async def _revoke_key(store: Store, name: str) -> list[str]:
    """Revoke a key; return what features say of it."""
    from bot.services.api_keys import ApiKeys

    keys = ApiKeys(store, clock=time.time)
    await keys.revoke(name)
    return await keys.list_notes(name)


def _format_revoked(name: str, notes: list[str], as_json: bool) -> str:
    if as_json:
        return json.dumps({"name": name, "revoked": True, "notes": notes})
    return "\n\n".join([f"The key {name} is revoked.", *notes])


def _split_names(names: str) -> list[str]:
    return [name for name in (part.strip() for part in names.split(",")) if name]


def _parse_budget(text: str) -> tuple[str, str] | None:
    """Return the setting and the value of a budget such as `2h/day`; None for none. Raises `UserError`."""
    if not text:
        return None
    value, slash, window = text.rpartition("/") if "/" in text else (text, "/", "day")
    if not (slash and value and window.strip() in BUDGET_SETTINGS):
        raise UserError(f"“{text[:40]}” is no budget: it is a time for a day or a month, as 2h/day or 10h/month.")
    return BUDGET_SETTINGS[window.strip()], value.strip()


def parse_time(option: str, text: str) -> float | None:
    """Return the seconds of a time such as `90d`; None for an empty one. Raises `UserError`."""
    from bot.policy.rules.value_parser import parse_duration

    if not text:
        return None
    seconds = parse_duration(text.strip().casefold())
    if not seconds or seconds > MAX_SECONDS:
        raise UserError(f"{option} cannot be “{text[:40]}”: it takes a time such as 90d or 12h, up to 10 years.")
    return float(seconds)


def _format_list(keys: list[ApiKey], as_json: bool) -> str:
    if as_json:
        return json.dumps([_to_dict(key) for key in keys], indent=1)
    if not keys:
        return "No program has a key."
    heads = _format_row("name", "may", "made", "last used", "state")
    return "\n".join([heads, *(_format_key(key) for key in keys)])


def _format_key(key: ApiKey) -> str:
    used = "never" if key.used is None else _format_minute(key.used)
    state = "valid" if key.expires is None else f"until {_format_day(key.expires)}"
    if not key.is_valid(time.time()):
        state = "expired" if key.revoked is None else f"revoked {_format_day(key.revoked)}"
    return _format_row(key.name, ",".join(sorted(key.scopes)), _format_minute(key.issued), used, state)


def _format_row(name: str, scopes: str, issued: str, used: str, state: str) -> str:
    return f"{name:24}  {scopes:21}  {issued:16}  {used:16}  {state}"


def _format_minute(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _format_day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def _to_dict(key: ApiKey) -> dict[str, Any]:
    return asdict(key) | {"scopes": sorted(key.scopes), "member": key.member}
