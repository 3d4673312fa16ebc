"""The main service: makes, cancels and shows jobs. Front ends are adapters over it.

Every refusal is a `Refused` with one sentence for the member.
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
    """The use cases. `fresh` draws a seed. Jobs from finished pictures are in `Further` and `Onward`."""

    def __init__(
        self, store: Store, feed: Feed, models: Models, register: Register, gallery: Gallery, admission: Admission,
        starting: Starting, options: Options, cancelling: Cancelling, steering: Steering,
        workers: Callable[[], Mapping[str, Presence]], *,
        on_its_way: Callable[[], ModelProgress | None] = lambda: None,
        clock: Callable[[], float] = time.time, fresh: Callable[[], int] = lambda: secrets.randbelow(SEEDS),
    ) -> None:  # fmt: skip
        super().__init__(models, register, gallery, admission, starting, options, fresh)
        self.feed = feed
        self.addresses: tuple[str, ...] = ()  # of our page, which sets them once it knows them
        self._store, self._cancelling, self._steering = store, cancelling, steering
        self._workers, self._on_its_way, self._clock = workers, on_its_way, clock

    # Making

    async def imagine(
        self, text: str, member: Member, place: Place, *, key: str | None = None, exact: bool = False, suffix: str = "",
        bring: Bring | None = None, action: Action = "imagine", **options: object,
    ) -> list[Ticket]:  # fmt: skip
        """Admit a prompt as jobs, one for each permutation; all of them or none. Raises `Refused`.

        `options` override the flags in the text: steps, seed, guidance, interval, sampler, model, count, ar, fast,
        negative, strength, stop, tile, mix, chaos, repeat, quality, walk, frames; `lora` adds to them. An interpolation
        (`walk`) makes as many jobs as its pictures need.

        `bring`: init images; with them the prompt may be empty, and without --ar they give the aspect ratio. URLs at
        the beginning of the text are init images too, from Discord or our page.

        `suffix` goes behind the prompt, with a note, as on each flag alias. `exact` pins the batch shape, so that load
        cannot change the last bits. The same `key` again returns the same jobs.
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
            key = f"walk:{self._clock()}:{self._fresh()}"  # links the jobs of an interpolation
        if bring is None:
            return await self._take(self._orders(parsed, action, None, exact=exact), member, place, key)
        action = "blend" if len(bring.pictures) > 1 else action
        relaxed = any(request.relaxed for request in parsed.requests)
        if known := await self._early(action, member, key, ended, count=len(parsed.requests), relaxed=relaxed):
            return known
        async with self._starting.opened(member, bring) as start:
            return await self._take(self._orders(parsed, action, start, exact=exact), member, place, key, start)

    def _orders(self, parsed: Parsed, action: Action, start: Origin | None, *, exact: bool) -> list[Order]:
        """Return the job requests. Raises `Refused` if a model cannot draw one."""
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
        """Cancel an own job, or as a moderator one of the own guild; say what happened. Raises `Refused`."""
        record = await self._register.record(job)
        if reason := forbidden("cancel", member, _subject(record)):
            raise Refused(reason, 403)
        return await self._cancelling.cancel(job)

    async def pause(self, job: str, member: Member, *, on: bool = True) -> str:
        """Pause a running job, for a quarter of an hour at most, or with `on` False resume it.

        The permission is that to cancel. Not stored: a job that moves to another worker runs on. Raises `Refused`.
        """
        record = await self._register.record(job)
        if reason := forbidden("pause", member, _subject(record)):
            raise Refused(reason, 403)
        return await (self._steering.pause if on else self._steering.resume)(record)

    async def prioritise(self, job: str, weight: float) -> str:
        """Set a running job's share of its author's rows. For the operator. Not stored. Raises `Refused`."""
        return await self._steering.prioritise(await self._register.record(job), weight)

    async def favour(self, job: str, index: int, member: Member) -> bool:
        """Toggle a finished image as a favourite of the member's; return whether it is one now. Raises `Refused`."""
        await self._gallery.stored(job, index)
        return await self._store.write(members.favour, member.id, job, index, self._clock())

    # Looking

    async def view(self, job: str) -> View:
        """Return a job's view. Raises `Refused` (404)."""
        return (await self._register.views([await self._register.record(job)]))[0]

    async def queue(self, guild: str | None = None) -> list[View]:
        """Return active jobs, then waiting ones in fair order."""
        return await self._register.queue(guild)

    async def recent(self, guild: str | None = None, limit: int = 50) -> list[View]:
        """Return the newest jobs first."""
        return await self._register.recent(guild, limit)

    async def picture(self, job: str, index: int) -> bytes:
        """Return a finished image as PNG. Raises `Refused` (404)."""
        return await self._gallery.picture(job, index)

    async def shown(self, job: str, index: int) -> bytes:
        """Return a finished image as everybody may see it: blurred while it is held. Raises `Refused` (404)."""
        return await self._gallery.shown(job, index)

    async def all_shown(self, job: str) -> list[bytes]:
        """Return every finished image of a job as everybody may see it. Raises `Refused` (404)."""
        return await self._gallery.all_shown(job)

    async def compared(self, shots: Sequence[tuple[str, int]], labels: Sequence[str]) -> bytes:
        """Return two to four finished images by job and index, side by side and labelled, as PNG. Raises `Refused`."""
        return await self._gallery.compared(shots, labels)

    async def film(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """Return the film of a job's images, at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.film(job, limit, kind)

    async def walk(self, job: str, limit: int = LIMIT, kind: Kind = "webp") -> bytes:
        """Return the film of an interpolation over all its jobs, there and back, at most `limit` bytes. Raises
        `Refused`.
        """
        return await self._gallery.walk(job, limit, kind)

    async def dissolve(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """Return an animation of one image turning into noise, at most `limit` bytes. Raises `Refused`."""
        return await self._gallery.dissolve(job, index, kind, limit)

    async def there_and_back(self, job: str, index: int, kind: Kind = "webp", limit: int = LIMIT) -> bytes:
        """Return an animation of one image turning into noise and developing again, at most `limit` bytes. Raises
        `Refused`.
        """
        return await self._gallery.there_and_back(job, index, kind, limit)

    async def sheet(self, job: str, index: int) -> bytes:
        """Return the keyframes at which a branch may begin as a labelled contact sheet, as WebP. Raises `Refused`."""
        return await self._gallery.sheet(job, index)

    async def rungs(self, job: str) -> list[int]:
        """Return the step of each keyframe of a job's film. Raises `Refused` (404)."""
        return await self._gallery.rungs(job)

    async def rung(self, job: str, n: int) -> bytes:
        """Return the grid at keyframe `n`, counted from 0, as WebP. Raises `Refused` (404)."""
        return await self._gallery.rung(job, n)

    def workers(self) -> Mapping[str, Presence]:
        """Return the live workers by name."""
        return self._workers()

    def starting(self) -> str:
        """Return the sentence about a worker that is starting up; empty if none is."""
        return starting(self._on_its_way())

    def models(self) -> list[Warm]:
        """Return the models that can be requested, those of live workers first."""
        return [profile.warm for profile in self._models.profiles()]

    def model(self, name: str | None) -> Warm | None:
        """Return a model by name, None if there is none; without a name, the default one."""
        try:
            return self._models.profile(name or None).warm
        except KeyError:
            return None


def _subject(record: Record) -> Subject:
    return Subject(record.member, record.member_name, record.guild, record.private)
