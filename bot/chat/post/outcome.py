"""Destinations of a job that is over: its response, a notice in a new message, a direct message.

Pure, and a function of the recorded deliveries: after a crash the decision is the same. The order survives any crash:
the notice is posted first, then the response links to it or shows everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bot.chat.notices import LONG
from bot.views import Delivery, Role, View

ORDER: tuple[Role, ...] = ("notice", "answer", "direct")
Deliveries = Mapping[Role, Delivery]


@dataclass(frozen=True)
class Wishes:
    """What the author prefers, and the server's rule: a job of `long` seconds or more ends with a new message."""

    ping: bool = True
    direct: bool = False
    long: float = LONG


def lacking(view: View, known: Deliveries, wishes: Wishes) -> list[Role]:
    """Return the destinations that this job needs, and does not have yet."""
    wanted = {"notice": _needs_notice(view, known["answer"], wishes), "direct": _needs_direct(view, known, wishes)}
    return [role for role in ORDER if wanted.get(role) and role not in known]


def due(known: Deliveries) -> Role | None:
    """Return where to show the final next; None once it was shown wherever it can be."""
    for role in ORDER:
        one = known.get(role)
        if one and one.delivered is None and not (role == "answer" and one.reason):
            return role
    return None


def settled(known: Deliveries) -> bool:
    """Return whether nothing is left to show, and no destination can be lacking."""
    answer = known["answer"]
    return due(known) is None and answer.delivered is not None and not answer.reason


def told(known: Deliveries) -> Delivery | None:
    """Return the delivered notice, to which the response only has to link."""
    one = known.get("notice")
    return one if one and one.delivered is not None and not one.reason else None


def gone(answer: Delivery) -> bool:
    """Return whether the response existed, and cannot be edited any more."""
    return bool(answer.reason and answer.message)


def _needs_notice(view: View, answer: Delivery, wishes: Wishes) -> bool:
    if view.private or view.state == "cancelled" or answer.delivered is not None or gone(answer):
        return False
    return bool(answer.reason) or (wishes.ping and _long(view, wishes))


def _needs_direct(view: View, known: Deliveries, wishes: Wishes) -> bool:
    answer, notice = known["answer"], known.get("notice")
    if view.state == "cancelled":
        return False
    if answer.reason and (gone(answer) or view.private or (notice is not None and notice.reason)):
        return told(known) is None
    if answer.delivered is not None or not answer.place.where.get("guild"):
        return False  # done; or the response is already in the author's direct conversation
    return (wishes.direct and view.state == "finished") or (view.private and wishes.ping and _long(view, wishes))


def _long(view: View, wishes: Wishes) -> bool:
    return (view.finished or 0.0) - view.created >= wishes.long
