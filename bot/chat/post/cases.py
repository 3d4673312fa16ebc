"""Jobs that have a message in Discord, and what is known of it. Knows the desk and its feed; sends nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bot.refused import Refused
from bot.views import Member

if TYPE_CHECKING:
    from bot.chat.post.outcome import Wishes
    from bot.desk import Desk
    from bot.rules import Terms
    from bot.views import Place, Role, View

STRANGERS = 4096  # jobs of other front ends, and ended ones, that are not looked up again


@dataclass
class Case:
    """A job whose message is kept up to date.

    `since` is on the courier's clock, `place` is its response's destination.
    """

    view: View
    place: Place
    since: float
    frames: dict[int, bytes] = field(default_factory=dict)
    fresh: bool = False  # frames came that were not shown yet
    pictured: bool = True  # previews show frames, not only text
    lost: bool = False  # the response is gone: no previews, the final goes elsewhere
    ending: bool = False  # its final is on the way
    wishes: Wishes | None = None  # read when its final is on the way
    unposted: set[Role] = field(default_factory=set)  # destinations added by this process, surely without a message
    limit: int = 1 << 30  # bytes that Discord turned out to accept
    troubles: int = 0
    outages: int = 0  # times in a row that Discord was unreachable
    limited: int = 0  # times in a row that Discord rate-limited it


class Cases:
    """The open cases by job."""

    def __init__(self, desk: Desk, clock: Callable[[], float]) -> None:
        self._studio, self._deliveries, self._administration = desk.studio, desk.deliveries, desk.administration
        self._clock = clock
        self._open: dict[str, Case] = {}
        self._strangers: OrderedDict[str, None] = OrderedDict()

    def __getitem__(self, job: str) -> Case:
        return self._open[job]

    async def find(self, job: str) -> Case | None:
        """Return the job's case, opened if needed; None if another front end shows the job, or it was closed."""
        if job in self._open or job in self._strangers:
            return self._open.get(job)
        try:
            place = await self._deliveries.place_of(job)
            view = await self._studio.view(job)
        except Refused:
            self._forget(job)
            return None
        if place.kind == "discord":
            return await self.open(view, place)
        self._forget(job)
        return None

    async def open(self, view: View, place: Place) -> Case:
        """Open a case. From now on the workers send this job's frames."""
        if view.id not in self._open:
            pictured = (await self.terms(view)).previews
            self._studio.feed.watch(view.id)
            self._open[view.id] = Case(view, place, self._clock(), pictured=pictured)
        return self._open[view.id]

    async def terms(self, view: View) -> Terms:
        """Return the effective rules of the job's channel, which say how it is shown."""
        author = Member(view.member_id, view.member_name, view.guild, channel=view.channel)
        return await self._administration.terms(author)

    def close(self, job: str) -> None:
        """Close the case after its final was shown everywhere: late frames open no new one."""
        if self._open.pop(job, None):
            self._studio.feed.unwatch(job)
        self._forget(job)

    def _forget(self, job: str) -> None:
        self._strangers[job] = None
        if len(self._strangers) > STRANGERS:
            self._strangers.popitem(last=False)
