"""A cache of encoded events: each is encoded once, however many pages are open."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from bot.feed import Developing, Queued, Readying
from bot.web import shown

Told = Queued | Readying | Developing
REMEMBERED = 256  # jobs


class Texts:
    """The last encoded event of each job. The feed gives the same object to all pages that keep up."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, tuple[Told, bytes]] = OrderedDict()

    def of(self, moment: Told) -> bytes:
        """Return the event in its wire format (HTML, 9.2.6: the event stream's format). JSON has no line ends."""
        last = self._last.get(moment.job)
        if last is None or last[0] is not moment:
            event, value = spoken(moment)
            last = self._last[moment.job] = moment, f"event: {event}\r\ndata: {json.dumps(value)}\r\n\r\n".encode()
            self._last.move_to_end(moment.job)
            if len(self._last) > REMEMBERED:
                self._last.popitem(last=False)
        return last[1]


def spoken(moment: Told) -> tuple[str, dict[str, Any]]:
    """Return the event's name and its value for JSON."""
    if isinstance(moment, Developing):
        return "frame", shown.frame(moment)
    if isinstance(moment, Readying):
        return "loading", shown.loading(moment)
    place = {"place": moment.place, "eta": moment.eta, "starting": moment.starting}
    return "queued", {"id": moment.job, "state": "queued", **place}
