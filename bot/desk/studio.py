"""The use cases: what a member may do. Front ends are adapters over this one class.

Knows policy (prompt, limits), the store and the feed; knows nothing of Discord, HTTP or how a picture is made. Every
refusal is a `Refused` with one sentence for the member.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

from bot.access import Subject, forbidden
from bot.desk.admission import Admission
from bot.desk.further import Further
from bot.desk.recipes import pinned
from bot.desk.register import Register
from bot.feed import Feed
from bot.images.film import LIMIT
from bot.images.gallery import Gallery
from bot.models import Models
from bot.orders import Order, assumed, totalled
from bot.prompt import parse, recipe, remarks
from bot.prompt.suffix import suffixed
from bot.queue.cancelling import Cancelling
from bot.queue.steering import Steering
from bot.refused import Refused
from bot.sentences import shortened
from bot.store import Record, Store, members
from bot.views import Action, Member, Place, Shot, Ticket, View
from engine.job import MAX_COUNT, Presence, Warm, cost

__all__ = ["Action", "Member", "Place", "Shot", "Studio", "Ticket", "View"]

ADDED = "Your suffix was added: “{}”."
SEEDS = 2**32 - MAX_COUNT  # image i draws from seed + i


class Studio(Further):
    """Made by `bot.house`. `fresh` draws a seed. What is made from finished pictures is in `Further`."""

    def __init__(
        self, store: Store, feed: Feed, models: Models, register: Register, gallery: Gallery, admission: Admission,
        cancelling: Cancelling, steering: Steering, workers: Callable[[], Mapping[str, Presence]], *,
        clock: Callable[[], float] = time.time, fresh: Callable[[], int] = lambda: secrets.randbelow(SEEDS),
    ) -> None:  # fmt: skip
        super().__init__(models, register, gallery, admission, fresh)
        self.feed = feed
        self._store, self._cancelling, self._steering = store, cancelling, steering
        self._workers, self._clock = workers, clock

    # Making

    async def imagine(
        self, text: str, member: Member, place: Place, *, key: str | None = None, exact: bool = False, suffix: str = "",
        **options: object,
    ) -> list[Ticket]:  # fmt: skip
        """A prompt as jobs, one for each permutation; all are taken or none. Raises `Refused`.

        `options` override the flags in the text: steps, seed, guidance, interval, sampler, model, count, ar, fast,
        negative; `lora` adds to them.
        `suffix` goes behind the words of the prompt, and a note says so.
        `exact` pins the batch shape, so that load cannot change the last bits. The same `key` twice: the same jobs.
        """
        profiles = {profile.warm.name: profile for profile in self._models.profiles()}
        default = self._models.profile(None)
        ended = suffixed(text, suffix)
        parsed = parse(ended, default.warm, models=list(profiles), options=options)
        added = (ADDED.format(shortened(suffix, 100)),) if ended != text else ()
        orders: list[Order] = []
        for request in parsed.requests:
            profile = profiles[request.model] if request.model else default
            made = recipe(request, profile.warm, self._fresh())
            made = pinned(made) if exact else made
            told = () if profile.warm.name == default.warm.name else remarks(request, profile.warm)
            notes = tuple(dict.fromkeys((*added, *parsed.notes, *told)))
            notes = notes if profile.live else (*notes, assumed(profile, bool(self._workers())))
            orders.append(
                Order(
                    "imagine", " ".join(request.text.split()), notes, made, profile.pool, cost(made, profile.warm),
                    relaxed=request.relaxed,
                )
            )  # fmt: skip
        return await self._admission.take(totalled(orders), member, place, key)

    async def cancel(self, job: str, member: Member) -> str:
        """Cancel an own job, or as a moderator one of the own guild; says what happened. Raises `Refused`."""
        record = await self._register.record(job)
        if reason := forbidden("cancel", member, _subject(record)):
            raise Refused(reason, 403)
        return await self._cancelling.cancel(job)

    async def pause(self, job: str, member: Member, *, on: bool = True) -> str:
        """Hold a running job where it stands, for a quarter of an hour at most, or with `on` False let it go on.

        Whoever may cancel it may. Not stored: a job that moves to another worker runs on. Raises `Refused`.
        """
        record = await self._register.record(job)
        if reason := forbidden("pause", member, _subject(record)):
            raise Refused(reason, 403)
        return await (self._steering.pause if on else self._steering.resume)(record)

    async def prioritise(self, job: str, weight: float) -> str:
        """For whoever runs the machine: a running job's share of its author's rows. Not stored. Raises `Refused`."""
        return await self._steering.prioritise(await self._register.record(job), weight)

    async def favour(self, job: str, index: int, member: Member) -> bool:
        """Make a finished image a favourite of the member's, or no longer one; True if it is now. Raises `Refused`."""
        await self._gallery.stored(job, index)
        return await self._store.write(members.favour, member.id, job, index, self._clock())

    # Looking

    async def view(self, job: str) -> View:
        """A job as it stands. Raises `Refused` (404)."""
        return (await self._register.views([await self._register.record(job)]))[0]

    async def queue(self, guild: str | None = None) -> list[View]:
        """What runs, then what waits in fair order."""
        return await self._register.queue(guild)

    async def recent(self, guild: str | None = None, limit: int = 50) -> list[View]:
        """The newest jobs first."""
        return await self._register.recent(guild, limit)

    async def picture(self, job: str, index: int) -> bytes:
        """A finished image as PNG. Raises `Refused` (404)."""
        return await self._gallery.picture(job, index)

    async def shown(self, job: str, index: int) -> bytes:
        """A finished image as everybody may see it: blurred while it is held. Raises `Refused` (404)."""
        return await self._gallery.shown(job, index)

    async def all_shown(self, job: str) -> list[bytes]:
        """Every finished image of a job, as everybody may see it. Raises `Refused` (404)."""
        return await self._gallery.all_shown(job)

    async def film(self, job: str, limit: int = LIMIT) -> bytes:
        """How a job's images came to be, as an animated WebP of at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.film(job, limit)

    async def rungs(self, job: str) -> list[int]:
        """The step at each rung of a job's film. Raises `Refused` (404)."""
        return await self._gallery.rungs(job)

    async def rung(self, job: str, n: int) -> bytes:
        """The grid at rung `n`, counted from 0, as WebP. Raises `Refused` (404)."""
        return await self._gallery.rung(job, n)

    def workers(self) -> Mapping[str, Presence]:
        """The live workers by name."""
        return self._workers()

    def models(self) -> list[Warm]:
        """The models that can be asked for, those of live workers first."""
        return [profile.warm for profile in self._models.profiles()]

    def model(self, name: str | None) -> Warm | None:
        """One of them, None if there is none of this name; without a name, the one that is used then."""
        try:
            return self._models.profile(name or None).warm
        except KeyError:
            return None


def _subject(record: Record) -> Subject:
    return Subject(record.member, record.member_name, record.guild, record.private)
