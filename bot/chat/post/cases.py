"""Which jobs have a message in Discord, and what is known of it. Knows the desk and its feed; sends nothing."""

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

STRANGERS = 4096  # jobs of other front ends, and ended ones, that we remember not to ask about again


@dataclass
class Case:
    """A job whose message is kept up to date. `since` is on the courier's clock, `place` that of its answer."""

    view: View
    place: Place
    since: float
    frames: dict[int, bytes] = field(default_factory=dict)
    fresh: bool = False  # frames came that were not yet shown
    pictured: bool = True  # frames are shown, not words alone
    lost: bool = False  # the answer is gone: no previews, the final goes elsewhere
    ending: bool = False  # its last word is on the way
    wishes: Wishes | None = None  # read when its last word is on the way
    unposted: set[Role] = field(default_factory=set)  # places that this process made, and surely posted nothing to
    limit: int = 1 << 30  # bytes that Discord turned out to take
    troubles: int = 0
    outages: int = 0  # times in a row that Discord was out of reach
    limited: int = 0  # times in a row that Discord let it wait


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
        """The job's case, opened if there is none; None if another front end shows the job, or it was closed."""
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
        """From now on the workers are asked for this job's frames."""
        if view.id not in self._open:
            pictured = (await self.terms(view)).previews
            self._studio.feed.watch(view.id)
            self._open[view.id] = Case(view, place, self._clock(), pictured=pictured)
        return self._open[view.id]

    async def terms(self, view: View) -> Terms:
        """What the rules of a job's room say of how it is shown."""
        author = Member(view.member_id, view.member_name, view.guild, channel=view.channel)
        return await self._administration.terms(author)

    def close(self, job: str) -> None:
        """Its last word was said everywhere: late frames open no new case."""
        if self._open.pop(job, None):
            self._studio.feed.unwatch(job)
        self._forget(job)

    def _forget(self, job: str) -> None:
        self._strangers[job] = None
        if len(self._strangers) > STRANGERS:
            self._strangers.popitem(last=False)
