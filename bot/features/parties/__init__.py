"""Parties: members who steer one picture together."""

from __future__ import annotations

from bot.domain.feature import Feature, MemberLimit
from bot.domain.permission import Permission, Price

FEATURE = Feature(
    title="Parties",
    permissions={
        "party": Permission("take part in a party", others_role="member", in_direct_messages=False, is_limitable=True)
    },
    prices={"party": Price("steer", 1.0)},
    member_limits=(
        MemberLimit(
            "party",
            "Longest party",
            "the longest party, in minutes; 0 for none",
            "minutes",
            0,
            60,
            default=15,
            details="[parties](parties.md)",
        ),
    ),
)
