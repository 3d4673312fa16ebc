"""`darkroom api-key`: makes, lists and revokes the keys of programs that ask for pictures over HTTP.

Works on the store, with or without a running bot, which notices at the next request. Slow imports happen inside the
command.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.cli.options import AsJson, Data, format_minute
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

    from bot.policy.limits import Limits
    from bot.store import Store
    from bot.store.members.api_keys import ApiKey

BUDGET_SETTINGS = {"day": "cost_day", "month": "cost_month"}
MAX_SECONDS = 3653 * 86_400


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
        return
    if revoke:
        notes = run_with_store(settings.database, lambda store: _revoke_key(store, name))
        revoked = {"name": name, "revoked": True, "notes": notes}
        typer.echo(json.dumps(revoked) if as_json else "\n\n".join([f"The key {name} is revoked.", *notes]))
        return
    scope_names = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    rule = _parse_budget(budget)
    seconds = parse_time("--expires", expires)
    key, new = run_with_store(
        settings.database, lambda store: _write_key(store, settings.limits, name, scope_names, rule, seconds)
    )
    typer.echo(json.dumps(_to_dict(key) | new, indent=1) if as_json else _format_new(key, **new))


async def _write_key(
    store: Store,
    limits: Limits,
    name: str,
    scopes: Collection[str],
    rule: tuple[str, str] | None,
    seconds: float | None,
) -> tuple[ApiKey, dict[str, Any]]:
    """Set the budget, then add the key: at no moment is it without one.

    Return the key with its secret, its effective budgets by setting, and what features say of an older key of its name.
    Such a key may have left budgets, which still hold.
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
    return key, {"key": secret, "budgets": budgets, "notes": await keys.list_notes(name)}


def _format_new(api_key: ApiKey, key: str, budgets: dict[str, str], notes: list[str]) -> str:
    until = "" if api_key.expires is None else f" until {_format_day(api_key.expires)}"
    scopes = ", ".join(sorted(api_key.scopes))
    device_time = f"Its device time: {budgets['cost_day']} a day, {budgets['cost_month']} a month."
    return "\n\n".join(
        [
            f"The key {api_key.name}, for {scopes}{until}. It is shown only now, and stored nowhere:",
            f"  {key}",
            "Programs send it as `Authorization: Bearer KEY`, or as the password of `Basic`, with any user name.",
            f"{device_time} `darkroom rules explain {api_key.member}` says why.",
            *notes,
        ]
    )


async def _list_keys(store: Store) -> list[ApiKey]:
    from bot.services.api_keys import ApiKeys

    return await ApiKeys(store, clock=time.time).list_all()


async def _revoke_key(store: Store, name: str) -> list[str]:
    """Revoke a key; return what features say of it."""
    from bot.services.api_keys import ApiKeys

    keys = ApiKeys(store, clock=time.time)
    await keys.revoke(name)
    return await keys.list_notes(name)


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
    rows = [("name", "may", "made", "last used", "state")]
    for key in keys:
        used = "never" if key.used is None else format_minute(key.used)
        state = "valid" if key.expires is None else f"until {_format_day(key.expires)}"
        if not key.is_valid(time.time()):
            state = "expired" if key.revoked is None else f"revoked {_format_day(key.revoked)}"
        rows.append((key.name, ",".join(sorted(key.scopes)), format_minute(key.issued), used, state))
    lines = (f"{name:24}  {scopes:21}  {issued:16}  {used:16}  {state}" for name, scopes, issued, used, state in rows)
    return "\n".join(lines) if keys else "No program has a key."


def _format_day(at: float) -> str:
    return format_minute(at).partition(" ")[0]


def _to_dict(key: ApiKey) -> dict[str, Any]:
    return asdict(key) | {"scopes": sorted(key.scopes), "member": key.member}
