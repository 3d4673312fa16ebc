"""Permission to make a job from another job, checked on the job that is really used.

A front end checks the job that was named. If it leads to another (an upscale to its original, an address to the picture
behind it), this checks that one: else a public job would give access to a private one.
"""

from __future__ import annotations

from bot.access import Action, Subject, forbidden
from bot.refused import Refused
from bot.store import Record
from bot.views import Member

ORIGINAL = "This is an enlargement, and its original is not yours to go on from. {}"


def reason(action: Action, member: Member, record: Record) -> str | None:
    """Return why `member` may not, as a sentence; None if they may. A job in a channel that they cannot see counts as
    private.
    """
    hidden = record.private or not member.sees(record.channel)
    return forbidden(action, member, Subject(record.member, record.member_name, record.guild, hidden))


def permit_original(action: Action, member: Member, record: Record) -> None:
    """Raise `Refused` (403) if an upscale leads to a job that the member may not use."""
    if said := reason(action, member, record):
        raise Refused(ORIGINAL.format(said), 403)
