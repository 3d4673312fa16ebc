"""Jobs from a finished picture: edit a part of it, zoom and pan beyond its edges, branch at a keyframe.

Callers check permissions first. Every method raises `Refused`; the same `key` again returns the same job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial

import msgspec

from bot.desk.begun import Otherwise, branched, nearest_said, one_of, single, worded
from bot.desk.bringing import Bring, Finished, Remote
from bot.desk.further import Further
from bot.desk.origin import Origin, origin
from bot.desk.recipes import pinned, remixed, rerolled, resting
from bot.images import canvas, rungs
from bot.images.intake import Brought
from bot.images.pixels import size
from bot.models import Profile
from bot.orders import Order, renewed
from bot.prompt import Request
from bot.prompt.possible import check_possible
from bot.prompt.request import fit
from bot.refused import Refused
from bot.store import Record
from bot.views import Action, Member, Place, Ticket
from engine.job import Recipe, cost

ZOOMS = (1.5, 2.0)


class Onward(Further):
    """The use cases that begin with a finished picture or one of its keyframes."""

    async def edit(
        self, job: str, index: int, mask: bytes | Remote, member: Member, place: Place, *,
        text: str | None = None, strength: float | None = None, key: str | None = None,
    ) -> Ticket:  # fmt: skip
        """Inpaint what is white in `mask` (an image file), with another prompt if `text` is given."""
        record, recipe, index = await self._picture("edit", job, index, member)
        text, notes = (None, ()) if text is None else await self._worded(text, member)
        other = None if text is None else single(text, {"negative": recipe.negative}, self._models.names(), "job")
        if known := await self._early("edit", member, key, record.prompt if text is None else text):
            return known[0]
        bring = Bring((Finished(record.id, index),), mask)
        async with self._starting.opened(member, bring) as start:
            return await self._begun("edit", record, recipe, index, start, member, place, key, other, strength, notes)

    async def zoom(
        self, job: str, index: int, factor: float, member: Member, place: Place, *, key: str | None = None
    ) -> Ticket:  # fmt: skip
        """Shrink the picture and outpaint around it."""
        if factor not in ZOOMS:
            raise Refused(f"Zoom out by {ZOOMS[0]:g} or {ZOOMS[1]:g}.")
        return await self._beyond("zoom", job, index, partial(canvas.zoomed_out, factor=factor), member, place, key)

    async def square(self, job: str, index: int, member: Member, place: Place, *, key: str | None = None) -> Ticket:
        """Put the picture into the middle of a square and outpaint around it."""
        _, recipe, _ = await self._picture("zoom", job, index, member)
        if recipe.width == recipe.height:
            raise Refused("This picture is a square already.")
        return await self._beyond("zoom", job, index, canvas.squared, member, place, key, shape=(1, 1))

    async def pan(
        self, job: str, index: int, direction: canvas.Direction, member: Member, place: Place, *,
        key: str | None = None,
    ) -> Ticket:  # fmt: skip
        """Keep half of the picture and outpaint beyond its edge in one direction."""
        return await self._beyond("pan", job, index, partial(canvas.panned, direction=direction), member, place, key)

    async def _beyond(
        self, action: Action, job: str, index: int, make: Callable[[bytes], tuple[bytes, bytes]], member: Member,
        place: Place, key: str | None, shape: tuple[int, int] | None = None,
    ) -> Ticket:  # fmt: skip
        """Outpaint a larger canvas around the picture; one at a time for each member."""
        record, recipe, index = await self._picture(action, job, index, member)
        if known := await self._early(action, member, key, record.prompt):
            return known[0]
        async with self._starting.turn(member):
            made = await asyncio.to_thread(make, await self._gallery.picture(record.id, index))
            return await self._begun(action, record, recipe, index, _canvas(*made), member, place, key, shape=shape)

    async def steps(self, job: str, index: int, member: Member) -> tuple[int, ...]:
        """Return the steps at which a branch may begin. Raises `Refused` (404)."""
        record, _, index = await self._picture("branch", job, index, member)
        return await self._gallery.branchable(record.id, index)

    async def branch(
        self, job: str, index: int, step: int, member: Member, place: Place, *,
        text: str | None = None, exact: bool = False, key: str | None = None, **options: object,
    ) -> Ticket:  # fmt: skip
        """Branch at a keyframe: the nearest that keeps its latents, at or before `step` if there is one.

        `text`: another prompt, with flags; `options` as in `Studio.imagine`. Without either it gives the same picture,
        run to its last step if it was stopped. A seed, or several pictures, also draw the noise at that keyframe anew;
        `steps` counts the whole schedule. `exact` pins the batch shape.
        """
        record, recipe, index = await self._picture("branch", job, index, member)
        if known := await self._early("branch", member, key, record.prompt if text is None else text):
            return known[0]
        material = await self._starting.ladder(record.id, index)
        at = rungs.closest(await self._gallery.branchable(record.id, index), step)
        base, said, profile = self._now(one_of(recipe, index))
        text, stands = (None, ()) if text is None else await self._worded(text, member)
        base = base if text is None else await self._typed(record, base)
        other = Otherwise(record.prompt, text, options)
        made = branched(base, material.sha256, at, other, profile.warm, self._models.names())
        made = pinned(made) if exact and not made.bucket else made
        notes, price = (*stands, *nearest_said(at, step), *said), cost(made, profile.warm)
        order = Order(
            "branch", other.words, notes, made, profile.pool, price, (record.id, index), material=(material,),
        )  # fmt: skip
        return (await self._take([order], member, place, key))[0]

    async def _worded(self, text: str, member: Member) -> tuple[str, tuple[str, ...]]:
        return worded(text, await self._options.meant(member.id, text))

    def _now(self, base: Recipe) -> tuple[Recipe, tuple[str, ...], Profile]:
        profile = self._known(base.model)
        if profile is None:
            raise Refused(f"No worker has ever offered {base.model}.")
        return *renewed(base, profile), profile

    async def _picture(self, action: Action, job: str, index: int, member: Member) -> tuple[Record, Recipe, int]:
        record, recipe, at = await self._original(action, job, index, member)
        return record, recipe, at or 0

    async def _begun(
        self, action: Action, record: Record, recipe: Recipe, index: int, start: Origin, member: Member, place: Place,
        key: str | None, other: Request | None = None, strength: float | None = None, notes: tuple[str, ...] = (),
        shape: tuple[int, int] | None = None,
    ) -> Ticket:  # fmt: skip
        """Admit a job with init images in its parent's place, with its parent's prompt or `other`.

        It has its parent's size, or that of `shape` (width to height).
        """
        base, said, profile = self._now(rerolled(resting(recipe, index), self._fresh()))
        if shape is not None:
            width, height = fit(shape, profile.warm)
            base = msgspec.structs.replace(base, width=width, height=height)
        words = record.prompt
        if other is not None:
            base, words = remixed(await self._typed(record, base), other, profile.warm), " ".join(other.text.split())
            strength = other.strength if strength is None else strength
        made = msgspec.structs.replace(base, start=start.forward(strength), lineage=())
        check_possible(made, profile.warm)
        order = Order(
            action, words, (*notes, *said), made, profile.pool, cost(made, profile.warm), (record.id, index),
            material=start.material,
        )  # fmt: skip
        return (await self._take([order], member, place, key, start))[0]


def _canvas(picture: bytes, mask: bytes) -> Origin:
    """Return a canvas as init image. It was made here from a finished picture, so it needs no upload decoder."""
    read, painted = (_read(png) for png in (picture, mask))
    return origin([read], painted)


def _read(png: bytes) -> Brought:
    width, height = size(png) or (0, 0)  # ours: it has a header
    return Brought(png, width, height, hashlib.sha256(png).hexdigest(), ())
