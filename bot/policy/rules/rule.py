"""Rules and changes of rules, as plain values.

The settings that a rule can set: kind, range, unit and allowed scopes. Declarations only.

Costs are calibrated device-seconds (`engine.contract.cost`), whole ones. A day is any 24 hours, a month any 30 days:
both windows roll. Settings that begin with `together_` count all members of the server or channel together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from bot.domain.errors import UserError
from bot.domain.feature import load_features
from bot.domain.texts import shorten
from engine.contract import MAX_COUNT, MAX_STEPS, MIN_EVALUATIONS, Sampler

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


SettingKind = Literal[
    "number", "cost", "seconds", "size", "choice", "choices", "names", "switch", "texts", "text", "channel"
]

LIST_KINDS: tuple[SettingKind, ...] = ("choices", "names", "texts")
MEMBER_SCOPES: tuple[Scope, ...] = ("operator", "guild", "channel", "role", "user")
SHARED_SCOPES: tuple[Scope, ...] = ("operator", "guild", "channel")
GUILD_SCOPES: tuple[Scope, ...] = ("operator", "guild")
CHANNEL_SCOPES: tuple[Scope, ...] = ("guild", "channel")

UNLIMITED_COUNT = 100_000  # the largest count of jobs: as good as no limit
UNLIMITED_COST = 10**9  # device-seconds: as good as no limit

# What `commands` can forbid. Cancelling, deleting and reporting always work.
LIMITABLE_COMMANDS: tuple[str, ...] = (
    "imagine",
    "vary",
    "reroll",
    "remix",
    "reproduce",
    "finish",
    "blend",
    "edit",
    "zoom",
    "pan",
    "branch",
    "walk",
    "steer",
    *(command for feature in load_features().values() for command in feature.limitable_commands),
    "upscale",
    "prompt",
    "film",
    "details",
    "favourite",
    "envelope",
    "describe",
    "queue",
)


@dataclass(frozen=True)
class Setting:
    """`minimum` and `maximum` bound a number, and the length of each text; `max_items` bounds the number of texts in a
    list.

    `choices`: the allowed values, or parts of a list; empty for names that only live workers know.
    """

    name: str
    kind: SettingKind
    scopes: tuple[Scope, ...]
    description: str
    unit: str = ""
    minimum: int = 0
    maximum: int = 0
    max_items: int = 0
    choices: tuple[str, ...] = ()

    def is_valid(self, value: RuleValue) -> bool:
        """Return whether a stored value is valid. A rule with an invalid one, as no version writes it, is ignored."""
        if self.kind in LIST_KINDS:
            return isinstance(value, tuple)
        if self.kind == "switch":
            return isinstance(value, bool)
        if self.is_numeric or self.kind == "seconds":
            return isinstance(value, int) and not isinstance(value, bool) and self.minimum <= value <= self.maximum
        return isinstance(value, str) and (not self.choices or value in self.choices)

    @property
    def is_numeric(self) -> bool:
        """Whether more is more generous."""
        return self.kind in ("number", "cost", "size")


def _by_name(*settings: Setting) -> Mapping[str, Setting]:
    return MappingProxyType({setting.name: setting for setting in settings})


ADDED_LIMITS = tuple(limit for feature in load_features().values() for limit in feature.member_limits)
SETTINGS = _by_name(
    Setting("running", "number", MEMBER_SCOPES, "how many jobs of a member run at once", "jobs", 1, 1000),
    Setting("queued", "number", MEMBER_SCOPES, "how many more jobs of a member may wait", "jobs", 0, UNLIMITED_COUNT),
    Setting("cost_day", "cost", MEMBER_SCOPES, "device time of a member in 24 hours", "device time", 0, UNLIMITED_COST),
    Setting(
        "cost_month", "cost", MEMBER_SCOPES, "device time of a member in 30 days", "device time", 0, UNLIMITED_COST
    ),
    Setting(
        "relaxed_day",
        "cost",
        MEMBER_SCOPES,
        "device time of a member's relaxed jobs in 24 hours",
        "device time",
        0,
        UNLIMITED_COST,
    ),
    Setting("steps", "number", MEMBER_SCOPES, "the most sampler steps of a job", "steps", 1, MAX_STEPS),
    Setting(
        "evaluations",
        "number",
        MEMBER_SCOPES,
        "the most evaluations of the network by a job's picture",
        "evaluations",
        MIN_EVALUATIONS,
        MAX_STEPS,
    ),
    Setting("pixels", "size", MEMBER_SCOPES, "the largest picture, as width x height", "pixels", 16 * 16, 4096 * 4096),
    Setting("count", "number", MEMBER_SCOPES, "the most pictures of a job", "pictures", 1, MAX_COUNT),
    *(
        Setting(each.name, "number", MEMBER_SCOPES, each.description, each.unit, each.minimum, each.maximum)
        for each in ADDED_LIMITS
    ),
    Setting("models", "names", MEMBER_SCOPES, "the models that may be asked for", "names", maximum=64, max_items=50),
    Setting(
        "samplers", "choices", MEMBER_SCOPES, "the samplers that may be asked for", "names", choices=get_args(Sampler)
    ),
    Setting(
        "controls",
        "names",
        MEMBER_SCOPES,
        "the controls (ControlNet, T2I-Adapter) that may be used",
        "names",
        maximum=64,
        max_items=50,
    ),
    Setting(
        "references",
        "names",
        MEMBER_SCOPES,
        "the adapters that may take over reference pictures",
        "names",
        maximum=64,
        max_items=50,
    ),
    Setting("commands", "choices", MEMBER_SCOPES, "what members may do", "commands", choices=LIMITABLE_COMMANDS),
    Setting(
        "results",
        "choice",
        MEMBER_SCOPES,
        "who sees results: everybody, their author, or as the author likes",
        choices=("public", "private", "choice"),
    ),
    Setting(
        "speeds", "choices", MEMBER_SCOPES, "the speeds that may be asked for", "names", choices=("fast", "relaxed")
    ),
    Setting("blocked", "switch", ("operator", "role", "user"), "may make no pictures at all"),
    Setting("together_running", "number", SHARED_SCOPES, "how many jobs of all members run at once", "jobs", 1, 1000),
    Setting(
        "together_queued", "number", SHARED_SCOPES, "how many jobs of all members may wait", "jobs", 0, UNLIMITED_COUNT
    ),
    Setting(
        "together_cost_day", "cost", SHARED_SCOPES, "device time of all in 24 hours", "device time", 0, UNLIMITED_COST
    ),
    Setting(
        "together_cost_month", "cost", SHARED_SCOPES, "device time of all in 30 days", "device time", 0, UNLIMITED_COST
    ),
    Setting("closed", "text", GUILD_SCOPES, "why nothing is made at present; set by close, ended by open", maximum=300),
    Setting("words", "texts", GUILD_SCOPES, "words that no prompt may have", "words", 1, 100, 500),
    Setting("patterns", "texts", GUILD_SCOPES, "patterns (RE2) that no prompt may match", "patterns", 1, 200, 50),
    Setting("check", "switch", SHARED_SCOPES, "pictures are shown after the picture check passed them"),
    Setting("reports", "channel", ("guild",), "the channel that reports go to"),
    Setting("previews", "switch", CHANNEL_SCOPES, "show pictures while they develop"),
    Setting(
        "long_ping",
        "seconds",
        CHANNEL_SCOPES,
        "jobs of at least this many seconds ping their author",
        "seconds",
        0,
        86_400,
    ),
)
