"""Incidents for moderators: their kinds, and one sentence for each. Pure.

An incident that needs a decision stays open; any other is a note, closed when it is written. Changes of rules, blocks
included, are logged separately (`bot.services.rule_admin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bot.domain.texts import shorten

IncidentKind = Literal["word", "blocked", "report", "held", "approved", "denied", "deleted", "closed", "barred"]

SENTENCES: Mapping[IncidentKind, str] = MappingProxyType(
    {
        "word": "{actor} used a forbidden word or pattern",
        "blocked": "{actor}, who is blocked, asked for a picture",
        "report": "{actor} reported a picture",
        "held": "A picture for {actor} is held back",
        "approved": "{actor} showed a held picture",
        "denied": "{actor} kept a held picture hidden",
        "deleted": "{actor} deleted the pictures of a job",
        "closed": "{actor} closed an incident",
        "barred": "{actor} blocked a member",
    }
)
NEED_DECISION: tuple[IncidentKind, ...] = ("report", "held")  # need a moderator's decision
REPEATABLE: tuple[IncidentKind, ...] = ("word", "blocked")  # a member can cause these as often as they like
MAX_DETAIL = 500  # characters


@dataclass(frozen=True)
class Incident:
    """One incident. `created_at` and `closed`: seconds since 1970; `job` may be empty; `text`: further text."""

    number: int
    guild: str
    created_at: float
    kind: IncidentKind
    actor: str
    actor_name: str
    job: str
    text: str
    closed: float | None = None

    @property
    def is_undecided(self) -> bool:
        """True while it needs a decision."""
        return self.closed is None and self.kind in NEED_DECISION


def incident_sentence(incident: Incident, limit: int = 300) -> str:
    """Return an incident as one sentence. It quotes members, so front ends must escape it."""
    summary = SENTENCES[incident.kind].format(actor=shorten(incident.actor_name, 40) or "Somebody")
    detail = shorten(incident.text, limit)
    return f"{summary}: {detail}" if detail else f"{summary}."
