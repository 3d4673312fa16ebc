"""Whether a member may go on from a job: the table of standings, asked of the job that is really used.

A front end asks about the job that was named. Where that leads to another one (an enlargement to its original, an
address to the picture behind it), what it leads to is asked about here: else a public job would open a private one.
"""

from __future__ import annotations

from bot.access import Action, Subject, forbidden
from bot.refused import Refused
from bot.store import Record
from bot.views import Member

ORIGINAL = "This is an enlargement, and its original is not yours to go on from. {}"


def reason(action: Action, member: Member, record: Record) -> str | None:
    """Why `member` may not, as a sentence; None if they may. A job of a channel that they cannot see is as private."""
    hidden = record.private or not member.sees(record.channel)
    return forbidden(action, member, Subject(record.member, record.member_name, record.guild, hidden))


def permit_original(action: Action, member: Member, record: Record) -> None:
    """Raises `Refused` (403) where an enlargement leads to a job that they may not use."""
    if said := reason(action, member, record):
        raise Refused(ORIGINAL.format(said), 403)
