"""The model catalogue: which models exist and what each needs, as live workers say, else as last known or as shipped.

A model that is not `loaded` can be requested like any other: a worker then loads it into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from bot.domain.errors import UserError
from bot.store import Store
from bot.store.jobs import queries
from engine.contract import ControlModel, ModelPart, ModelProfile, Presence, Recipe, find_missing_part
from engine.process.model_settings import EMBEDDED_MODEL

DEFAULT_POOL = "default"

# The embedded model until a worker announces it: all its steps, as measured on two slow cores.
SHIPPED_MODEL = ModelProfile(
    name=EMBEDDED_MODEL,
    revision="",
    dtype="float32",
    size=64,
    multiple=16,
    max_pixels=128 * 128,
    tokens=24,
    steps=1000,
    sampler="ddpm",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=4.0,
    row_ms=4.0,
    encode_ms=10.0,
    decode_ms=60.0,
    upscale_factor=4,
    guidance_start=0.3,
    guidance_stop=0.8,
    has_judge=True,
)


@dataclass(frozen=True)
class CatalogEntry:
    """A model, the pool whose workers run it, and whether one of them is live.

    `offers`: the same weights as each live worker offers them; `profile` has the parts of all of them.
    """

    profile: ModelProfile
    pool: str
    is_live: bool
    offers: tuple[PoolOffer, ...] = ()

    def pool_for(self, recipe: Recipe) -> str:
        """Return the pool for a recipe: one with a worker that has the judge and all the parts that it needs.

        Without a live worker, the last known one. Raises `UserError` if live workers have the parts only between them:
        they would hand the job round for ever.
        """
        pool = choose_best_pool(offer for offer in self.offers if offer.can_draw(recipe))
        if pool is None and self.offers:
            raise UserError(
                f"No single worker has everything that this needs of {recipe.model}: leave out a control, a reference, "
                "an embedding or the autoencoder."
            )
        return pool or self.pool


class ModelCatalog:
    """The catalogue. Call `refresh` when workers come or go; it stores new profiles.

    `default`: the model for those who name none; empty: the embedded one.
    """

    def __init__(
        self, store: Store, workers: Callable[[], Mapping[str, Presence]], clock: Callable[[], float], default: str = ""
    ) -> None:
        self._store = store
        self._workers = workers
        self._clock = clock
        self._default = default or SHIPPED_MODEL.name
        self._known: dict[str, tuple[ModelProfile, str]] = {}

    async def load(self) -> None:
        """Read the models of earlier workers from the store."""
        self._known = {profile.name: (profile, pool) for profile, pool in await self._store.query(queries.list_models)}

    @property
    def has_workers(self) -> bool:
        """Whether any worker is online."""
        return bool(self._workers())

    async def refresh(self) -> None:
        """Store every profile that is new or changed, except whether it is in memory, which changes often."""
        live_pools = group_by_pool(self._workers())
        for name, entry in self._live_entries().items():
            profile = msgspec.structs.replace(entry.profile, loaded=True)
            known_profile, pool = self._known.get(name, (None, ""))
            if known_profile != profile or pool not in live_pools:  # the better pool of several changes often too
                self._known[name] = (profile, entry.pool)
                await self._store.save_model(profile, entry.pool, self._clock())

    def entries(self) -> list[CatalogEntry]:
        """Return every model once, live ones first. Never empty: if none is known, the shipped one."""
        live = self._live_entries()
        known = [
            CatalogEntry(profile, pool, False) for name, (profile, pool) in self._known.items() if name not in live
        ]
        return [*live.values(), *known] or [CatalogEntry(SHIPPED_MODEL, DEFAULT_POOL, False)]

    def model_names(self) -> list[str]:
        """Return the names that `--model` accepts."""
        return [entry.profile.name for entry in self.entries()]

    def find_entry(self, name: str | None) -> CatalogEntry:
        """Return this model; for None the default one; if it is not live, one that is. Raises KeyError."""
        entries = self.entries()
        if name is None:
            return min(entries, key=lambda entry: (not entry.is_live, *self._rank(entry.profile.name)))
        return {entry.profile.name: entry for entry in entries}[name]

    def find_entry_for(self, recipe: Recipe) -> CatalogEntry:
        """Return the recipe's model, if a live worker has it so with its weights stored as the recipe says.

        Else as `find_entry` does. Raises KeyError.
        """
        for _, presence in sorted(self._workers().items()):
            for profile in presence.models:
                if (profile.name, profile.quantization) == (recipe.model, recipe.quantization):
                    return _make_live_entry(profile, self._group_offers()[profile.name])
        return self.find_entry(recipe.model)

    def _rank(self, name: str) -> tuple[bool, bool]:
        return name != self._default, name != SHIPPED_MODEL.name

    def find_editor(
        self, is_allowed: Callable[[str], bool] = lambda name: True, pictures: int = 1
    ) -> CatalogEntry | None:
        """Return a model that edits so many pictures at once by words, first one that does nothing else.

        If none takes so many, one that takes fewer; None: none edits. `is_allowed`: whether a member may use the model
        of that name. Such a model goes before all others.
        """
        editors = [entry for entry in self.entries() if entry.profile.edits]
        return min(
            editors,
            key=lambda entry: (
                not is_allowed(entry.profile.name),
                entry.profile.max_edit_pictures < pictures,
                not entry.is_live,
                not entry.profile.required,
            ),
            default=None,
        )

    def list_profiles(self) -> list[ModelProfile]:
        """Return the models that can be requested, those of live workers first."""
        return [entry.profile for entry in self.entries()]

    def find_profile(self, name: str | None) -> ModelProfile | None:
        """Return a model by name, None if there is none; without a name, the default one."""
        try:
            return self.find_entry(name or None).profile
        except KeyError:
            return None

    def find_profile_for(self, recipe: Recipe) -> ModelProfile | None:
        """Return the model of a recipe, as `find_entry_for` does; None if no worker has ever offered it."""
        try:
            return self.find_entry_for(recipe).profile
        except KeyError:
            return None

    def choose_live_pool(self, preferred_pool: str) -> str:
        """Return a pool with live workers: `preferred_pool` if it has some, or if no pool has any."""
        live_pools = group_by_pool(self._workers())
        return preferred_pool if preferred_pool in live_pools or not live_pools else min(live_pools)

    def upscale_ms(self, pool: str) -> float | None:
        """Return the milliseconds per megapixel of the slowest super-resolver among a pool's live workers.

        0 if none of them has one; None while the pool has no worker.
        """
        return max((worker.upscale_ms for worker in self._workers().values() if pool in worker.pools), default=None)

    def _live_entries(self) -> dict[str, CatalogEntry]:
        """Return the models of live workers. The first worker by name defines a model, so that recipes stay stable.

        A model is loaded if any worker has it in memory, and has a judge if any worker has one for the same weights.
        """
        profiles: dict[str, ModelProfile] = {}
        workers = sorted(self._workers().items())
        loaded = {profile.name for _, presence in workers for profile in presence.models if profile.loaded}
        for _, presence in workers:
            for profile in presence.models:
                profiles.setdefault(profile.name, msgspec.structs.replace(profile, loaded=profile.name in loaded))
        offers = self._group_offers()
        return {name: _make_live_entry(profile, offers[name]) for name, profile in profiles.items()}

    def choose_pool(self, model: str, revision: str = "", *, recipe: Recipe | None = None) -> str | None:
        """Return the pool for a job, of those that offer its model with these weights (empty: any) and with what its
        `recipe` needs: the cheapest, and of similar ones the least busy. None: no pool offers it.
        """
        offers = self._list_offers(model, revision)
        return choose_best_pool(offer for offer in offers if recipe is None or offer.can_draw(recipe))

    def _list_offers(self, model: str, revision: str) -> list[PoolOffer]:
        """Return a model with these weights (empty: any), as each live worker offers it."""
        return [offer for offer in self._group_offers().get(model, ()) if revision in ("", offer.profile.revision)]

    def _group_offers(self) -> dict[str, list[PoolOffer]]:
        """Return every model by name, as each live worker offers it."""
        workers = dict(sorted(self._workers().items()))
        offers = dict[str, list[PoolOffer]]()
        pools = group_by_pool(workers)
        for presence in workers.values():
            for profile in presence.models:
                pool = presence.pools[0]
                offer = PoolOffer(pool, profile, pools[pool].used_share)
                offers.setdefault(profile.name, []).append(offer)
        return offers


def _make_live_entry(profile: ModelProfile, offers: Iterable[PoolOffer]) -> CatalogEntry:
    """Return the entry of a model with these weights. `offers`: that name, as each live worker offers it."""
    same_offers = tuple(
        offer
        for offer in offers
        if profile.revision in ("", offer.profile.revision) and offer.profile.quantization == profile.quantization
    )
    merged_profile = merge_parts(profile, (offer.profile for offer in same_offers))
    return CatalogEntry(merged_profile, choose_best_pool(same_offers) or "", True, same_offers)


@dataclass(frozen=True)
class PoolSummary:
    """The live workers of one pool together: the rows that they take at once, and the models that they offer.

    `loaded_models`: the models in memory of workers with free rows, or of all workers if none has any.
    `models_with_room`: the models of workers with free rows.
    """

    pool: str
    worker_count: int
    rows: int
    free_rows: int
    models: frozenset[str]
    loaded_models: frozenset[str] = frozenset()
    models_with_room: frozenset[str] = frozenset()

    @property
    def used_share(self) -> float:
        """The share of rows in use."""
        return 1.0 - self.free_rows / self.rows if self.rows else 1.0

    def is_full(self, model: str) -> bool:
        """Return whether no worker that could run `model` (empty: any) has a free row; False if none could."""
        return self.free_rows <= 0 or (model in self.models and model not in self.models_with_room)


def group_by_pool(workers: Mapping[str, Presence]) -> dict[str, PoolSummary]:
    """Group the live workers by pool. A worker of two pools counts fully in each."""
    by_pool: dict[str, list[Presence]] = {}
    for presence in workers.values():
        for pool in presence.pools:
            by_pool.setdefault(pool, []).append(presence)
    return {pool: _summarise_pool(pool, members) for pool, members in by_pool.items()}


def _summarise_pool(pool: str, presences: Sequence[Presence]) -> PoolSummary:
    presences_with_room = [presence for presence in presences if presence.free > 0] or presences
    return PoolSummary(
        pool,
        len(presences),
        sum(presence.rows for presence in presences),
        sum(presence.free for presence in presences),
        frozenset(profile.name for presence in presences for profile in presence.models),
        frozenset(profile.name for presence in presences_with_room for profile in presence.models if profile.loaded),
        frozenset(profile.name for presence in presences for profile in presence.models if presence.free > 0),
    )


SIMILAR_COST = 1.25  # pools whose costs differ by less count as equal
Part = TypeVar("Part", ControlModel, ModelPart)


@dataclass(frozen=True)
class PoolOffer:
    """A model as one worker offers it. `used_share`: the share of its pool's rows in use."""

    pool: str
    profile: ModelProfile
    used_share: float

    def can_draw(self, recipe: Recipe) -> bool:
        """Return whether the worker has the judge, stored weights and parts that it needs."""
        return (
            (self.profile.has_judge or not recipe.candidate_count)
            and self.profile.quantization == recipe.quantization
            and find_missing_part(recipe, self.profile) is None
        )


def choose_best_pool(offers: Iterable[PoolOffer]) -> str | None:
    """Return the cheapest pool, and among pools of similar cost the least busy; None without offers."""
    costs = dict[str, float]()
    used_shares = dict[str, float]()
    for offer in offers:
        costs[offer.pool] = min(offer.profile.row_ms, costs.get(offer.pool, math.inf))
        used_shares[offer.pool] = offer.used_share
    similar_pools = [pool for pool, cost in costs.items() if cost <= SIMILAR_COST * min(costs.values())]
    return min(similar_pools, key=lambda pool: (used_shares[pool], pool), default=None)


def merge_parts(profile: ModelProfile, others: Iterable[ModelProfile]) -> ModelProfile:
    """Return the profile with the judge and the parts that any worker has for the same weights."""
    profiles = (profile, *others)
    return msgspec.structs.replace(
        profile,
        has_judge=any(each.has_judge for each in profiles),
        controls=_join(*(each.controls for each in profiles))[:64],
        references=_join(*(each.references for each in profiles))[:16],
        embeddings=_join(*(each.embeddings for each in profiles))[:256],
        autoencoders=_join(*(each.autoencoders for each in profiles))[:32],
        preprocessors=tuple(dict.fromkeys(name for each in profiles for name in each.preprocessors)),
        max_clip_skip=max(each.max_clip_skip for each in profiles),
    )


def _join(*lists: Sequence[Part]) -> tuple[Part, ...]:
    """Return all parts, of several with one name the first."""
    parts: dict[str, Part] = {}
    for part in (part for parts_of_one in lists for part in parts_of_one):
        parts.setdefault(part.name, part)
    return tuple(parts.values())
