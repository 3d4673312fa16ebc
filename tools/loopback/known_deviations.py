"""discord.py's known deviations from Discord's description, each with the reason why it is not our fault.

Discord accepts all of them. A row that explains nothing any more fails the tests and must be removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tools.loopback.openapi import Finding


@dataclass(frozen=True)
class Deviation:
    """Matching findings are expected. `*` matches anything."""

    operation: str
    location: str
    problem: str
    reason: str

    def matches(self, finding: Finding) -> bool:
        pairs = (
            (finding.operation, self.operation),
            (finding.location, self.location),
            (finding.problem, self.problem),
        )
        return all(fnmatchcase(value.replace("[]", "()"), rule.replace("[]", "()")) for value, rule in pairs)


UNKNOWN = "there is no such property"
NUMERIC = "int is not string"
NOT_BOOLEAN = "is neither true nor false"

DEVIATIONS = (
    Deviation("*", "*attachments[].id", NUMERIC, "ids of attachments are numbers in JSON; Discord reads both"),
    Deviation("*", "allowed_mentions.users[]", NUMERIC, "and the ids of those who may be mentioned"),
    Deviation("*/messages", "message_reference.*", NUMERIC, "so are the ids of a message that is answered"),
    Deviation("POST /users/@me/channels", "recipient_id", NUMERIC, "and the one to whom a direct message goes"),
    *(
        Deviation(
            "*", f"attachments[].{name}", UNKNOWN, "a kept attachment is sent back as it came; only its id is read"
        )
        for name in ("content_type", "proxy_url", "size", "spoiler", "url")
    ),
    Deviation("PATCH *", "tts", UNKNOWN, "edits say that they are not read aloud; Discord does not look"),
    Deviation("POST */callback", "data.tts", UNKNOWN, "an answer that edits is an edit, too"),
    Deviation("*", "*embeds[].flags", UNKNOWN, "embeds bear the flags that Discord gives, none in a new one"),
    Deviation(
        "PUT *commands", "[].nsfw", UNKNOWN, "the description forgot it; Discord documents it under Application Command"
    ),
    Deviation("POST *", "?with_response", NOT_BOOLEAN, "booleans of addresses are 0 and 1; Discord reads both"),
    Deviation("POST *", "?wait", NOT_BOOLEAN, "as above"),
    Deviation("P* /webhooks*", "?with_components", NOT_BOOLEAN, "as above"),
)


def find_unexplained(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that no row explains."""
    return sorted(each for each in set(findings) if not any(deviation.matches(each) for deviation in DEVIATIONS))


def find_unused(findings: Iterable[Finding]) -> list[Deviation]:
    """Rows that explain nothing."""
    finding_set = set(findings)
    return [deviation for deviation in DEVIATIONS if not any(deviation.matches(each) for each in finding_set)]
