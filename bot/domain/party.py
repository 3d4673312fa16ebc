"""A party as its members see it: members who steer one picture together. Frozen, no logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartyPhrase:
    """What a member says. `number` rises within the party. `votes_for` counts its member, too."""

    number: int
    text: str
    member_name: str
    votes_for: int
    votes_against: int


@dataclass(frozen=True)
class PartyBoard:
    """What is said in a party, and by whom.

    `ends_at`: in seconds since 1970; None until its picture develops. `phrases`: the newest of each member, in order.
    `members`: the names of all who take part, in the order in which they joined.
    """

    job: str
    ends_at: float | None
    is_open: bool
    phrases: tuple[PartyPhrase, ...]
    members: tuple[str, ...]
