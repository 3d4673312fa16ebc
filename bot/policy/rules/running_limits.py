"""Limits on running jobs of all members, by server and channel, for the dispatcher. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bot.policy.rules.rule import EVERYWHERE, Rule

LIMIT_SETTINGS = ("together_running", "closed")


@dataclass(frozen=True)
class RunningLimits:
    """Limits by guild.

    `guild_limits`: by the admins of a server. `ceilings`: by the operator for a server ("*": for each without its own).
    `channel_limits`: by guild and channel. `closed_guilds`: closed servers ("*": all), whose waiting jobs are not
    dispatched.
    """

    guild_limits: Mapping[str, int] = field(default_factory=dict[str, int])
    ceilings: Mapping[str, int] = field(default_factory=dict[str, int])
    channel_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    closed_guilds: frozenset[str] = frozenset()

    @classmethod
    def from_rules(cls, rules: Iterable[Rule]) -> RunningLimits:
        """Build it from rules of any guild; only those of `LIMIT_SETTINGS` are allowed."""
        guild_limits = dict[str, int]()
        ceilings = dict[str, int]()
        channel_limits = dict[str, dict[str, int]]()
        closed_guilds: set[str] = set()
        for rule in rules:
            if rule.setting == "closed":
                closed_guilds.add(rule.guild)
            if not isinstance(rule.value, int):
                continue
            if rule.scope == "operator":
                ceilings[rule.guild] = rule.value
            elif rule.scope == "channel":
                channel_limits.setdefault(rule.guild, {})[rule.subject] = rule.value
            else:
                guild_limits[rule.guild] = rule.value
        return cls(guild_limits, ceilings, channel_limits, frozenset(closed_guilds))

    def limit_of(self, guild: str) -> int | None:
        """Return the limit of a server; None if it has none."""
        if {guild, EVERYWHERE} & self.closed_guilds:
            return 0
        ceiling = self.ceilings.get(guild, self.ceilings.get(EVERYWHERE))
        limits = [limit for limit in (self.guild_limits.get(guild), ceiling) if limit is not None]
        return min(limits, default=None)

    def channel_limits_of(self, guild: str) -> Mapping[str, int]:
        """Return the limits of a server's channels."""
        return self.channel_limits.get(guild, {})
