"""Who may do what: one table of standings, for every command and button, by whose job it is and where. Pure.

The front ends ask `forbidden` before they act, and the tests press every cell of the same table. It knows nothing of
limits (how much one may spend: `bot.rules`) and nothing of how a front end learns what somebody's standing is.
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
    """The least standing that may act: on nothing in particular or an own job (`own`), on another's public one in the
    same server (`others`), on another's private one (`private`). None: nobody. `direct`: also in a conversation with
    the bot. Jobs of another server are their author's, and the house's where `house` says so. `deed`: what they do, as
    it stands after "may". `jobs`: whether there is a job to act on at all.
    """

    deed: str
    own: Standing | None = "member"
    others: Standing | None = None
    private: Standing | None = None
    house: bool = False
    direct: bool = True
    jobs: bool = True


def _simply(deed: str) -> Permit:
    """Everyone's business, and about no job."""
    return Permit(deed, jobs=False)


def _anybody(deed: str) -> Permit:
    """Whoever sees a picture may go on from it, at their own expense; a private one is its author's alone."""
    return Permit(deed, others="member")


def _moderated(deed: str) -> Permit:
    """Their author's and the moderators' business."""
    return Permit(deed, others="moderator", private="moderator", house=True)


def _moderators(deed: str) -> Permit:
    """The moderators' business, also where the job is their own."""
    return Permit(deed, own="moderator", others="moderator", private="moderator", house=True)


def _governed(deed: str, least: Standing) -> Permit:
    """About the rules of a server."""
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
        "export": _simply("have a copy of what is kept of them"),
        "forget": _simply("have everything of theirs removed"),
        "help": _simply("read the help"),
        "cancel": _moderated("cancel this job"),
        "pause": _moderated("pause this job"),
        "upscale": _anybody("enlarge this picture"),
        "vary": _anybody("vary this picture"),
        "reroll": _anybody("roll this again"),
        "remix": _anybody("remix this"),
        "reproduce": _anybody("make this once more"),
        "edit": _anybody("change a part of this picture"),
        "zoom": _anybody("zoom out of this picture"),
        "pan": _anybody("continue this picture beyond its edge"),
        "branch": _anybody("branch off from this picture"),
        "walk": _anybody("walk between these pictures"),
        "prompt": _anybody("use these words"),
        "film": _anybody("see this film"),
        "details": _anybody("see the details of this job"),
        "favourite": _anybody("keep this picture as a favourite"),
        "envelope": _anybody("have these pictures sent to them"),
        "delete": _moderated("delete these pictures"),
        "report": Permit("report this", own=None, others="member"),  # one's own is deleted, not reported
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
PRIVATE = "That job is private: it is its author's alone."
YOURS = "This one is yours: delete it instead."  # of a report, the one thing that may not be done to one's own
ELSEWHERE = "That job belongs to another server."
INDIRECT = "That belongs to a server: ask for it there."
SAID: Mapping[Standing, str] = MappingProxyType(
    {
        "member": "members",
        "moderator": "moderators (who may manage messages in the whole server)",
        "admin": "admins (who may manage this server)",
        "owner": "the server's owner",
        "house": "whoever runs this bot",
    }
)


@dataclass(frozen=True)
class Subject:
    """The job that is acted on: its author, that author's name, its server, and whether it is private."""

    author: str
    author_name: str
    guild: str
    private: bool = False


def subject_of(view: View) -> Subject:
    """What an action on a job acts on."""
    return Subject(view.member_id, view.member_name, view.guild, view.private)


def standing(member: Member) -> Standing:
    """The highest standing of a member where they are."""
    if member.house:
        return "house"
    if member.owner:
        return "owner"
    if member.admin:
        return "admin"
    return "moderator" if member.moderator else "member"


def whose(member: Member, subject: Subject | None) -> Whose:
    """How a member relates to what they act on."""
    if subject is None:
        return "none"
    if subject.author == member.id:
        return "own"
    if subject.guild != member.guild:
        return "elsewhere"
    return "private" if subject.private else "another's"


def least(action: Action, relation: Whose) -> Standing | None:
    """The least standing that may; None if nobody may."""
    permit = TABLE[action]
    if relation == "elsewhere":
        return "house" if permit.house else None
    if relation == "another's":
        return permit.others
    return permit.private if relation == "private" else permit.own


def forbidden(action: Action, member: Member, subject: Subject | None = None, *, direct: bool = False) -> str | None:
    """Why `member` may not, as a sentence for them; None if they may. `direct`: in a conversation with the bot.

    Raises ValueError for a subject of what is about no job: that would be answered by chance.
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
