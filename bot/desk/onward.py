"""Going on from a picture as such: change a part of it, go beyond its edges, blend several, branch off midway.

The other half of the studio, over `Further`. Knows recipes, canvases and ladders; knows nothing of who may or of front
ends. Every method raises `Refused`, and the same `key` twice gives the same job.
"""

from __future__ import annotations

import asyncio
import hashlib

import msgspec

from bot.desk.begun import Otherwise, branched, nearest_said, one_of, single
from bot.desk.further import Further
from bot.desk.recipes import pinned, remixed, rerolled, resting
from bot.desk.starting import Origin, origin
from bot.images import canvas, rungs
from bot.images.intake import Brought
from bot.images.pixels import size
from bot.models import Profile
from bot.orders import Order, renewed
from bot.prompt.possible import check_possible
from bot.refused import Refused
from bot.store import Record
from bot.views import Action, Member, Place, Ticket
from engine.job import Recipe, cost

ZOOMS = (1.5, 2.0)


class Onward(Further):
    """What is asked for by a picture rather than by words."""

    async def edit(
        self, job: str, index: int, mask: bytes, member: Member, place: Place, *,
        text: str | None = None, strength: float | None = None, key: str | None = None,
    ) -> Ticket:  # fmt: skip
        """What is white in `mask` (a picture file) is drawn anew, with other words where `text` says so."""
        record, recipe, index = await self._picture(job, index, "edited")
        start = await self._starting.finished([(record.id, index)])
        both = await self._starting.masked(start, mask)
        return await self._begun("edit", record, recipe, index, both, member, place, key, text, strength)

    async def zoom(
        self, job: str, index: int, factor: float, member: Member, place: Place, *, key: str | None = None
    ) -> Ticket:  # fmt: skip
        """The picture smaller, with what may be around it."""
        if factor not in ZOOMS:
            raise Refused(f"Zoom out by {ZOOMS[0]:g} or {ZOOMS[1]:g}.")
        record, recipe, index = await self._picture(job, index, "zoomed out of")
        made = await asyncio.to_thread(canvas.zoomed_out, await self._gallery.picture(record.id, index), factor)
        return await self._begun("zoom", record, recipe, index, _canvas(*made), member, place, key)

    async def pan(
        self, job: str, index: int, direction: canvas.Direction, member: Member, place: Place, *,
        key: str | None = None,
    ) -> Ticket:  # fmt: skip
        """Half of the picture, and what may lie beyond its edge in one direction."""
        record, recipe, index = await self._picture(job, index, "continued")
        made = await asyncio.to_thread(canvas.panned, await self._gallery.picture(record.id, index), direction)
        return await self._begun("pan", record, recipe, index, _canvas(*made), member, place, key)

    async def steps(self, job: str, index: int) -> tuple[int, ...]:
        """From which steps one can branch off. Raises `Refused` (404)."""
        record, _, index = await self._picture(job, index, "branched from")
        _, ladder = await self._starting.ladder(record.id, index)
        return await asyncio.to_thread(rungs.branchable, ladder)

    async def branch(
        self, job: str, index: int, step: int, member: Member, place: Place, *,
        text: str | None = None, exact: bool = False, key: str | None = None, **options: object,
    ) -> Ticket:  # fmt: skip
        """Go on from a rung of its ladder: the nearest that keeps its latents, at or before `step` where there is one.

        `text`: other words, with flags; `options` as `Studio.imagine` has them. Without either it is the same picture,
        to its end if it was stopped. A seed, or several pictures, also draw the noise at that rung anew; `steps` count
        the whole course. `exact` pins the batch shape.
        """
        record, recipe, index = await self._picture(job, index, "branched from")
        material, ladder = await self._starting.ladder(record.id, index)
        at = await asyncio.to_thread(rungs.nearest, ladder, step)
        base, said, profile = self._now(one_of(recipe, index))
        other, names = Otherwise(record.prompt, text, options), [one.warm.name for one in self._models.profiles()]
        made = branched(base, material.sha256, at, other, profile.warm, names)
        made = pinned(made) if exact and not made.bucket else made
        order = Order(
            "branch", other.words, (*nearest_said(at, step), *said), made, profile.pool, cost(made, profile.warm),
            (record.id, index), material=(material,),
        )  # fmt: skip
        return (await self._take([order], member, place, key))[0]

    def _now(self, base: Recipe) -> tuple[Recipe, tuple[str, ...], Profile]:
        profile = self._known(base.model)
        if profile is None:
            raise Refused(f"No worker that was ever here knows {base.model}.")
        return *renewed(base, profile), profile

    async def _picture(self, job: str, index: int, what: str) -> tuple[Record, Recipe, int]:
        record, recipe, at = await self._original(job, index, what)
        return record, recipe, at or 0

    async def _begun(
        self, action: Action, record: Record, recipe: Recipe, index: int, start: Origin, member: Member, place: Place,
        key: str | None, text: str | None = None, strength: float | None = None,
    ) -> Ticket:  # fmt: skip
        """A job in the place of its parent's words, or other ones, that begins with pictures."""
        base, said, profile = self._now(rerolled(resting(recipe, index), self._fresh()))
        words = record.prompt
        if text is not None:
            names = [one.warm.name for one in self._models.profiles()]
            request = single(text, {"negative": base.negative}, names, "job")
            base, words = remixed(base, request, profile.warm), " ".join(request.text.split())
            strength = request.strength if strength is None else strength
        made = msgspec.structs.replace(base, start=start.forward(strength), lineage=())
        check_possible(made, profile.warm)
        order = Order(
            action, words, said, made, profile.pool, cost(made, profile.warm), (record.id, index),
            material=start.material,
        )  # fmt: skip
        return (await self._take([order], member, place, key, start))[0]


def _canvas(picture: bytes, mask: bytes) -> Origin:
    """What was made here of a finished picture needs no intake."""
    read, painted = (_read(png) for png in (picture, mask))
    return origin([read], painted, (), ())


def _read(png: bytes) -> Brought:
    width, height = size(png) or (0, 0)  # ours: it has a header
    return Brought(png, width, height, hashlib.sha256(png).hexdigest(), ())
