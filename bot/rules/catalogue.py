"""The settings that a rule can set: kind, range, unit and allowed scopes. Declarations only.

Costs are calibrated device-seconds (`engine.job.cost`), whole ones. A day is any 24 hours, a month any 30 days: both
windows roll. Settings that begin with `together_` count all members of the server or channel together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from bot.rules.rule import Scope, Value
from engine.job import MAX_COUNT, MAX_STEPS, Sampler

Kind = Literal["number", "cost", "seconds", "size", "choice", "choices", "names", "switch", "texts", "text", "channel"]

LISTS: tuple[Kind, ...] = ("choices", "names", "texts")
MEMBER: tuple[Scope, ...] = ("house", "guild", "channel", "role", "user")
TOGETHER: tuple[Scope, ...] = ("house", "guild", "channel")
WHOLE: tuple[Scope, ...] = ("house", "guild")
ROOM: tuple[Scope, ...] = ("guild", "channel")

MANY = 100_000  # the largest count of jobs: as good as no limit
FOREVER = 10**9  # device-seconds: as good as no limit

# What `commands` can forbid. Cancelling, deleting and reporting always work.
LIMITABLE = (
    "imagine", "vary", "reroll", "remix", "reproduce", "blend", "edit", "zoom", "pan", "branch", "walk",
    "upscale", "prompt", "film", "details", "favourite", "envelope",
    "describe", "queue",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """`least` and `most` bound a number, and the length of each text; `longest` bounds the number of texts in a list.

    `choices`: the allowed values, or parts of a list; empty for names that only live workers know.
    """

    name: str
    kind: Kind
    scopes: tuple[Scope, ...]
    about: str
    unit: str = ""
    least: int = 0
    most: int = 0
    longest: int = 0
    choices: tuple[str, ...] = ()

    def takes(self, value: Value) -> bool:
        """Return whether a stored value is valid. A rule with an invalid one, as no version writes it, is ignored."""
        if self.kind in LISTS:
            return isinstance(value, tuple)
        if self.kind == "switch":
            return isinstance(value, bool)
        if self.numeric or self.kind == "seconds":
            return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most
        return isinstance(value, str) and (not self.choices or value in self.choices)

    @property
    def numeric(self) -> bool:
        """Whether more is more generous."""
        return self.kind in ("number", "cost", "size")


def _all(*settings: Setting) -> Mapping[str, Setting]:
    return MappingProxyType({setting.name: setting for setting in settings})


SETTINGS = _all(
    Setting("running", "number", MEMBER, "how many jobs of a member run at once", "jobs", 1, 1000),
    Setting("queued", "number", MEMBER, "how many more jobs of a member may wait", "jobs", 0, MANY),
    Setting("cost_day", "cost", MEMBER, "device time of a member in 24 hours", "device time", 0, FOREVER),
    Setting("cost_month", "cost", MEMBER, "device time of a member in 30 days", "device time", 0, FOREVER),
    Setting("steps", "number", MEMBER, "the most sampler steps of a job", "steps", 1, MAX_STEPS),
    Setting("pixels", "size", MEMBER, "the largest picture, as width x height", "pixels", 16 * 16, 4096 * 4096),
    Setting("count", "number", MEMBER, "the most pictures of a job", "pictures", 1, MAX_COUNT),
    Setting("models", "names", MEMBER, "the models that may be asked for", "names", most=64, longest=50),
    Setting("samplers", "choices", MEMBER, "the samplers that may be asked for", "names", choices=get_args(Sampler)),
    Setting("commands", "choices", MEMBER, "what members may do", "commands", choices=LIMITABLE),
    Setting(
        "results", "choice", MEMBER, "who sees results: everybody, their author, or as the author likes",
        choices=("public", "private", "choice"),
    ),
    Setting("speeds", "choices", MEMBER, "the speeds that may be asked for", "names", choices=("fast", "relaxed")),
    Setting("blocked", "switch", ("house", "role", "user"), "may make no pictures at all"),
    Setting("together_running", "number", TOGETHER, "how many jobs of all members run at once", "jobs", 1, 1000),
    Setting("together_queued", "number", TOGETHER, "how many jobs of all members may wait", "jobs", 0, MANY),
    Setting("together_cost_day", "cost", TOGETHER, "device time of all in 24 hours", "device time", 0, FOREVER),
    Setting("together_cost_month", "cost", TOGETHER, "device time of all in 30 days", "device time", 0, FOREVER),
    Setting("closed", "text", WHOLE, "why nothing is made at present; set by close, ended by open", most=300),
    Setting("words", "texts", WHOLE, "words that no prompt may have", "words", 1, 100, 500),
    Setting("patterns", "texts", WHOLE, "patterns (RE2) that no prompt may match", "patterns", 1, 200, 50),
    Setting("check", "switch", TOGETHER, "pictures are shown after the picture check passed them"),
    Setting("reports", "channel", ("guild",), "the channel that reports go to"),
    Setting("previews", "switch", ROOM, "show pictures while they develop"),
    Setting("long_ping", "seconds", ROOM, "jobs of at least this many seconds ping their author", "seconds", 0, 86_400),
)  # fmt: skip
