"""Admins' use cases for the rules of their server, and the operator's for all rules: read, set, explain, undo.

Every write checks the permission first, happens in one transaction, and logs a `RuleChange`. A member acts on the guild
where they are; the operator acts in the guild "*" on rules for every server. Every method may raise `UserError`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.quota import QuotaReport, check_action, quota_line, report_quotas
from bot.policy import permissions
from bot.policy.limits import Limits
from bot.policy.rules import (
    EVERYWHERE,
    LIMITABLE_COMMANDS,
    SETTINGS,
    EffectiveRules,
    Rule,
    RuleChange,
    RuleValue,
    Scope,
    Setting,
    planned_changes,
    presets,
    resolve,
)
from bot.policy.rules.effective_rules import is_applicable
from bot.policy.rules.explanations import NO_NAMES, DisplayNames, Explanation, explain_decision, format_for_sentence
from bot.policy.rules.rule import normalise_subject
from bot.policy.rules.value_parser import find_setting, parse_list, parse_value
from bot.store import Store
from bot.store import rules as rule_store
from bot.store.fairness.ledger import Ledger, run_with_ledger
from bot.store.jobs import queries

MAX_NAME = 128
MAX_CHANGES = 20


@dataclass(eq=False)
class RuleAdmin:
    """Reads and changes rules. `limits`: the defaults; `cancel` cancels one job and returns what happened."""

    store: Store
    cancel: Callable[[str], Awaitable[str]]
    limits: Limits
    clock: Callable[[], float] = time.time

    # Reading

    async def list_rules(self, guild: str) -> list[Rule]:
        """Return a guild's rules and the operator's ceilings for it, in a stable order."""
        return await self.store.query(rule_store.list_guild_rules, guild)

    async def effective_rules(self, member: Member) -> EffectiveRules:
        """Return the effective rules of a member where they are."""
        return await self.store.query(
            run_with_ledger, member, self.clock(), lambda ledger: self._resolve_rules(ledger, member)
        )

    async def check_command(self, member: Member, action: str) -> None:
        """Check that the rules let a member use a command that makes no job. Raises `UserError` (403).

        Checks only what the setting `commands` can forbid; the permission table decides who may act on whose job.
        """
        if action not in LIMITABLE_COMMANDS:
            return
        check_action(replace(await self.effective_rules(member), closed=""), action)

    async def report_quotas(self, member: Member) -> QuotaReport:
        """Return a member's effective rules, with the usage of each limit and when some of it becomes free."""
        now = self.clock()
        return await self.store.query(
            run_with_ledger, member, now, lambda ledger: report_quotas(self._resolve_rules(ledger, member), ledger)
        )

    async def explain(
        self, guild: str, member: Member, setting_name: str | None = None, names: DisplayNames = NO_NAMES
    ) -> list[Explanation]:
        """Explain each setting (or the one called `setting_name`) for `member`: the value, the usage, and which rule
        decides.

        `names`: how ids of channels, roles and users are shown, such as "@artists".
        """
        settings = list(SETTINGS.values()) if setting_name is None else [find_setting(setting_name)]
        subject = replace(member, guild=guild)

        def explain_all(ledger: Ledger) -> list[Explanation]:
            rules = ledger.load_rules()
            effective_rules = self._resolve_rules(ledger, subject)
            return [
                self._explain_setting(definition.name, effective_rules, rules, ledger, subject, names)
                for definition in settings
            ]

        return await self.store.query(run_with_ledger, subject, self.clock(), explain_all)

    def _explain_setting(
        self,
        name: str,
        effective_rules: EffectiveRules,
        rules: Sequence[Rule],
        ledger: Ledger,
        member: Member,
        names: DisplayNames,
    ) -> Explanation:
        definition = SETTINGS[name]
        matching_rules = [rule for rule in rules if rule.setting == name and is_applicable(rule, member)]
        lines = {cap: quota_line(cap, ledger) for cap in effective_rules.limits_of(name)}
        tightest_limit = min(lines, key=lambda cap: (cap.limit - lines[cap].used, cap.limit), default=None)
        if tightest_limit is None:
            explanation = explain_decision(definition, effective_rules, matching_rules, self.limits, names)
            return Explanation(
                name,
                format_for_sentence(name, effective_rules.get(name)),
                "",
                explanation,
                effective_rules.deciding_rules.get(name),
            )
        explanation = explain_decision(definition, effective_rules, matching_rules, self.limits, names, tightest_limit)
        frees_at = lines[tightest_limit].frees_at
        return Explanation(
            name,
            format_for_sentence(name, tightest_limit.limit),
            lines[tightest_limit].usage_text,
            explanation,
            tightest_limit.rule,
            frees_at,
            lines[tightest_limit].used_share,
        )

    def _resolve_rules(self, ledger: Ledger, member: Member) -> EffectiveRules:
        return resolve(ledger.load_rules(), member, self.limits)

    async def list_changes(self, guild: str, limit: int = MAX_CHANGES) -> list[RuleChange]:
        """Return the changes, newest first."""
        return await self.store.query(rule_store.list_changes, guild, limit)

    async def export_yaml(self, guild: str) -> str:
        """Return a guild's rules as YAML, without the operator's ceilings and `closed`."""
        return planned_changes.dump_rules(await self.list_rules(guild))

    # Writing

    async def set_rule(
        self, member: Member, scope: Scope, subject: str, name: str, text: str | list[str]
    ) -> RuleChange:
        """Set one rule from typed text, or from the parts of a list, which may contain commas.

        `subject`: the id of a channel, role or user, or its mention; empty for a guild and for a ceiling.
        """
        definition, subject = self._check_settable(member, scope, name, subject)
        value = parse_value(definition, text) if isinstance(text, str) else parse_list(definition, text)
        return await self._write_change(
            member, "set", lambda rules: planned_changes.plan_rule(rules, (scope, subject, definition.name), value)
        )

    async def unset_rule(self, member: Member, scope: Scope, subject: str, name: str) -> RuleChange:
        """Remove one rule."""
        definition, subject = self._check_settable(member, scope, name, subject)
        return await self._write_change(
            member, "unset", lambda rules: planned_changes.plan_rule(rules, (scope, subject, definition.name), None)
        )

    async def apply_preset(self, member: Member, name: str) -> RuleChange:
        """Set all values of a preset for the whole server, as one change."""
        _check_permission("set", member)
        values = presets.preset_rules(presets.find_preset(name))
        return await self._write_change(member, "preset", lambda rules: planned_changes.plan_rules(rules, values))

    async def import_yaml(self, member: Member, text: str) -> RuleChange:
        """Replace all rules of the guild by those of a YAML file, as one change."""
        _check_permission("set", member)
        values = await asyncio.to_thread(planned_changes.load_rules, text, member.guild)
        return await self._write_change(member, "import", lambda rules: planned_changes.plan_import(rules, values))

    async def set_ceilings(self, member: Member, guild: str, **limits: str | None) -> RuleChange:
        """Set the operator's ceilings for a guild ("*": everywhere), by setting, as typed; None removes one."""
        _check_permission("budget", member)
        values: dict[tuple[str, str, str], RuleValue | None] = {}
        for name, text in limits.items():
            definition = find_setting(name)
            planned_changes.check_scope(definition, guild, "operator", "")
            values["operator", "", definition.name] = None if text is None else parse_value(definition, text)
        actor = replace(member, guild=guild)
        return await self._write_change(actor, "budget", lambda rules: planned_changes.plan_rules(rules, values))

    async def undo_change(self, member: Member, number: int | None = None) -> RuleChange:
        """Undo a change (None: the newest that is not undone), as a new change. Each can be undone once."""
        _check_permission("settings", member)
        return await self.store.write(
            rule_store.undo_change,
            member.guild,
            number,
            _actor(member),
            lambda change: _check_undo(member, change),
            self.clock(),
        )

    async def close_guild(self, member: Member, reason: str) -> int:
        """Close the guild (kill switch): admit no new job and cancel every open one. Return how many were cancelled.

        No job is admitted from the moment this begins. What a cancelled job did not use is refunded. If an outage
        interrupts it, the server stays closed, and a periodic task cancels the rest (`bot.jobs.control`).
        """
        await self.mark_closed(member, reason)
        jobs = await self.store.query(queries.list_open_ids, None if member.guild == EVERYWHERE else member.guild)
        for job in jobs:
            await self.cancel(job)
        return len(jobs)

    async def mark_closed(self, member: Member, reason: str) -> RuleChange | None:
        """Close the guild; the bot cancels its open jobs later. Returns None if it was closed the same way already."""
        _check_permission("close", member)
        value = planned_changes.closed_value(reason, member.name)
        key = (_closing_scope(member), "", "closed")
        if value in [rule.value for rule in await self.list_rules(member.guild) if rule.key == key]:
            return None
        return await self._write_change(member, "close", lambda rules: planned_changes.plan_rule(rules, key, value))

    async def open_guild(self, member: Member) -> RuleChange:
        """Admit new jobs again. Only the operator opens what the operator has closed."""
        _check_permission("close", member)
        return await self._write_change(
            member, "open", lambda rules: planned_changes.plan_reopening(rules, is_operator=member.is_operator)
        )

    async def _write_change(self, member: Member, kind: str, changes: rule_store.ChangePlan) -> RuleChange:
        return await self.store.write(
            rule_store.change_rules, member.guild, kind, _actor(member), changes, self.clock()
        )

    def _check_settable(self, member: Member, scope: Scope, name: str, subject: str) -> tuple[Setting, str]:
        _check_permission("budget" if scope == "operator" or member.guild == EVERYWHERE else "set", member)
        definition = find_setting(name)
        if definition.name == "closed":
            raise UserError("A server is closed by close and opened by open, not by setting a value.")
        address = normalise_subject(member.guild, scope, subject)
        planned_changes.check_scope(definition, member.guild, scope, address)
        return definition, address


def _closing_scope(member: Member) -> Scope:
    """Return the scope that closes: the operator closes another's server in a scope that its owner cannot open."""
    return "operator" if member.guild == EVERYWHERE or (member.is_operator and not member.is_owner) else "guild"


def _actor(member: Member) -> tuple[str, str]:
    return member.id, member.name[:MAX_NAME]


def _check_permission(action: permissions.Action, member: Member) -> None:
    if member.guild == EVERYWHERE:
        action = "budget"
    if reason := permissions.forbidden_reason(action, member):
        raise UserError(reason, 403)


def undo_permissions(change: RuleChange) -> tuple[permissions.Action, ...]:
    """Return the actions that a member must be allowed to undo a change: those that making it needed."""
    required: permissions.Action = "close" if any(step.setting == "closed" for step in change.steps) else "set"
    return ("budget", required) if any(step.scope == "operator" for step in change.steps) else (required,)


def _check_undo(member: Member, change: RuleChange) -> None:
    for action in undo_permissions(change):
        _check_permission(action, member)
