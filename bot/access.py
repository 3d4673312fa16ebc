"""Who may do what: one table of standings, for every command and button, by whose job it is and where. Pure.

The front ends ask `forbidden` before they act, and the tests press every cell of the same table. It knows nothing of
limits (how much one may spend: `bot.rules`) and nothing of how a front end learns what somebody's standing is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from bot.views import Member

Standing = Literal["member", "moderator", "admin", "owner", "house"]
Whose = Literal["none", "own", "another's", "private", "elsewhere"]
Action = Literal[
    "imagine", "queue", "mine", "info", "prefer", "help",
    "cancel", "upscale", "vary", "reroll", "remix", "reproduce", "prompt", "film", "details", "favourite", "delete",
    "report", "approve", "deny",
    "settings", "explain", "set", "close", "budget",
]  # fmt: skip

STANDINGS: tuple[Standing, ...] = get_args(Standing)
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True)
class Permit:
    """The least standing that may act: on nothing in particular or an own job (`own`), on another's public one in the
    same server (`others`), on another's private one (`private`). None: nobody. `direct`: also in a conversation with
    the bot. Jobs of another server are their author's, and the house's where `house` says so.
    """

    own: Standing | None = "member"
    others: Standing | None = "member"
    private: Standing | None = None
    house: bool = False
    direct: bool = True


ANYBODY = Permit()
AUTHOR = Permit(others=None)
MODERATED = Permit(others="moderator", private="moderator", house=True)  # their author's, and the moderators'

TABLE: Mapping[Action, Permit] = MappingProxyType(
    {
        "imagine": ANYBODY,
        "queue": ANYBODY,
        "mine": ANYBODY,
        "info": ANYBODY,
        "prefer": ANYBODY,
        "help": ANYBODY,
        "cancel": MODERATED,
        "upscale": ANYBODY,  # whoever sees a picture may go on from it, at their own expense
        "vary": ANYBODY,
        "reroll": ANYBODY,
        "remix": ANYBODY,
        "reproduce": ANYBODY,
        "prompt": ANYBODY,
        "film": ANYBODY,
        "details": ANYBODY,
        "favourite": ANYBODY,
        "delete": MODERATED,
        "report": Permit(own=None),  # one's own is deleted, not reported
        "approve": Permit(own="moderator", others="moderator", private="moderator", house=True),
        "deny": Permit(own="moderator", others="moderator", private="moderator", house=True),
        "settings": Permit(own="moderator", direct=False),  # to look at them
        "explain": Permit(own="moderator", direct=False),
        "set": Permit(own="admin", direct=False),
        "close": Permit(own="owner", direct=False),
        "budget": Permit(own="house"),
    }
)
SAID: Mapping[Standing, str] = MappingProxyType(
    {
        "member": "members",
        "moderator": "moderators (who may manage messages here)",
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
    """Why `member` may not, as a sentence for them; None if they may. `direct`: in a conversation with the bot."""
    relation = whose(member, subject)
    needed = least(action, relation)
    if direct and not TABLE[action].direct:
        return "That belongs to a server: ask for it there."
    if needed is not None and STANDINGS.index(standing(member)) >= STANDINGS.index(needed):
        return None
    if relation == "elsewhere":
        return "That job belongs to another server."
    if needed is None:
        return _nobody(action, relation)
    if subject is not None and relation in ("another's", "private") and TABLE[action].own == "member":
        return f"Only {subject.author_name} and {SAID[needed]} may {action} it."
    return f"Only {SAID[needed]} may do that."


def _nobody(action: Action, relation: Whose) -> str:
    if relation == "private":
        return "That job is private: it is its author's alone."
    return "This one is yours: delete it instead." if action == "report" else "Only its author may do that."
