"""Limits on running jobs of all members, by server and channel, for the dispatcher. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bot.rules.rule import EVERYWHERE, Rule

SETTINGS = ("together_running", "closed")


@dataclass(frozen=True)
class Together:
    """Limits by guild.

    `guilds`: by the admins of a server. `ceilings`: by the operator for a server ("*": for each without its own).
    `channels`: by guild and channel. `shut`: closed servers ("*": all), whose waiting jobs are not dispatched.
    """

    guilds: Mapping[str, int] = field(default_factory=dict[str, int])
    ceilings: Mapping[str, int] = field(default_factory=dict[str, int])
    channels: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    shut: frozenset[str] = frozenset()

    @classmethod
    def of_rules(cls, rules: Iterable[Rule]) -> Together:
        """Build it from rules of any guild; only those of `SETTINGS` are allowed."""
        guilds, ceilings, channels = dict[str, int](), dict[str, int](), dict[str, dict[str, int]]()
        shut: set[str] = set()
        for rule in rules:
            if rule.setting == "closed":
                shut.add(rule.guild)
            if not isinstance(rule.value, int):
                continue
            if rule.scope == "house":
                ceilings[rule.guild] = rule.value
            elif rule.scope == "channel":
                channels.setdefault(rule.guild, {})[rule.subject] = rule.value
            else:
                guilds[rule.guild] = rule.value
        return cls(guilds, ceilings, channels, frozenset(shut))

    def of(self, guild: str) -> int | None:
        """Return the limit of a server; None if it has none."""
        if {guild, EVERYWHERE} & self.shut:
            return 0
        ceiling = self.ceilings.get(guild, self.ceilings.get(EVERYWHERE))
        found = [cap for cap in (self.guilds.get(guild), ceiling) if cap is not None]
        return min(found, default=None)

    def channels_of(self, guild: str) -> Mapping[str, int]:
        """Return the limits of a server's channels."""
        return self.channels.get(guild, {})
