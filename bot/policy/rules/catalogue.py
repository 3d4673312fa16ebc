"""The settings that a rule can set, each one annotated field of `EffectiveRules`. Declarations only.

Costs are calibrated device-seconds (`engine.contract.presence`), whole ones. A day is any 24 hours, a month any 30
days: both windows roll. Settings that begin with `together_` count all members of the server or channel together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Literal, cast, get_args, get_type_hints

from bot.domain.feature import MemberLimit, load_features
from bot.policy.rules.rule import ALL, Rule, RuleValue, Scope
from engine.contract import MAX_COUNT, MAX_STEPS, MIN_EVALUATIONS, Sampler

SettingKind = Literal[
    "number", "cost", "seconds", "size", "choice", "choices", "names", "switch", "texts", "text", "channel"
]

LIST_KINDS: tuple[SettingKind, ...] = ("choices", "names", "texts")
MEMBER_SCOPES: tuple[Scope, ...] = ("operator", "guild", "channel", "role", "user")
SHARED_SCOPES: tuple[Scope, ...] = ("operator", "guild", "channel")
GUILD_SCOPES: tuple[Scope, ...] = ("operator", "guild")
CHANNEL_SCOPES: tuple[Scope, ...] = ("guild", "channel")

UsageScope = Literal["member here", "member everywhere", "channel", "guild"]
Results = Literal["public", "private", "choice"]
NO_RULES: Mapping[str, Rule | None] = MappingProxyType({})
UNLIMITED_COUNT = 100_000  # the largest count of jobs: as good as no limit
MIN_PIXELS = 16 * 16
MAX_PIXELS = 4096 * 4096
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
    """What a rule may set.

    `title`: on cards. `description`: what it limits, in sentences; `details`: what docs/limits.md adds. `minimum` and
    `maximum` bound a number, and the length of each text; `max_items` bounds the number of texts in a list. `choices`:
    the allowed values, or parts of a list; empty for names that only live workers know. `name`: the field's.
    """

    kind: SettingKind
    scopes: tuple[Scope, ...]
    title: str
    description: str
    unit: str = ""
    minimum: int = 0
    maximum: int = 0
    max_items: int = 0
    choices: tuple[str, ...] = ()
    details: str = ""
    name: str = ""

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


ADDED_LIMITS = tuple(limit for feature in load_features().values() for limit in feature.member_limits)
ADDED_DEFAULTS: Mapping[str, int] = MappingProxyType({limit.name: limit.default for limit in ADDED_LIMITS})


@dataclass(frozen=True)
class UsageLimit:
    """One limit on usage. `usage_scope`: whose usage counts, and where. `rule` is None for the bot's default."""

    setting: str
    limit: int
    usage_scope: UsageScope
    rule: Rule | None = None


@dataclass(frozen=True)
class EffectiveRules:
    """Effective values. Costs are device-seconds; `pixels` is an area.

    `usage_limits` are all limits on usage that apply; the fields `running` … `together_cost_month` are the lowest of
    each. A `together_` field of None is no limit. `added`: the limits of features. `deciding_rules`: the rule that
    decides each setting, None for the bot's default.
    """

    running: Annotated[
        int,
        Setting(
            "number",
            MEMBER_SCOPES,
            "Running at once",
            "how many jobs of a member run at once",
            "jobs",
            1,
            1000,
            details="more wait, nothing is refused",
        ),
    ] = 3
    queued: Annotated[
        int,
        Setting(
            "number",
            MEMBER_SCOPES,
            "Waiting in line",
            "how many more jobs of a member may wait",
            "jobs",
            0,
            UNLIMITED_COUNT,
            details="one more is refused",
        ),
    ] = 7
    cost_day: Annotated[
        int,
        Setting(
            "cost",
            MEMBER_SCOPES,
            "Device time a day",
            "device time of a member in 24 hours",
            "device time",
            0,
            UNLIMITED_COST,
        ),
    ] = 1800
    cost_month: Annotated[
        int,
        Setting(
            "cost",
            MEMBER_SCOPES,
            "Device time a month",
            "device time of a member in 30 days",
            "device time",
            0,
            UNLIMITED_COST,
        ),
    ] = UNLIMITED_COST
    relaxed_day: Annotated[
        int,
        Setting(
            "cost",
            MEMBER_SCOPES,
            "Relaxed time a day",
            "device time of a member's relaxed jobs in 24 hours",
            "device time",
            0,
            UNLIMITED_COST,
        ),
    ] = 14_400
    steps: Annotated[
        int, Setting("number", MEMBER_SCOPES, "Most steps", "the most sampler steps of a job", "steps", 1, MAX_STEPS)
    ] = MAX_STEPS
    evaluations: Annotated[
        int,
        Setting(
            "number",
            MEMBER_SCOPES,
            "Most evaluations",
            "the most evaluations of the network by a job's picture",
            "evaluations",
            MIN_EVALUATIONS,
            MAX_STEPS,
            details="[flag](prompts.md#evaluations)",
        ),
    ] = MAX_STEPS
    pixels: Annotated[
        int,
        Setting(
            "size",
            MEMBER_SCOPES,
            "Largest picture",
            "the largest picture, as width x height",
            "pixels",
            MIN_PIXELS,
            MAX_PIXELS,
            details="as requested, before the super-resolver upscales it; `upscale` is also a command",
        ),
    ] = MAX_PIXELS
    count: Annotated[
        int,
        Setting(
            "number",
            MEMBER_SCOPES,
            "Pictures of one job",
            "the most pictures of a job",
            "pictures",
            1,
            MAX_COUNT,
            details="walks need 4; `--best` draws twice as many, and the member pays for all",
        ),
    ] = MAX_COUNT
    models: Annotated[
        tuple[str, ...],
        Setting(
            "names", MEMBER_SCOPES, "Models", "the models that may be asked for", "names", maximum=64, max_items=50
        ),
    ] = ALL
    samplers: Annotated[
        tuple[str, ...],
        Setting(
            "choices",
            MEMBER_SCOPES,
            "Samplers",
            "the samplers that may be asked for",
            "names",
            choices=get_args(Sampler),
        ),
    ] = ALL
    controls: Annotated[
        tuple[str, ...],
        Setting(
            "names",
            MEMBER_SCOPES,
            "Controls",
            "the controls (ControlNet, T2I-Adapter) that may be used",
            "names",
            maximum=64,
            max_items=50,
            details="[control pictures](control.md)",
        ),
    ] = ALL
    references: Annotated[
        tuple[str, ...],
        Setting(
            "names",
            MEMBER_SCOPES,
            "Reference pictures",
            "the adapters that may take over reference pictures",
            "names",
            maximum=64,
            max_items=50,
            details="[reference pictures](control.md)",
        ),
    ] = ALL
    commands: Annotated[
        tuple[str, ...],
        Setting(
            "choices",
            MEMBER_SCOPES,
            "Commands",
            "what members may do",
            "commands",
            choices=LIMITABLE_COMMANDS,
            details="they can always cancel, delete, report and look up their own jobs; `edit` is also needed for "
            "`/edit` and `--edit`",
        ),
    ] = ALL
    results: Annotated[
        Results,
        Setting(
            "choice",
            MEMBER_SCOPES,
            "Results",
            "who sees results: everybody, their author, or as the author likes",
            choices=get_args(Results),
            details="with `choice` each member's `/stealth` or `/public` decides",
        ),
    ] = "choice"
    speeds: Annotated[
        tuple[str, ...],
        Setting(
            "choices", MEMBER_SCOPES, "Speeds", "the speeds that may be asked for", "names", choices=("fast", "relaxed")
        ),
    ] = ALL
    blocked: Annotated[
        bool, Setting("switch", ("operator", "role", "user"), "Blocked", "may make no pictures at all")
    ] = False
    together_running: Annotated[
        int | None,
        Setting(
            "number",
            SHARED_SCOPES,
            "All together: running",
            "how many jobs of all members run at once",
            "jobs",
            1,
            1000,
            details="more wait",
        ),
    ] = None
    together_queued: Annotated[
        int | None,
        Setting(
            "number",
            SHARED_SCOPES,
            "All together: waiting",
            "how many jobs of all members may wait",
            "jobs",
            0,
            UNLIMITED_COUNT,
        ),
    ] = None
    together_cost_day: Annotated[
        int | None,
        Setting(
            "cost",
            SHARED_SCOPES,
            "All together: time a day",
            "device time of all in 24 hours",
            "device time",
            0,
            UNLIMITED_COST,
        ),
    ] = None
    together_cost_month: Annotated[
        int | None,
        Setting(
            "cost",
            SHARED_SCOPES,
            "All together: time a month",
            "device time of all in 30 days",
            "device time",
            0,
            UNLIMITED_COST,
        ),
    ] = None
    closed: Annotated[
        str,
        Setting(
            "text",
            GUILD_SCOPES,
            "Closed",
            "why nothing is made at present; set by close, ended by open",
            maximum=300,
            details="the server's owner closes with `/settings close`, the operator with `darkroom rules close`",
        ),
    ] = ""
    words: Annotated[
        tuple[str, ...],
        Setting("texts", GUILD_SCOPES, "Refused words", "words that no prompt may have", "words", 1, 100, 500),
    ] = ()
    patterns: Annotated[
        tuple[str, ...],
        Setting(
            "texts", GUILD_SCOPES, "Refused patterns", "patterns (RE2) that no prompt may match", "patterns", 1, 200, 50
        ),
    ] = ()
    check: Annotated[
        bool,
        Setting("switch", SHARED_SCOPES, "Picture check", "pictures are shown after the picture check passed them"),
    ] = False
    reports: Annotated[str, Setting("channel", ("guild",), "Reports go to", "the channel that reports go to")] = ""
    previews: Annotated[
        bool, Setting("switch", CHANNEL_SCOPES, "Live previews", "show pictures while they develop")
    ] = True
    long_ping: Annotated[
        int,
        Setting(
            "seconds",
            CHANNEL_SCOPES,
            "Ping after long jobs",
            "jobs of at least this many seconds ping their author",
            "seconds",
            0,
            86_400,
        ),
    ] = 60
    added: Mapping[str, int] = field(default_factory=lambda: ADDED_DEFAULTS)
    usage_limits: tuple[UsageLimit, ...] = ()
    deciding_rules: Mapping[str, Rule | None] = field(default_factory=lambda: NO_RULES)

    def get(self, setting: str) -> RuleValue | None:
        """Return the effective value of any setting by its name."""
        return self.added[setting] if setting in self.added else getattr(self, setting)

    def allows(self, setting: str, name: str) -> bool:
        """Return whether a list (models, samplers, controls, …) allows `name`."""
        allowed_names = cast("tuple[str, ...]", getattr(self, setting))
        return allowed_names == ALL or name in allowed_names

    def limits_of(self, setting: str) -> tuple[UsageLimit, ...]:
        """Return the usage limits of one setting."""
        return tuple(limit for limit in self.usage_limits if limit.setting == setting)


def _collect_settings() -> Mapping[str, Setting]:
    """Return every setting by its name; those of features stand behind the last number of a job."""
    settings = dict[str, Setting]()
    for name, hint in get_type_hints(EffectiveRules, include_extras=True).items():
        for declared in getattr(hint, "__metadata__", ()):
            settings[name] = replace(declared, name=name)
        if name == "count":
            settings |= {each.name: _from_limit(each) for each in ADDED_LIMITS}
    return MappingProxyType(settings)


def _from_limit(limit: MemberLimit) -> Setting:
    return Setting(
        "number",
        MEMBER_SCOPES,
        limit.title,
        limit.description,
        limit.unit,
        limit.minimum,
        limit.maximum,
        details=limit.details,
        name=limit.name,
    )


SETTINGS = _collect_settings()
DEFAULT_RULES = EffectiveRules()
