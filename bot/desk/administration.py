"""Admins' use cases for the rules of their server, and the operator's for all rules: read, set, explain, undo.

Every write checks the permission first, happens in one transaction, and logs a `Change`. A member acts on the guild
where they are; the operator acts in the guild "*" on rules for every server. Every method may raise `Refused`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from bot import access
from bot.desk.gate import check_action, check_open
from bot.desk.usage import Allowance, allowance, line
from bot.limits import Limits
from bot.refused import Refused
from bot.rules import (
    EVERYWHERE,
    LIMITABLE,
    SETTINGS,
    Change,
    Rule,
    Scope,
    Setting,
    Terms,
    Value,
    planning,
    presets,
    resolve,
    sheet,
)
from bot.rules.reading import read, read_list, setting
from bot.rules.rule import addressed
from bot.rules.telling import NOBODY, Explained, Names, because, shown
from bot.rules.terms import applies
from bot.store import Store, reads
from bot.store import rules as kept
from bot.store.ledger import Ledger, look
from bot.views import Member

NAME_LENGTH = 128
SHOWN_CHANGES = 20


class Administration:
    """Reads and changes rules. `limits`: the defaults; `cancel` cancels one job and says what happened."""

    def __init__(
        self, store: Store, cancel: Callable[[str], Awaitable[str]], *, limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._cancel, self._limits, self._clock = store, cancel, limits, clock

    # Reading

    async def rules(self, guild: str) -> list[Rule]:
        """Return a guild's rules and the operator's ceilings for it, in a stable order."""
        return await self._store.ask(kept.of_guild, guild)

    async def terms(self, member: Member) -> Terms:
        """Return the effective rules of a member where they are."""
        return await self._store.ask(look, member, self._clock(), lambda ledger: self._terms(ledger, member))

    async def allowed(self, member: Member, action: str) -> None:
        """Check that the rules let a member use a command that makes no job. Raises `Refused` (403).

        Checks only what the setting `commands` can forbid; the permission table decides who may act on whose job.
        """
        if action not in LIMITABLE:
            return
        terms = await self.terms(member)
        check_open(replace(terms, closed=""))
        check_action(terms, action)

    async def allowance(self, member: Member) -> Allowance:
        """Return a member's effective rules, with the use of each limit and when some of it frees."""
        now = self._clock()
        return await self._store.ask(look, member, now, lambda ledger: allowance(self._terms(ledger, member), ledger))

    async def explain(self, guild: str, who: Member, name: str | None = None, names: Names = NOBODY) -> list[Explained]:
        """Explain each setting (or the one called `name`) for `who`: the value, the use, and which rule decides.

        `names`: how ids of channels, roles and users are shown, such as "@artists".
        """
        asked = list(SETTINGS.values()) if name is None else [setting(name)]
        there = replace(who, guild=guild)

        def answer(ledger: Ledger) -> list[Explained]:
            rules, terms = ledger.rules(), self._terms(ledger, there)
            return [self._explained(one.name, terms, rules, ledger, there, names) for one in asked]

        return await self._store.ask(look, there, self._clock(), answer)

    def _explained(
        self, name: str, terms: Terms, rules: Sequence[Rule], ledger: Ledger, who: Member, names: Names
    ) -> Explained:
        one, near = SETTINGS[name], [rule for rule in rules if rule.setting == name and applies(rule, who)]
        used = {cap: line(cap, ledger) for cap in terms.of(name)}
        tight = min(used, key=lambda cap: (cap.limit - used[cap].used, cap.limit), default=None)
        if tight is None:
            said = because(one, terms, near, self._limits, names)
            return Explained(name, shown(name, getattr(terms, name)), "", said, terms.because.get(name))
        said, frees = because(one, terms, near, self._limits, names, tight), used[tight].frees
        return Explained(name, shown(name, tight.limit), used[tight].share, said, tight.rule, frees, used[tight].taken)

    def _terms(self, ledger: Ledger, member: Member) -> Terms:
        return resolve(ledger.rules(), member, self._limits)

    async def changes(self, guild: str, limit: int = SHOWN_CHANGES) -> list[Change]:
        """Return the changes, newest first."""
        return await self._store.ask(kept.log, guild, limit)

    async def export(self, guild: str) -> str:
        """Return a guild's rules as YAML (`bot.rules.sheet`), without the operator's ceilings and without `closed`."""
        return sheet.out(await self.rules(guild))

    # Writing

    async def set(self, member: Member, scope: Scope, subject: str, name: str, text: str | list[str]) -> Change:
        """Set one rule from typed text, or from the parts of a list, which may contain commas.

        `subject`: the id of a channel, role or user, or its mention; empty for guild and house.
        """
        one, subject = self._settable(member, scope, name, subject)
        value = read(one, text) if isinstance(text, str) else read_list(one, text)
        return await self._change(member, "set", lambda now: planning.replaced(now, (scope, subject, one.name), value))

    async def unset(self, member: Member, scope: Scope, subject: str, name: str) -> Change:
        """Remove one rule."""
        one, subject = self._settable(member, scope, name, subject)
        return await self._change(member, "unset", lambda now: planning.replaced(now, (scope, subject, one.name), None))

    async def preset(self, member: Member, name: str) -> Change:
        """Set all values of a preset for the whole server, as one change."""
        _permit("set", member)
        values = presets.rules_of(presets.preset(name))
        return await self._change(member, "preset", lambda now: planning.altered(now, values))

    async def bring(self, member: Member, text: str) -> Change:
        """Replace all rules of the guild by those of a YAML file, as one change."""
        _permit("set", member)
        values = await asyncio.to_thread(sheet.bring, text, member.guild)
        return await self._change(member, "import", lambda now: planning.brought(now, values))

    async def budget(self, member: Member, guild: str, **limits: str | None) -> Change:
        """Set the operator's ceilings for a guild ("*": everywhere), by setting, as typed; None removes one."""
        _permit("budget", member)
        values: dict[tuple[str, str, str], Value | None] = {}
        for name, text in limits.items():
            one = setting(name)
            planning.check_scope(one, guild, "house", "")
            values["house", "", one.name] = None if text is None else read(one, text)
        there = replace(member, guild=guild)
        return await self._change(there, "budget", lambda now: planning.altered(now, values))

    async def undo(self, member: Member, number: int | None = None) -> Change:
        """Undo a change (None: the newest that is not undone), as a new change. Each can be undone once."""
        _permit("settings", member)
        return await self._store.write(
            kept.undo, member.guild, number, _actor(member), lambda change: _permit_undo(member, change), self._clock()
        )

    async def close(self, member: Member, reason: str) -> int:
        """Close the guild (kill switch): admit no new job and cancel every open one. Return how many were cancelled.

        No job is admitted from the moment this begins. What a cancelled job did not use is refunded. If an outage
        interrupts it, the server stays closed, and a periodic task cancels the rest (`bot.queue.shutting`).
        """
        await self.shut(member, reason)
        jobs = await self._store.ask(reads.open_of, None if member.guild == EVERYWHERE else member.guild)
        for job in jobs:
            await self._cancel(job)
        return len(jobs)

    async def shut(self, member: Member, reason: str) -> Change | None:
        """Close the guild; the running bot cancels its open jobs later. Returns None if it was closed the same way
        already.
        """
        _permit("close", member)
        value = planning.closing(reason, member.name)
        key = (_closer(member), "", "closed")
        if value in [rule.value for rule in await self.rules(member.guild) if rule.key == key]:
            return None
        return await self._change(member, "close", lambda now: planning.replaced(now, key, value))

    async def open(self, member: Member) -> Change:
        """Admit new jobs again. Only the operator opens what the operator has closed."""
        _permit("close", member)
        return await self._change(member, "open", lambda now: planning.reopened(now, house=member.house))

    async def _change(self, member: Member, what: str, plan: kept.Plan) -> Change:
        return await self._store.write(kept.change, member.guild, what, _actor(member), plan, self._clock())

    def _settable(self, member: Member, scope: Scope, name: str, subject: str) -> tuple[Setting, str]:
        _permit("budget" if scope == "house" or member.guild == EVERYWHERE else "set", member)
        one = setting(name)
        if one.name == "closed":
            raise Refused("A server is closed by close and opened by open, not by setting a value.")
        whom = addressed(member.guild, scope, subject)
        planning.check_scope(one, member.guild, scope, whom)
        return one, whom


def _closer(member: Member) -> Scope:
    """Return the scope that closes: the operator closes another's server in a scope that its owner cannot open."""
    return "house" if member.guild == EVERYWHERE or (member.house and not member.owner) else "guild"


def _actor(member: Member) -> tuple[str, str]:
    return member.id, member.name[:NAME_LENGTH]


def _permit(action: access.Action, member: Member) -> None:
    if member.guild == EVERYWHERE:
        action = "budget"
    if reason := access.forbidden(action, member):
        raise Refused(reason, 403)


def undoing(change: Change) -> tuple[access.Action, ...]:
    """Return the actions that a member must be permitted to undo a change: those that it took to make it."""
    doors: access.Action = "close" if any(step.setting == "closed" for step in change.steps) else "set"
    return ("budget", doors) if any(step.scope == "house" for step in change.steps) else (doors,)


def _permit_undo(member: Member, change: Change) -> None:
    for action in undoing(change):
        _permit(action, member)
