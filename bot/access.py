"""The permission table: which role may do what, by whose job it is and where. Pure.

Front ends ask `forbidden` before they act, and the tests check every cell. Quotas are elsewhere (`bot.rules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from bot.views import Member, View

Standing = Literal["member", "moderator", "admin", "owner", "house"]
Whose = Literal["none", "own", "another's", "private", "elsewhere"]
Action = Literal[
    "imagine", "blend", "describe", "queue", "mine", "info", "prefer", "export", "forget", "help",
    "cancel", "pause", "upscale", "vary", "reroll", "remix", "reproduce",
    "edit", "zoom", "pan", "branch", "walk", "prompt", "film", "details", "favourite",
    "envelope", "delete", "report", "approve", "deny", "dismiss",
    "settings", "explain", "set", "close", "budget",
]  # fmt: skip

STANDINGS: tuple[Standing, ...] = get_args(Standing)
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True)
class Permit:
    """One row of the table. Each role is the least that may act; None: nobody.

    `own`: on an own job, or on no job. `others`: on another member's public job in the same server. `private`: on
    another member's private job. `house`: the operator may act on jobs of other servers; other members never may,
    except authors on their own jobs. `direct`: also in a direct message with the bot. `deed`: the action as it stands
    after "may". `jobs`: the action can have a job.
    """

    deed: str
    own: Standing | None = "member"
    others: Standing | None = None
    private: Standing | None = None
    house: bool = False
    direct: bool = True
    jobs: bool = True


def _simply(deed: str) -> Permit:
    """Return a row for everyone, about no job."""
    return Permit(deed, jobs=False)


def _anybody(deed: str) -> Permit:
    """Return a row for every member who sees the picture, at their own expense; a private picture: its author only."""
    return Permit(deed, others="member")


def _moderated(deed: str) -> Permit:
    """Return a row for a job's author and the moderators."""
    return Permit(deed, others="moderator", private="moderator", house=True)


def _moderators(deed: str) -> Permit:
    """Return a row for moderators only, on their own jobs too."""
    return Permit(deed, own="moderator", others="moderator", private="moderator", house=True)


def _governed(deed: str, least: Standing) -> Permit:
    """Return a row about the rules of a server."""
    return Permit(deed, own=least, direct=False, jobs=False)


TABLE: Mapping[Action, Permit] = MappingProxyType(
    {
        "imagine": _simply("ask for pictures"),
        "blend": _simply("blend pictures"),
        "describe": _simply("have pictures described"),
        "queue": _simply("look at the queue"),
        "mine": _simply("look through their own jobs"),
        "info": _simply("look at their limits"),
        "prefer": _simply("set what they prefer"),
        "export": _simply("export their data"),
        "forget": _simply("have all their data deleted"),
        "help": _simply("read the help"),
        "cancel": _moderated("cancel this job"),
        "pause": _moderated("pause this job"),
        "upscale": _anybody("upscale this picture"),
        "vary": _anybody("vary this picture"),
        "reroll": _anybody("reroll this"),
        "remix": _anybody("remix this"),
        "reproduce": _anybody("reproduce this"),
        "edit": _anybody("change a part of this picture"),
        "zoom": _anybody("zoom out of this picture"),
        "pan": _anybody("pan this picture"),
        "branch": _anybody("branch off from this picture"),
        "walk": _anybody("walk between these pictures"),
        "prompt": _anybody("use this prompt"),
        "film": _anybody("see this film"),
        "details": _anybody("see the details of this job"),
        "favourite": _anybody("keep this picture as a favourite"),
        "envelope": _anybody("have these pictures sent to them"),
        "delete": _moderated("delete these pictures"),
        "report": Permit("report this", own=None, others="member"),  # authors delete their own pictures instead
        "approve": _moderators("look at and show held pictures"),
        "deny": _moderators("keep held pictures hidden"),
        "dismiss": _moderators("dismiss a report"),
        "settings": _governed("look at this server's settings", "moderator"),
        "explain": _governed("see which rule decides", "moderator"),
        "set": _governed("change this server's settings", "admin"),
        "close": _governed("close or open this server", "owner"),
        "budget": Permit("set what a whole server may spend", own="house", jobs=False),
    }
)
PRIVATE = "That job is private: only its author may use it."
YOURS = "This one is yours: delete it instead."  # for `report`, the only action that authors may not do
ELSEWHERE = "That job belongs to another server."
INDIRECT = "That works only in a server: use it there."
SAID: Mapping[Standing, str] = MappingProxyType(
    {
        "member": "members",
        "moderator": "moderators (who may manage messages in the whole server)",
        "admin": "admins (who may manage this server)",
        "owner": "the server's owner",
        "house": "this bot's operator",
    }
)


@dataclass(frozen=True)
class Subject:
    """The job that an action concerns: its author, that author's name, its server, and whether it is private."""

    author: str
    author_name: str
    guild: str
    private: bool = False


def subject_of(view: View) -> Subject:
    return Subject(view.member_id, view.member_name, view.guild, view.private)


def standing(member: Member) -> Standing:
    """Return a member's highest role where they are."""
    if member.house:
        return "house"
    if member.owner:
        return "owner"
    if member.admin:
        return "admin"
    return "moderator" if member.moderator else "member"


def whose(member: Member, subject: Subject | None) -> Whose:
    """Return how a member relates to the subject."""
    if subject is None:
        return "none"
    if subject.author == member.id:
        return "own"
    if subject.guild != member.guild:
        return "elsewhere"
    return "private" if subject.private else "another's"


def least(action: Action, relation: Whose) -> Standing | None:
    """Return the least role that may act; None if nobody may."""
    permit = TABLE[action]
    if relation == "elsewhere":
        return "house" if permit.house else None
    if relation == "another's":
        return permit.others
    return permit.private if relation == "private" else permit.own


def forbidden(action: Action, member: Member, subject: Subject | None = None, *, direct: bool = False) -> str | None:
    """Return why `member` may not act, as a sentence for them; None if they may. `direct`: in a direct message with the
    bot.

    Raises ValueError for a subject with an action that is about no job: the answer would be arbitrary.
    """
    permit, relation = TABLE[action], whose(member, subject)
    if subject is not None and not permit.jobs:
        raise ValueError(f"{action} acts on no job")
    needed = least(action, relation)
    if direct and not permit.direct:
        return INDIRECT
    if needed is not None and STANDINGS.index(standing(member)) >= STANDINGS.index(needed):
        return None
    if relation == "elsewhere":
        return ELSEWHERE
    if needed is None:
        return PRIVATE if relation == "private" else YOURS
    theirs = f"{subject.author_name} and " if subject is not None and permit.own == "member" else ""
    return f"Only {theirs}{SAID[needed]} may {permit.deed}."
