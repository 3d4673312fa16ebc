"""The use cases: what a member may do. Front ends are adapters over this one class.

Knows policy (prompt, limits), the store and the feed; knows nothing of Discord, HTTP or how a picture is made. Every
refusal is a `Refused` with one sentence for the member.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bot.access import Subject, forbidden
from bot.desk.admission import Admission
from bot.desk.begun import begun, shaped, unused
from bot.desk.bringing import Bring, linked
from bot.desk.onward import Onward
from bot.desk.options import Options
from bot.desk.origin import Origin
from bot.desk.recipes import pinned, stations
from bot.desk.register import Register
from bot.desk.starting import Starting
from bot.feed import Feed
from bot.images.film_formats import Kind
from bot.images.gallery import Gallery
from bot.images.reel import LIMIT
from bot.models import Models
from bot.orders import Order, assumed
from bot.prompt import Parsed, parse, recipe, remarks
from bot.prompt.possible import check_possible
from bot.prompt.suffix import suffixed, walk_suffixed
from bot.queue.cancelling import Cancelling
from bot.queue.steering import Steering
from bot.refused import Refused
from bot.sentences import shortened, starting
from bot.store import Record, Store, members
from bot.views import Action, Member, Place, Shot, Ticket, View
from engine.job import MAX_COUNT, ModelProgress, Presence, Warm, cost

__all__ = ["Action", "Member", "Place", "Shot", "Studio", "Ticket", "View"]

ADDED = "Your suffix was added: “{}”."
SEEDS = 2**32 - MAX_COUNT  # image i draws from seed + i


class Studio(Onward):
    """Made by `bot.house`. `fresh` draws a seed. What is made from finished pictures is in `Further` and `Onward`."""

    def __init__(
        self, store: Store, feed: Feed, models: Models, register: Register, gallery: Gallery, admission: Admission,
        starting: Starting, options: Options, cancelling: Cancelling, steering: Steering,
        workers: Callable[[], Mapping[str, Presence]], *,
        on_its_way: Callable[[], ModelProgress | None] = lambda: None,
        clock: Callable[[], float] = time.time, fresh: Callable[[], int] = lambda: secrets.randbelow(SEEDS),
    ) -> None:  # fmt: skip
        super().__init__(models, register, gallery, admission, starting, options, fresh)
        self.feed = feed
        self.addresses: tuple[str, ...] = ()  # of the room, which sets them once it knows
        self._store, self._cancelling, self._steering = store, cancelling, steering
        self._workers, self._on_its_way, self._clock = workers, on_its_way, clock

    # Making

    async def imagine(
        self, text: str, member: Member, place: Place, *, key: str | None = None, exact: bool = False, suffix: str = "",
        bring: Bring | None = None, action: Action = "imagine", **options: object,
    ) -> list[Ticket]:  # fmt: skip
        """A prompt as jobs, one for each permutation; all are taken or none. Raises `Refused`.

        `options` override the flags in the text: steps, seed, guidance, interval, sampler, model, count, ar, fast,
        negative, strength, stop, tile, mix, chaos, repeat, quality, walk, frames; `lora` adds to them. A walk is as
        many jobs as its pictures need (`walk`).
        `bring`: pictures to begin with; then no words are needed, and without --ar they give the shape. Addresses at
        the beginning of the text are pictures too, of Discord or the room.
        `suffix` goes behind the words of the prompt, and a note says so, as on each of the member's own options.
        `exact` pins the batch shape, so that load cannot change the last bits. The same `key` twice: the same jobs.
        """
        text, bring = linked(text, bring, self.addresses)
        ended = suffixed(text, suffix if text else "")
        own, names = await self._options.meant(member.id, ended), self._models.names()
        default = self._models.profile(None).warm
        parsed = parse(ended, default, models=names, options=options, wordless=bring is not None, own=own)
        added = (ADDED.format(shortened(suffix, 100)),) if ended != text else ()
        requests = tuple(
            replace(one, walk=walk_suffixed(one.walk, suffix, own)) if one.walk else one for one in parsed.requests
        )
        parsed = Parsed(requests, (*added, *parsed.notes))
        if key is None and any(one.walk for one in requests):
            key = f"walk:{self._clock()}:{self._fresh()}"  # by which the parts of a walk know each other
        if bring is None:
            return await self._take(self._orders(parsed, action, None, exact=exact), member, place, key)
        action = "blend" if len(bring.pictures) > 1 else action
        relaxed = any(request.relaxed for request in parsed.requests)
        if known := await self._early(action, member, key, ended, count=len(parsed.requests), relaxed=relaxed):
            return known
        async with self._starting.opened(member, bring) as start:
            return await self._take(self._orders(parsed, action, start, exact=exact), member, place, key, start)

    def _orders(self, parsed: Parsed, action: Action, start: Origin | None, *, exact: bool) -> list[Order]:
        """One for each request. Raises `Refused` for what its model cannot draw."""
        default, orders = self._models.profile(None), list[Order]()
        for request in parsed.requests:
            profile = self._models.profile(request.model) if request.model else default
            made = begun(recipe(shaped(request, start), profile.warm, self._fresh()), request, start)
            parts = stations(made, request.walk, request.frames) if request.walk else [made]
            check_possible(parts[0], profile.warm)
            parts = [pinned(part) if exact else part for part in parts]
            told = () if profile.warm.name == default.warm.name else remarks(request, profile.warm)
            said = (*(start.notes if start else ()), *parsed.notes, *told, *unused(request, start))
            notes = tuple(dict.fromkeys(said))
            notes = notes if profile.live else (*notes, assumed(profile, bool(self._workers())))
            orders += [
                Order(
                    action, " ".join(request.text.split()), notes, part, profile.pool, cost(part, profile.warm),
                    relaxed=request.relaxed, material=start.material if start else (),
                )
                for part in parts
            ]  # fmt: skip
        return orders

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

    async def compared(self, shots: Sequence[tuple[str, int]], labels: Sequence[str]) -> bytes:
        """Two to four finished images by job and index, beside each other, labelled, as PNG. Raises `Refused`."""
        return await self._gallery.compared(shots, labels)

    async def film(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """How a job's images came to be, animated, at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.film(job, limit, kind)

    async def walk(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """The pictures of a walk, of all its jobs, there and back, at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.walk(job, limit, kind)

    async def dissolve(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """One image on its way into noise, animated, at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.dissolve(job, index, kind, limit)

    async def there_and_back(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """One image on its way into noise and how it came to be, at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.there_and_back(job, index, kind, limit)

    async def sheet(self, job: str, index: int) -> bytes:
        """The rungs that one can branch off at, each as a picture with its step, as WebP. Raises `Refused`."""
        return await self._gallery.sheet(job, index)

    async def rungs(self, job: str) -> list[int]:
        """The step at each rung of a job's film. Raises `Refused` (404)."""
        return await self._gallery.rungs(job)

    async def rung(self, job: str, n: int) -> bytes:
        """The grid at rung `n`, counted from 0, as WebP. Raises `Refused` (404)."""
        return await self._gallery.rung(job, n)

    def workers(self) -> Mapping[str, Presence]:
        """The live workers by name."""
        return self._workers()

    def starting(self) -> str:
        """The sentence on a worker that is on its way; empty where none is."""
        return starting(self._on_its_way())

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
