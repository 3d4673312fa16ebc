"""Destinations of a job that is over: its response, a notice in a new message, a direct message.

Pure: only the recorded deliveries decide, so that after a crash the decision is the same. First comes the notice, then
the response links to it or shows everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bot.discord.cards.notices import LONG_JOB_SECONDS
from bot.domain.dto import Delivery, DeliveryRole, JobView

DELIVERY_ORDER: tuple[DeliveryRole, ...] = ("notice", "answer", "direct")
DeliveriesByRole = Mapping[DeliveryRole, Delivery]


@dataclass(frozen=True)
class NotifyPrefs:
    """What the author prefers, and the server's rule: a job that takes `long_seconds` or longer ends with a new
    message.
    """

    ping: bool = True
    direct_message: bool = False
    long_seconds: float = LONG_JOB_SECONDS


def missing_roles(view: JobView, deliveries: DeliveriesByRole, notify_prefs: NotifyPrefs) -> list[DeliveryRole]:
    """Return the destinations that this job still needs."""
    needed_by_role = {
        "notice": _needs_notice(view, deliveries["answer"], notify_prefs),
        "direct": _needs_direct(view, deliveries, notify_prefs),
    }
    return [role for role in DELIVERY_ORDER if needed_by_role.get(role) and role not in deliveries]


def next_role(deliveries: DeliveriesByRole) -> DeliveryRole | None:
    """Return where to show the final next; None once every possible destination shows it."""
    for role in DELIVERY_ORDER:
        delivery = deliveries.get(role)
        if delivery and delivery.delivered_at is None and not (role == "answer" and delivery.reason):
            return role
    return None


def is_settled(deliveries: DeliveriesByRole) -> bool:
    """Return whether nothing is left to show, and no destination is missing."""
    answer = deliveries["answer"]
    return next_role(deliveries) is None and answer.delivered_at is not None and not answer.reason


def delivered_notice(deliveries: DeliveriesByRole) -> Delivery | None:
    """Return the delivered notice, to which the response only has to link."""
    delivery = deliveries.get("notice")
    return delivery if delivery and delivery.delivered_at is not None and not delivery.reason else None


def is_response_gone(answer: Delivery) -> bool:
    """Return whether the response existed, and cannot be edited any more."""
    return bool(answer.reason and answer.message)


def _needs_notice(view: JobView, answer: Delivery, notify_prefs: NotifyPrefs) -> bool:
    if view.is_private or view.state == "cancelled" or answer.delivered_at is not None or is_response_gone(answer):
        return False
    return bool(answer.reason) or (notify_prefs.ping and _is_long(view, notify_prefs))


def _needs_direct(view: JobView, deliveries: DeliveriesByRole, notify_prefs: NotifyPrefs) -> bool:
    answer = deliveries["answer"]
    notice = deliveries.get("notice")
    if view.state == "cancelled":
        return False
    if answer.reason and (is_response_gone(answer) or view.is_private or (notice is not None and notice.reason)):
        return delivered_notice(deliveries) is None
    if answer.delivered_at is not None or not answer.destination.address.get("guild"):
        return False  # done; or the response is already in the author's direct conversation
    return (notify_prefs.direct_message and view.state == "finished") or (
        view.is_private and notify_prefs.ping and _is_long(view, notify_prefs)
    )


def _is_long(view: JobView, notify_prefs: NotifyPrefs) -> bool:
    return (view.finished or 0.0) - view.created >= notify_prefs.long_seconds
