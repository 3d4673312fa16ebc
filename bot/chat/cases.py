"""Which jobs have a message in Discord, and what is known of it. Knows the studio and its feed; sends nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bot.refused import Refused

if TYPE_CHECKING:
    from bot.desk import Desk
    from bot.feed import Subscription
    from bot.views import Place, View

STRANGERS = 4096  # jobs of other front ends, and ended ones, that we remember not to ask about again


@dataclass
class Case:
    """A job whose message is kept up to date. `since` is on the courier's clock."""

    view: View
    place: Place
    since: float
    watch: Subscription
    frames: dict[int, bytes] = field(default_factory=dict)
    fresh: bool = False  # frames came that were not yet shown
    lost: bool = False  # the message is gone: no previews, the final goes into a new one
    limit: int = 1 << 30  # bytes that Discord turned out to take
    troubles: int = 0


class Cases:
    """The open cases by job."""

    def __init__(self, desk: Desk, clock: Callable[[], float]) -> None:
        self._studio, self._deliveries = desk.studio, desk.deliveries
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
            return self.open(view, place)
        self._forget(job)
        return None

    def open(self, view: View, place: Place) -> Case:
        """From now on the workers are asked for this job's frames: the subscription says so, it is never read."""
        if view.id not in self._open:
            watch = self._studio.feed.subscribe(view.id)
            self._open[view.id] = Case(view, place, self._clock(), watch)
        return self._open[view.id]

    def close(self, job: str) -> None:
        """Its message is final: late frames open no new case."""
        if case := self._open.pop(job, None):
            case.watch.close()
        self._forget(job)

    def _forget(self, job: str) -> None:
        self._strangers[job] = None
        if len(self._strangers) > STRANGERS:
            self._strangers.popitem(last=False)
