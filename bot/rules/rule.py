"""Rules and changes of rules, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from bot.refused import Refused
from bot.sentences import shortened

Scope = Literal["house", "guild", "channel", "role", "user"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
Value = int | str | bool | tuple[str, ...]
Key = tuple[str, str, str]  # scope, subject, setting: a guild has at most one value for each

EVERYWHERE = "*"  # in place of a guild: the operator's rules for every server
SUBJECT = 64  # most characters of an id
_MENTION = re.compile(r"(?:<(?:@[!&]?|#))?([0-9]{1,20})>?")
ALL = ("*",)  # a list that allows everything


@dataclass(frozen=True)
class Rule:
    """`setting` is `value` for `subject`: the id of a channel, role or user; empty for a whole server.

    Scope "house" is a ceiling of the operator: for one server, or with `guild` "*" for all of them.
    """

    scope: Scope
    subject: str
    setting: str
    value: Value
    guild: str = ""

    @property
    def key(self) -> Key:
        """Identifies the rule within its guild."""
        return self.scope, self.subject, self.setting


@dataclass(frozen=True)
class Step:
    """One rule before and after a change; None for no rule."""

    scope: Scope
    subject: str
    setting: str
    before: Value | None
    after: Value | None

    @property
    def key(self) -> Key:
        """The rule that it changes."""
        return self.scope, self.subject, self.setting

    def inverse(self) -> Step:
        """Return the step that undoes it."""
        return Step(self.scope, self.subject, self.setting, self.after, self.before)


@dataclass(frozen=True)
class Change:
    """Steps that a member applied at the moment `at` (seconds since 1970), all of them or none.

    `what` is set, unset, preset, import, close, open, budget or undo; `undoes` is the number of the change that an undo
    undid, `undone` the number of the undo that undid this one.
    """

    number: int
    guild: str
    at: float
    actor: str
    actor_name: str
    what: str
    steps: tuple[Step, ...]
    undoes: int | None = None
    undone: int | None = None


def addressed(guild: str, scope: Scope, subject: str) -> str:
    """Return an id as members carry it.

    On a Discord server, and for all of them, "789" and "<@789>" become "discord:789" for a user; a channel or role
    keeps its number alone.
    """
    found = _MENTION.fullmatch(subject.strip())
    if found is None or scope in ("house", "guild"):
        return subject.strip()
    if scope == "user" and (guild == EVERYWHERE or guild.startswith("discord:")):
        return f"discord:{found[1]}"
    return found[1]


def check_subject(guild: str, scope: Scope, subject: str) -> None:
    """Check that this can be the id of a channel, role or user, as `addressed` returns it. Raises `Refused` (422)."""
    if not 0 < len(subject) <= SUBJECT or not subject.isprintable():
        raise Refused(f"An id has 1 to {SUBJECT} printable characters.")
    number = subject.removeprefix("discord:") if scope == "user" else subject
    if guild.startswith("discord:") and not (number.isascii() and number.isdigit()):
        raise Refused(f"“{shortened(subject, 40)}” is no id: on Discord the id of a {scope} is a number.")


def steps_between(before: Mapping[Key, Value], after: Mapping[Key, Value]) -> tuple[Step, ...]:
    """Return the steps from one set of rules to another, in a fixed order, without unchanged rules."""
    keys = sorted({*before, *after}, key=lambda key: (SCOPES.index(_scope(key)), key))
    found = (Step(_scope(key), key[1], key[2], before.get(key), after.get(key)) for key in keys)
    return tuple(step for step in found if step.before != step.after)


def _scope(key: Key) -> Scope:
    return next(scope for scope in SCOPES if scope == key[0])
