"""What moderators are told of: one kind for each thing that happens, and a sentence for each incident. Pure.

`bot.store.incidents` keeps them, the changes of rules (blocks among them) are kept apart (`desk.administration`). What
waits for somebody is open; all else is a note, closed as it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bot.sentences import shortened

Kind = Literal["word", "blocked", "report", "held", "approved", "denied", "deleted", "closed", "barred"]

KINDS: Mapping[Kind, str] = MappingProxyType(
    {
        "word": "{actor} asked for what a list of words or patterns does not allow",
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
WAITING: tuple[Kind, ...] = ("report", "held")  # for a moderator; the others are only noted
REPEATED: tuple[Kind, ...] = ("word", "blocked")  # which a member can make as often as they like
SAID = 500  # characters


@dataclass(frozen=True)
class Incident:
    """One of them. `at` and `closed` in seconds since 1970; `job` may be empty; `said` is what there is to add."""

    number: int
    guild: str
    at: float
    kind: Kind
    actor: str
    actor_name: str
    job: str
    said: str
    closed: float | None = None

    @property
    def waits(self) -> bool:
        """True while it is somebody's to decide."""
        return self.closed is None and self.kind in WAITING


def told(incident: Incident, limit: int = 300) -> str:
    """An incident in one sentence; front ends escape it, for it quotes members."""
    told = KINDS[incident.kind].format(actor=shortened(incident.actor_name, 40) or "Somebody")
    said = shortened(incident.said, limit)
    return f"{told}: {said}" if said else f"{told}."
