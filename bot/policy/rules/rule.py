"""Rules and changes of rules, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from bot.domain.errors import UserError
from bot.domain.texts import shorten

Scope = Literal["operator", "guild", "channel", "role", "user"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
RuleValue = int | str | bool | tuple[str, ...]
RuleKey = tuple[str, str, str]  # scope, subject, setting: a guild has at most one value for each

EVERYWHERE = "*"  # in place of a guild: the operator's rules for every server
MAX_SUBJECT_LENGTH = 64  # most characters of an id
_MENTION = re.compile(r"(?:<(?:@[!&]?|#))?([0-9]{1,20})>?")
ALL = ("*",)  # a list that allows everything


@dataclass(frozen=True)
class Rule:
    """`setting` is `value` for `subject`: the id of a channel, role or user; empty for a whole server.

    Scope "operator" is a ceiling of the operator: for one server, or with `guild` "*" for all of them.
    """

    scope: Scope
    subject: str
    setting: str
    value: RuleValue
    guild: str = ""

    @property
    def key(self) -> RuleKey:
        """Identifies the rule within its guild."""
        return self.scope, self.subject, self.setting


@dataclass(frozen=True)
class RuleStep:
    """One rule before and after a change; None for no rule."""

    scope: Scope
    subject: str
    setting: str
    before: RuleValue | None
    after: RuleValue | None

    @property
    def key(self) -> RuleKey:
        """The rule that it changes."""
        return self.scope, self.subject, self.setting

    def inverse(self) -> RuleStep:
        """Return the step that undoes it."""
        return RuleStep(self.scope, self.subject, self.setting, self.after, self.before)


@dataclass(frozen=True)
class RuleChange:
    """Steps that a member applied at the moment `at` (seconds since 1970), all of them or none.

    `what` is set, unset, preset, import, close, open, budget or undo; `undoes` is the number of the change that this
    one undid, `undone` the number of the undo that undid this one.
    """

    number: int
    guild: str
    changed_at: float
    actor: str
    actor_name: str
    action: str
    steps: tuple[RuleStep, ...]
    undone_change: int | None = None
    undone_by: int | None = None


def normalise_subject(guild: str, scope: Scope, subject: str) -> str:
    """Return an id as members carry it.

    On a Discord server, and for all of them, "789" and "<@789>" become "discord:789" for a user; a channel or role
    keeps its number alone.
    """
    match = _MENTION.fullmatch(subject.strip())
    if match is None or scope in ("operator", "guild"):
        return subject.strip()
    if scope == "user" and (guild == EVERYWHERE or guild.startswith("discord:")):
        return f"discord:{match[1]}"
    return match[1]


def check_subject(guild: str, scope: Scope, subject: str) -> None:
    """Check that this can be the id of a channel, role or user, as `normalise_subject` returns it. Raises `UserError`
    (422).
    """
    if not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise UserError(f"An id has 1 to {MAX_SUBJECT_LENGTH} printable characters.")
    number = subject.removeprefix("discord:") if scope == "user" else subject
    if guild.startswith("discord:") and not (number.isascii() and number.isdigit()):
        raise UserError(f"“{shorten(subject, 40)}” is no id: on Discord the id of a {scope} is a number.")


def diff_rules(before: Mapping[RuleKey, RuleValue], after: Mapping[RuleKey, RuleValue]) -> tuple[RuleStep, ...]:
    """Return the steps from one set of rules to another, in a fixed order, without unchanged rules."""
    keys = sorted({*before, *after}, key=lambda key: (SCOPES.index(_scope_of(key)), key))
    steps = (RuleStep(_scope_of(key), key[1], key[2], before.get(key), after.get(key)) for key in keys)
    return tuple(step for step in steps if step.before != step.after)


def _scope_of(key: RuleKey) -> Scope:
    return next(scope for scope in SCOPES if scope == key[0])
