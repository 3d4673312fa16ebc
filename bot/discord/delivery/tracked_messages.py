"""Jobs that have a message in Discord, and what is known of it. Knows the services and the feed; sends nothing.

Destinations of a job that is over: its response, a notice in a new message, a direct message.

Pure: only the recorded deliveries decide, so that after a crash the decision is the same. First comes the notice, then
the response links to it or shows everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cachetools import LRUCache

from bot.discord.cards.job_cards import LONG_JOB_SECONDS
from bot.domain.dto import Delivery, DeliveryRole, JobView, Member
from bot.domain.errors import UserError
from engine.contract import list_final_images

if TYPE_CHECKING:
    from bot.domain.dto import Destination
    from bot.domain.events import JobSteered
    from bot.domain.steering import AmendmentView
    from bot.services import Services

MAX_IGNORED = 4096  # jobs of other front ends, and ended ones, that are not looked up again


@dataclass
class TrackedMessage:
    """A job whose message is kept up to date.

    `opened_at` is on the courier's clock, `destination` is its response's destination.
    """

    view: JobView
    destination: Destination
    opened_at: float
    frames: dict[int, bytes] = field(default_factory=dict)
    amendments: dict[int, AmendmentView] = field(default_factory=dict)  # by number, oldest first
    is_steerable: bool | None = None  # None: not known until it develops
    has_new_frames: bool = False  # there are frames that no message shows yet
    shows_frames: bool = True  # previews show frames, not only text
    response_lost: bool = False  # the response is gone: no previews, the final goes elsewhere
    final_pending: bool = False  # its final is on the way
    notify_prefs: NotifyPrefs | None = None  # loaded when its final is on the way
    deliveries: dict[DeliveryRole, Delivery] | None = None  # as its final's last step left them; None: to be read
    unposted_roles: set[DeliveryRole] = field(
        default_factory=set
    )  # destinations that this process added: they have no message yet
    upload_limit: int = 1 << 30  # bytes that Discord accepts, as learnt from its errors
    error_count: int = 0
    outage_count: int = 0  # times in a row that Discord was unreachable
    rate_limit_count: int = 0  # times in a row that Discord rate-limited it

    def follow_steering(self, event: JobSteered) -> None:
        """Take what was said and the recipe as it is now amended; the next edit shows both."""
        self.amendments[event.view.number] = event.view
        self.view = replace(self.view, task=event.recipe)
        developing = list_final_images(event.recipe)
        self.frames = {image: frame for image, frame in self.frames.items() if image in developing}


def author_of(view: JobView) -> Member:
    """Return the job's author. Nobody knows the roles of one who does not act now."""
    return Member(view.member_id, view.member_name, view.guild, channel=view.channel, thread=view.thread)


class TrackedMessages:
    """The tracked messages by job."""

    def __init__(self, services: Services, clock: Callable[[], float]) -> None:
        self._services = services
        self._deliveries = services.deliveries
        self._clock = clock
        self._messages: dict[str, TrackedMessage] = {}
        self._ignored: LRUCache[str, None] = LRUCache(MAX_IGNORED)

    def __getitem__(self, job: str) -> TrackedMessage:
        return self._messages[job]

    async def find_or_track(self, job: str) -> TrackedMessage | None:
        """Return the job's message, tracked if needed; None if another front end shows the job, or it is untracked."""
        if job in self._messages or job in self._ignored:
            return self._messages.get(job)
        try:
            destination = await self._deliveries.answer_destination(job)
            view = await self._services.job_views.load_view(job)
        except UserError:
            self._ignored[job] = None
            return None
        if destination.kind == "discord":
            return await self.track(view, destination)
        self._ignored[job] = None
        return None

    async def track(self, view: JobView, destination: Destination) -> TrackedMessage:
        """Track a message. From now on the workers send this job's frames."""
        if view.id not in self._messages:
            shows_frames = (await self._services.rule_admin.effective_rules(author_of(view))).previews
            amendments = await self._load_amendments(view)
            message = TrackedMessage(
                view,
                destination,
                self._clock(),
                shows_frames=shows_frames,
                amendments={amendment.number: amendment for amendment in amendments},
            )
            if self._messages.setdefault(view.id, message) is message:  # else an event or a sweep came first
                self._services.feed.watch(view.id)
        return self._messages[view.id]

    async def _load_amendments(self, view: JobView) -> list[AmendmentView]:
        """Return what was said before this process watched; none of a job that waits or is deleted."""
        if view.state == "queued":
            return []
        try:
            return await self._services.steering.list_amendments(view.id, author_of(view))
        except UserError:
            return []

    def untrack(self, job: str) -> None:
        """Forget the message after its final is shown everywhere; late frames do not track it again."""
        if self._messages.pop(job, None):
            self._services.feed.unwatch(job)
        self._ignored[job] = None


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
