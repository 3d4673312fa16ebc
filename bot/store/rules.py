"""Rules and the log of their changes in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from sqlalchemy import Connection, RowMapping, and_, bindparam, func, select

from bot.domain.errors import UserError
from bot.policy.rules import EVERYWHERE, Rule, RuleChange, RuleStep, RuleValue
from bot.policy.rules.effective_rules import LIMIT_SETTINGS, RunningLimits
from bot.policy.rules.planned_changes import plan_undo
from bot.store.schema.tables import rule_changes
from bot.store.schema.tables import rules as table

MAX_CHANGES = 500  # per guild; older changes cannot be undone
RuleValues = dict[tuple[str, str, str], RuleValue]
ChangePlan = Callable[[RuleValues], Sequence[RuleStep]]
# run twice at each admission
_SELECT_EFFECTIVE = select(table).where(table.c.guild.in_(bindparam("guilds", expanding=True)))


def list_effective_rules(connection: Connection, guild: str) -> list[Rule]:
    """Return a guild's rules, and those that hold everywhere."""
    result = connection.execute(_SELECT_EFFECTIVE, {"guilds": [guild, EVERYWHERE]})
    return [_to_rule(row) for row in result.mappings()]


def list_guild_rules(connection: Connection, guild: str) -> list[Rule]:
    """Return a guild's own rules, in a fixed order."""
    query = select(table).where(table.c.guild == guild).order_by(table.c.scope, table.c.subject, table.c.setting)
    return [_to_rule(row) for row in connection.execute(query).mappings()]


def load_guild_limits(connection: Connection) -> RunningLimits:
    """Return the caps on the running jobs of all members together, for every guild that has such a rule."""
    result = connection.execute(select(table).where(table.c.setting.in_(LIMIT_SETTINGS)))
    return RunningLimits.from_rules([_to_rule(row) for row in result.mappings()])


def change_rules(
    connection: Connection,
    guild: str,
    action: str,
    actor: tuple[str, str],
    plan_steps: ChangePlan,
    now: float,
    undoes: int | None = None,
) -> RuleChange:
    """Apply the steps that `plan_steps` makes of the current rules, and log them as one change. `plan_steps` raises
    `UserError`.
    """
    old_values: RuleValues = {rule.key: rule.value for rule in list_guild_rules(connection, guild)}
    steps = tuple(plan_steps(old_values))
    for step in steps:
        _write_step(connection, guild, step)
    values = {"guild": guild, "at": now, "actor": actor[0], "actor_name": actor[1], "what": action, "undoes": undoes}
    step_rows = [
        [step.scope, step.subject, step.setting, _to_json(step.before), _to_json(step.after)] for step in steps
    ]
    result = connection.execute(rule_changes.insert().values(**values, steps=step_rows).returning(rule_changes.c.id))
    number = int(result.scalar_one())
    _prune_changes(connection, guild)
    return RuleChange(number, guild, now, actor[0], actor[1], action, steps, undoes)


def _write_step(connection: Connection, guild: str, step: RuleStep) -> None:
    key_values = {"guild": guild, "scope": step.scope, "subject": step.subject, "setting": step.setting}
    connection.execute(table.delete().where(and_(*(table.c[name] == value for name, value in key_values.items()))))
    if step.after is not None:
        connection.execute(table.insert().values(**key_values, value=_to_json(step.after)))


def _prune_changes(connection: Connection, guild: str) -> None:
    newest_first = select(rule_changes.c.id).where(rule_changes.c.guild == guild).order_by(rule_changes.c.id.desc())
    last_number = connection.execute(newest_first.offset(MAX_CHANGES).limit(1)).scalar_one_or_none()
    if last_number is not None:
        connection.execute(rule_changes.delete().where(rule_changes.c.guild == guild, rule_changes.c.id <= last_number))


def list_changes(connection: Connection, guild: str, limit: int) -> list[RuleChange]:
    """Return changes, the newest first."""
    return _select_changes(connection, guild, limit=limit)


def get_change(connection: Connection, guild: str, number: int) -> RuleChange | None:
    """Return a change by its number; None if the guild has no such change (any more)."""
    return next(iter(_select_changes(connection, guild, rule_changes.c.id == number, limit=1)), None)


def _select_changes(connection: Connection, guild: str, *conditions: Any, limit: int) -> list[RuleChange]:
    later_changes = rule_changes.alias("later")
    undone_by = select(func.max(later_changes.c.id)).where(
        later_changes.c.undoes == rule_changes.c.id, later_changes.c.guild == guild
    )
    query = select(rule_changes, undone_by.scalar_subquery().label("undone")).where(
        rule_changes.c.guild == guild, *conditions
    )
    rows = connection.execute(query.order_by(rule_changes.c.id.desc()).limit(limit))
    return [_to_change(row) for row in rows.mappings()]


def undo_change(
    connection: Connection,
    guild: str,
    number: int | None,
    actor: tuple[str, str],
    check_permission: Callable[[RuleChange], None],
    now: float,
) -> RuleChange:
    """Undo a change by a new change. Raises `UserError` if `check_permission` does, or if a later change touched the
    same rules.

    Without a number, undo the newest change that is no undo, was not undone, and that `check_permission` accepts.
    """
    target = (
        _find_undoable(connection, guild, check_permission) if number is None else get_change(connection, guild, number)
    )
    if target is None:
        raise UserError("There is nothing to undo." if number is None else f"There is no change {number} here.", 404)
    check_permission(target)
    later_number = find_later_change(connection, guild, [step.key for step in target.steps], target.number)
    return change_rules(
        connection,
        guild,
        "undo",
        actor,
        lambda rule_values: plan_undo(rule_values, target, later_number),
        now,
        target.number,
    )


def _find_undoable(
    connection: Connection, guild: str, check_permission: Callable[[RuleChange], None]
) -> RuleChange | None:
    for candidate in _select_changes(connection, guild, rule_changes.c.undoes.is_(None), limit=MAX_CHANGES):
        if candidate.undone_by is None:
            with suppress(UserError):
                check_permission(candidate)
                return candidate
    return None


def find_later_change(
    connection: Connection, guild: str, keys: Sequence[tuple[str, str, str]], after_number: int
) -> int | None:
    """Return the newest change after number `after_number` that touched one of these rules, or None."""
    for candidate in _select_changes(connection, guild, rule_changes.c.id > after_number, limit=MAX_CHANGES):
        if any(step.key in keys for step in candidate.steps):
            return candidate.number
    return None


def _to_rule(row: RowMapping) -> Rule:
    return Rule(row["scope"], row["subject"], row["setting"], _to_value(row["value"]), row["guild"])


def _to_change(row: RowMapping) -> RuleChange:
    steps = tuple(
        RuleStep(scope, subject, setting, _to_value(before), _to_value(after))
        for scope, subject, setting, before, after in row["steps"]
    )
    number, guild, changed_at, actor, actor_name, action = (
        row[name] for name in ("id", "guild", "at", "actor", "actor_name", "what")
    )
    return RuleChange(number, guild, changed_at, actor, actor_name, action, steps, row["undoes"], row["undone"])


def _to_json(value: RuleValue | None) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _to_value(value: Any) -> Any:
    return tuple(cast(list[str], value)) if isinstance(value, list) else value
