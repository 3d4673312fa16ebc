"""Rules and the log of their changes in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, bindparam, func, select

from bot.refused import Refused
from bot.rules import EVERYWHERE, Change, Rule, Step, Value
from bot.rules.planning import undone
from bot.rules.together import SETTINGS, Together
from bot.store.tables import changes
from bot.store.tables import rules as kept

KEPT_CHANGES = 500  # per guild; older changes cannot be undone
Rules = dict[tuple[str, str, str], Value]
Plan = Callable[[Rules], Sequence[Step]]
_APPLYING = select(kept).where(kept.c.guild.in_(bindparam("guilds", expanding=True)))  # run twice at each admission


def applying(connection: Connection, guild: str) -> list[Rule]:
    """Return a guild's rules, and those that hold everywhere."""
    found = connection.execute(_APPLYING, {"guilds": [guild, EVERYWHERE]})
    return [_rule(row) for row in found.mappings()]


def of_guild(connection: Connection, guild: str) -> list[Rule]:
    """Return a guild's own rules, in a fixed order."""
    asked = select(kept).where(kept.c.guild == guild).order_by(kept.c.scope, kept.c.subject, kept.c.setting)
    return [_rule(row) for row in connection.execute(asked).mappings()]


def together(connection: Connection) -> Together:
    """Return the caps on the running jobs of all members together, for every guild that has such a rule."""
    found = connection.execute(select(kept).where(kept.c.setting.in_(SETTINGS)))
    return Together.of_rules([_rule(row) for row in found.mappings()])


def change(
    connection: Connection, guild: str, what: str, actor: tuple[str, str], plan: Plan, now: float,
    undoes: int | None = None,
) -> Change:  # fmt: skip
    """Apply the steps that `plan` makes of the current rules, and log them as one change. `plan` raises `Refused`."""
    before: Rules = {rule.key: rule.value for rule in of_guild(connection, guild)}
    steps = tuple(plan(before))
    for step in steps:
        _write(connection, guild, step)
    values = {"guild": guild, "at": now, "actor": actor[0], "actor_name": actor[1], "what": what, "undoes": undoes}
    written = [[step.scope, step.subject, step.setting, _json(step.before), _json(step.after)] for step in steps]
    made = connection.execute(changes.insert().values(**values, steps=written).returning(changes.c.id))
    number = int(made.scalar_one())
    _forget(connection, guild)
    return Change(number, guild, now, actor[0], actor[1], what, steps, undoes)


def _write(connection: Connection, guild: str, step: Step) -> None:
    same = {"guild": guild, "scope": step.scope, "subject": step.subject, "setting": step.setting}
    connection.execute(kept.delete().where(and_(*(kept.c[name] == value for name, value in same.items()))))
    if step.after is not None:
        connection.execute(kept.insert().values(**same, value=_json(step.after)))


def _forget(connection: Connection, guild: str) -> None:
    oldest = select(changes.c.id).where(changes.c.guild == guild).order_by(changes.c.id.desc())
    last = connection.execute(oldest.offset(KEPT_CHANGES).limit(1)).scalar_one_or_none()
    if last is not None:
        connection.execute(changes.delete().where(changes.c.guild == guild, changes.c.id <= last))


def log(connection: Connection, guild: str, limit: int) -> list[Change]:
    """Return changes, the newest first."""
    return _changes(connection, guild, limit=limit)


def one(connection: Connection, guild: str, number: int) -> Change | None:
    """Return a change by its number; None if the guild has no such change (any more)."""
    return next(iter(_changes(connection, guild, changes.c.id == number, limit=1)), None)


def _changes(connection: Connection, guild: str, *which: Any, limit: int) -> list[Change]:
    later = changes.alias("later")
    back = select(func.max(later.c.id)).where(later.c.undoes == changes.c.id, later.c.guild == guild)
    asked = select(changes, back.scalar_subquery().label("undone")).where(changes.c.guild == guild, *which)
    rows = connection.execute(asked.order_by(changes.c.id.desc()).limit(limit))
    return [_change(row) for row in rows.mappings()]


def undo(
    connection: Connection, guild: str, number: int | None, actor: tuple[str, str], permit: Callable[[Change], None],
    now: float,
) -> Change:  # fmt: skip
    """Undo a change by a new change. Raises `Refused` if `permit` does, or if a later change touched the same rules.

    Without a number, undo the newest change that is no undo, was not undone, and that `permit` accepts.
    """
    found = _newest(connection, guild, permit) if number is None else one(connection, guild, number)
    if found is None:
        raise Refused("There is nothing to undo." if number is None else f"There is no change {number} here.", 404)
    permit(found)
    later = last_of(connection, guild, [step.key for step in found.steps], found.number)
    return change(connection, guild, "undo", actor, lambda rules: undone(rules, found, later), now, found.number)


def _newest(connection: Connection, guild: str, permit: Callable[[Change], None]) -> Change | None:
    for found in _changes(connection, guild, changes.c.undoes.is_(None), limit=KEPT_CHANGES):
        if found.undone is None:
            with suppress(Refused):
                permit(found)
                return found
    return None


def last_of(connection: Connection, guild: str, keys: Sequence[tuple[str, str, str]], after: int) -> int | None:
    """Return the newest change after number `after` that touched one of these rules, or None."""
    for found in _changes(connection, guild, changes.c.id > after, limit=KEPT_CHANGES):
        if any(step.key in keys for step in found.steps):
            return found.number
    return None


def _rule(row: RowMapping) -> Rule:
    return Rule(row["scope"], row["subject"], row["setting"], _value(row["value"]), row["guild"])


def _change(row: RowMapping) -> Change:
    steps = tuple(Step(step[0], step[1], step[2], _maybe(step[3]), _maybe(step[4])) for step in row["steps"])
    values: Mapping[str, Any] = {name: value for name, value in row.items() if name not in ("id", "steps")}
    return Change(number=row["id"], steps=steps, **values)


def _json(value: Value | None) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _maybe(value: Any) -> Value | None:
    return None if value is None else _value(value)


def _value(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value
