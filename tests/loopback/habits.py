"""What discord.py does against Discord's description, each with the reason why it is no fault of ours.

Discord takes all of it. A row that nothing uses any more fails the tests: then it goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from loopback.openapi import Finding


@dataclass(frozen=True)
class Habit:
    """Findings that match are expected; `*` stands for anything."""

    operation: str
    where: str
    said: str
    reason: str

    def explains(self, found: Finding) -> bool:
        pairs = ((found.operation, self.operation), (found.where, self.where), (found.said, self.said))
        return all(fnmatchcase(given.replace("[]", "()"), rule.replace("[]", "()")) for given, rule in pairs)


NEW = "there is no such property"
NUMBER = "int is not string"
BOOLEAN = "is neither true nor false"

HABITS = (
    Habit("*", "*attachments[].id", NUMBER, "ids of attachments are numbers in JSON; Discord reads both"),
    Habit("*", "allowed_mentions.users[]", NUMBER, "and the ids of those who may be mentioned"),
    Habit("*/messages", "message_reference.*", NUMBER, "so are the ids of a message that is answered"),
    Habit("POST /users/@me/channels", "recipient_id", NUMBER, "and the one to whom a direct message goes"),
    *(
        Habit("*", f"attachments[].{name}", NEW, "a kept attachment is sent back as it came; only its id is read")
        for name in ("content_type", "proxy_url", "size", "spoiler", "url")
    ),
    Habit("PATCH *", "tts", NEW, "edits say that they are not read aloud; Discord does not look"),
    Habit("POST */callback", "data.tts", NEW, "an answer that edits is an edit, too"),
    Habit("*", "*embeds[].flags", NEW, "embeds bear the flags that Discord gives, none in a new one"),
    Habit("PUT *commands", "[].nsfw", NEW, "the description forgot it; Discord documents it under Application Command"),
    Habit("POST *", "?with_response", BOOLEAN, "booleans of addresses are 0 and 1; Discord reads both"),
    Habit("POST *", "?wait", BOOLEAN, "as above"),
    Habit("P* /webhooks*", "?with_components", BOOLEAN, "as above"),
)


def unexplained(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that no row explains."""
    return sorted(each for each in set(findings) if not any(habit.explains(each) for habit in HABITS))


def unused(findings: Iterable[Finding]) -> list[Habit]:
    """Rows that explain nothing."""
    seen = set(findings)
    return [habit for habit in HABITS if not any(habit.explains(each) for each in seen)]
