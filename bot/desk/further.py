"""Jobs from finished jobs: variation, reroll, remix, reproduction, upscale, and the interpolation between pictures.

Callers check permissions first (`bot.access`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import msgspec

from bot.desk.admission import Admission
from bot.desk.options import Options
from bot.desk.origin import Origin
from bot.desk.preferences import Strength
from bot.desk.reach import permit_original
from bot.desk.recipes import (
    RESOLVING_MS,
    between,
    beyond_seeds,
    enlarged,
    enlarging_cost,
    enlarging_notes,
    pinned,
    remixed,
    rerolled,
    station,
    varied,
    walkable,
)
from bot.desk.register import Register
from bot.desk.starting import Starting
from bot.images.gallery import Gallery
from bot.models import Models, Profile
from bot.orders import Order, renewed, totalled
from bot.prompt import parse, remarks
from bot.refused import Refused
from bot.store import Record
from bot.views import Action, Member, Place, Ticket
from engine.job import Enlarge, Recipe, cost

# How much of its parent's noise a variation exchanges: at 0 none, at 1 all. The pixels of the embedded model differed
# by 4 to 9 of 255 on average at 0.2, by 10 to 20 at 0.6, by 16 to 34 at 1.
STRENGTHS: Mapping[Strength, float] = MappingProxyType({"subtle": 0.2, "strong": 0.6})
DONE: Mapping[Action, str] = MappingProxyType(
    {
        "vary": "varied", "remix": "remixed", "edit": "edited", "zoom": "zoomed out of", "pan": "continued",
        "branch": "branched from",
    }
)  # fmt: skip
UNWALKABLE = "A walk goes between several finished pictures of one job, none of which is a variation of another one."
NO_SEED = "A walk needs a seed for each picture, and one here would be above 4294967295: reroll, then walk."
OWN_NOISE = "This is no walk: except for the first picture, the noise differs from that of the walk's pictures."
NOT_EXACT = "The original ran beside other jobs, so its last bits may differ. From now on it is the same bytes."


class Further:
    """The use cases. `fresh` draws a seed. Every method raises `Refused`; the same `key` again returns the same job."""

    def __init__(
        self, models: Models, register: Register, gallery: Gallery, admission: Admission, starting: Starting,
        options: Options, fresh: Callable[[], int],
    ) -> None:  # fmt: skip
        self._models, self._register, self._gallery = models, register, gallery
        self._admission, self._starting, self._options, self._fresh = admission, starting, options, fresh

    async def vary(
        self, job: str, index: int, member: Member, place: Place, *,
        key: str | None = None, strength: float = STRENGTHS["subtle"],
    ) -> Ticket:  # fmt: skip
        """Make variations of one finished image; for an upscaled image, of its original."""
        record, recipe, at = await self._original("vary", job, index, member)
        made = varied(recipe, at or 0, _within(strength), self._fresh())
        return await self._again("vary", record, at or 0, made, member, place, key)

    async def reroll(self, job: str, member: Member, place: Place, *, key: str | None = None) -> Ticket:
        """Run the same recipe with another seed."""
        record = await self._register.record(job)
        if not isinstance(record.task, Recipe):
            raise Refused("An enlarged picture cannot be rolled again: roll its original.")
        return await self._again("reroll", record, 0, rerolled(record.task, self._fresh()), member, place, key)

    async def walk_between(
        self, job: str, member: Member, place: Place, *, key: str | None = None
    ) -> list[Ticket]:  # fmt: skip
        """Interpolate from each picture of a finished job to the next, as several jobs. Refused if one is held."""
        record = await self._register.record(job)
        if not isinstance(record.task, Recipe) or not walkable(record.task) or record.state != "finished":
            raise Refused(NO_SEED if isinstance(record.task, Recipe) and beyond_seeds(record.task) else UNWALKABLE)
        for index in range(record.task.count):
            await self._gallery.stored(job, index)
        profile = self._known(record.task.model)
        if profile is None:
            raise Refused(f"No worker has ever offered {record.task.model}.")
        base, said = renewed(record.task, profile)
        material, parent = await self._starting.of(record), (record.id, 0)
        parts = [pinned(part) if base.bucket else part for part in between(base)]
        orders = [
            Order(
                "walk", record.prompt, said, part, profile.pool, cost(part, profile.warm), parent, material=material
            )
            for part in parts
        ]  # fmt: skip
        return await self._take(orders, member, place, key or f"walk:{job}:{self._fresh()}")

    async def reproduce(self, job: str, member: Member, place: Place, *, key: str | None = None) -> Ticket:
        """Run the same recipe and seed with a pinned batch shape: the same pixels as any other exact run."""
        record = await self._register.record(job)
        if not isinstance(record.task, Recipe):
            raise Refused("An enlarged picture cannot be reproduced: reproduce its original.")
        notes = () if record.task.bucket else (NOT_EXACT,)
        return await self._again("reproduce", record, 0, pinned(record.task), member, place, key, notes)

    async def remix(
        self, job: str, index: int | None, text: str, member: Member, place: Place, *,
        key: str | None = None, strength: float | None = None, negative: str | None = None,
    ) -> list[Ticket]:  # fmt: skip
        """Run a finished job with another prompt; `text` may have flags, and braces make several jobs.

        It keeps the noise. With a `strength` it makes variations of image `index`; without an index, a `strength` of 1
        is a reroll. Pictures of an interpolation have their own noise: with an index, only that one is made. `negative`
        is the negative prompt; None keeps the old one, "" removes it.
        """
        record, recipe, index = await self._original("remix", job, index, member)
        if strength is not None:
            seed = self._fresh()
            rolled = rerolled(msgspec.structs.replace(recipe, walk=None), seed)
            recipe = rolled if index is None else varied(recipe, index, _within(strength), seed)
        elif index is not None:
            recipe = station(recipe, index)
        recipe = await self._typed(record, recipe)
        said, own = recipe.negative if negative is None else negative, await self._options.meant(member.id, text)
        orders = await self._reworded(record, recipe, index, text, said, own)
        return await self._take(orders, member, place, key)

    async def upscale(self, job: str, index: int, member: Member, place: Place, *, key: str | None = None) -> Ticket:
        """Upscale one finished image."""
        record = await self._register.record(job)
        source = await self._gallery.stored(job, index)
        pool, size = self._models.any_pool(record.pool), (source.width, source.height)
        pace = self._models.resolving(pool)
        task = enlarged(source.sha256, *size, "lanczos" if pace == 0 else "gan")
        price = enlarging_cost(task, *size, pace or RESOLVING_MS)
        order = Order("upscale", record.prompt, enlarging_notes(task, *size), task, pool, price, (job, index))
        return (await self._admission.take([order], member, place, key))[0]

    async def _early(
        self, action: Action, member: Member, key: str | None, prompt: str, *, count: int = 1, relaxed: bool = False
    ) -> list[Ticket]:
        """Check before anything slow is read; return the jobs that the same `key` made before. Raises `Refused`."""
        return await self._admission.early(action, member, key, prompt, count=count, relaxed=relaxed)

    async def _original(
        self, action: Action, job: str, index: int | None, member: Member
    ) -> tuple[Record, Recipe, int | None]:
        """Return the job and image that were drawn, following an upscale to its original if the member may use that
        too.
        """
        record = await self._register.record(job)
        while isinstance(record.task, Enlarge) and record.parent:
            index, record = record.parent[1], await self._register.record(record.parent[0])
            permit_original(action, member, record)
        if index is not None:
            await self._gallery.stored(record.id, index)
        if not isinstance(record.task, Recipe):
            raise Refused(f"This picture cannot be {DONE[action]}.")
        return record, record.task, index

    async def _again(
        self, action: Action, record: Record, index: int, made: Recipe, member: Member, place: Place, key: str | None,
        notes: tuple[str, ...] = (),
    ) -> Ticket:  # fmt: skip
        """Admit a job from another one's recipe, on the pool that has its model now."""
        pool, price = record.pool, record.cost
        if profile := self._known(made.model):
            made, said = renewed(made, profile)
            pool, price, notes = profile.pool, cost(made, profile.warm), (*notes, *said)
        material = await self._starting.of(record)
        order = Order(action, record.prompt, notes, made, pool, price, (record.id, index), material=material)
        return (await self._take([order], member, place, key))[0]

    async def _take(
        self, orders: Sequence[Order], member: Member, place: Place, key: str | None, new: Origin | None = None
    ) -> list[Ticket]:
        """Admit requests; protect the files that they begin with while the jobs are written."""
        material = [one for order in orders for one in order.material]
        async with self._starting.kept(material, new.contents if new else None):
            return await self._admission.take(totalled(orders), member, place, key)

    async def _reworded(
        self, record: Record, base: Recipe, index: int | None, text: str, negative: str, own: Mapping[str, str]
    ) -> list[Order]:
        """Return a request for each permutation of another prompt for `base`."""
        profile = self._known(base.model)
        if profile is None:
            raise Refused(f"No worker has ever offered {base.model}: it cannot be remixed.")
        base, said = renewed(base, profile)
        parsed = parse(text, None, models=self._models.names(), options={"negative": negative}, own=own)
        warm = msgspec.structs.replace(profile.warm, sampler=base.sampler)
        warned = (note for one in parsed.requests for note in remarks(replace(one, steps=base.steps), warm))
        notes, parent = tuple(dict.fromkeys((*parsed.notes, *warned, *said))), (record.id, index or 0)
        material = await self._starting.of(record)
        orders: list[Order] = []
        for request in parsed.requests:
            made, words = remixed(base, request, profile.warm), " ".join(request.text.split())
            other = base.walk is not None and made.count > 1 and request.seed is None
            price, told = cost(made, profile.warm), (OWN_NOISE,) if other else ()
            orders.append(
                Order(
                    "remix", words, (*notes, *told), made, profile.pool, price, parent,
                    relaxed=request.relaxed, material=material,
                )
            )  # fmt: skip
        return orders

    async def _typed(self, record: Record, base: Recipe) -> Recipe:
        """Return the recipe for another prompt: `mixed` stays, unless only an interpolation had set it."""
        walked = base.mixed and await self._register.of_a_walk(record)
        return msgspec.structs.replace(base, mixed=False) if walked else base

    def _known(self, model: str) -> Profile | None:
        try:
            return self._models.profile(model)
        except KeyError:
            return None


def _within(strength: float) -> float:
    if not 0 < strength <= 1:
        raise Refused("A variation's strength is above 0 and at most 1.")
    return strength
