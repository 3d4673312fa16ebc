"""discord.py's known deviations from Discord's description, each with the reason why it is not our fault.

Discord accepts all of them. A row that explains nothing any more fails the tests and must be removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from loopback.openapi import Finding


@dataclass(frozen=True)
class Habit:
    """Matching findings are expected. `*` matches anything."""

    operation: str
    where: str
    said: str
    reason: str

    def explains(self, found: Finding) -> bool:
        pairs = ((found.operation, self.operation), (found.where, self.where), (found.said, self.said))
        return all(fnmatchcase(value.replace("[]", "()"), rule.replace("[]", "()")) for value, rule in pairs)


UNKNOWN = "there is no such property"
NUMERIC = "int is not string"
NOT_BOOLEAN = "is neither true nor false"

HABITS = (
    Habit("*", "*attachments[].id", NUMERIC, "ids of attachments are numbers in JSON; Discord reads both"),
    Habit("*", "allowed_mentions.users[]", NUMERIC, "and the ids of those who may be mentioned"),
    Habit("*/messages", "message_reference.*", NUMERIC, "so are the ids of a message that is answered"),
    Habit("POST /users/@me/channels", "recipient_id", NUMERIC, "and the one to whom a direct message goes"),
    *(
        Habit("*", f"attachments[].{name}", UNKNOWN, "a kept attachment is sent back as it came; only its id is read")
        for name in ("content_type", "proxy_url", "size", "spoiler", "url")
    ),
    Habit("PATCH *", "tts", UNKNOWN, "edits say that they are not read aloud; Discord does not look"),
    Habit("POST */callback", "data.tts", UNKNOWN, "an answer that edits is an edit, too"),
    Habit("*", "*embeds[].flags", UNKNOWN, "embeds bear the flags that Discord gives, none in a new one"),
    Habit(
        "PUT *commands", "[].nsfw", UNKNOWN, "the description forgot it; Discord documents it under Application Command"
    ),
    Habit("POST *", "?with_response", NOT_BOOLEAN, "booleans of addresses are 0 and 1; Discord reads both"),
    Habit("POST *", "?wait", NOT_BOOLEAN, "as above"),
    Habit("P* /webhooks*", "?with_components", NOT_BOOLEAN, "as above"),
)


def unexplained(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that no row explains."""
    return sorted(each for each in set(findings) if not any(habit.explains(each) for habit in HABITS))


def unused(findings: Iterable[Finding]) -> list[Habit]:
    """Rows that explain nothing."""
    found = set(findings)
    return [habit for habit in HABITS if not any(habit.explains(each) for each in found)]
