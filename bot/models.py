"""The model catalogue: which models exist and what each needs, from live workers, else the last known, else as shipped.

A model that is not `loaded` can be requested like any other: a worker then loads it into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from bot.store import Store, reads
from engine.job import RESOLVING, Presence, Warm

DEFAULT_POOL = "default"
ALIKE = 1.25  # pools whose costs differ by less count as equal

# The embedded model until a worker announces it: all its steps, as measured on two slow cores.
SHIPPED = Warm(
    name="embedded",
    revision="",
    dtype="float32",
    size=64,
    multiple=16,
    max_pixels=128 * 128,
    tokens=24,
    steps=1000,
    sampler="ddpm",
    guidance=4.0,
    row_ms=4.0,
    encode_ms=10.0,
    decode_ms=60.0,
    enlargement=4,
    guidance_start=0.3,
    guidance_stop=0.8,
)


@dataclass(frozen=True)
class Profile:
    """A model, the pool whose workers run it, and whether one of them is live."""

    warm: Warm
    pool: str
    live: bool


class Models:
    """The catalogue. Call `refresh` when workers come or go; it stores new profiles."""

    def __init__(self, store: Store, workers: Callable[[], Mapping[str, Presence]], clock: Callable[[], float]) -> None:
        self._store, self._workers, self._clock = store, workers, clock
        self._known: dict[str, tuple[Warm, str]] = {}

    async def load(self) -> None:
        """Read the models of earlier workers from the store."""
        self._known = {warm.name: (warm, pool) for warm, pool in await self._store.ask(reads.known_models)}

    async def refresh(self) -> None:
        """Store every profile that is new or changed, except whether it is in memory, which changes often."""
        there = crews(self._workers())
        for name, profile in self._live().items():
            warm = msgspec.structs.replace(profile.warm, loaded=True)
            known, pool = self._known.get(name, (None, ""))
            if known != warm or pool not in there:  # the better pool of several changes often too
                self._known[name] = (warm, profile.pool)
                await self._store.remember(warm, profile.pool, self._clock())

    def profiles(self) -> list[Profile]:
        """Return every model once, live ones first. Never empty: with none known, the shipped one."""
        live = self._live()
        known = [Profile(warm, pool, False) for name, (warm, pool) in self._known.items() if name not in live]
        return [*live.values(), *known] or [Profile(SHIPPED, DEFAULT_POOL, False)]

    def names(self) -> list[str]:
        """Return the names that `--model` accepts."""
        return [profile.warm.name for profile in self.profiles()]

    def profile(self, name: str | None) -> Profile:
        """Return this model; for None the embedded one, or another if only that is live. Raises KeyError."""
        profiles = self.profiles()
        if name is None:
            return min(profiles, key=lambda one: (not one.live, one.warm.name != SHIPPED.name))
        return {one.warm.name: one for one in profiles}[name]

    def any_pool(self, liked: str) -> str:
        """Return a pool with live workers, `liked` if it has some; without any, `liked`."""
        live = crews(self._workers())
        return liked if liked in live or not live else min(live)

    def resolving(self, pool: str) -> float | None:
        """Return the milliseconds a megapixel of the slowest super-resolver among a pool's live workers.

        0 if none of them has one, or one is too old to run it; None while the pool has no worker.
        """
        there = [one for one in self._workers().values() if pool in one.pools]
        if any(one.v < RESOLVING for one in there):
            return 0.0
        return max((one.enlarge_ms for one in there), default=None)

    def _live(self) -> dict[str, Profile]:
        """Return the models of live workers. Of several workers with one model, the first by name defines it: recipes
        stay stable.

        A model is loaded if any worker has it in memory; its pool is the best one with the same weights.
        """
        spoken: dict[str, Warm] = {}
        workers = sorted(self._workers().items())
        loaded = {warm.name for _, presence in workers for warm in presence.models if warm.loaded}
        for _, presence in workers:
            for warm in presence.models:
                spoken.setdefault(warm.name, msgspec.structs.replace(warm, loaded=warm.name in loaded))
        return {name: Profile(warm, self.pool_of(name, warm.revision) or "", True) for name, warm in spoken.items()}

    def pool_of(self, model: str, revision: str = "") -> str | None:
        """Return the pool for a job of a model, among the pools whose live workers offer it with these weights (empty:
        any).

        The cheapest pool wins; among pools of similar cost, the least busy. None: no pool offers it.
        """
        there, offers = crews(self._workers()), dict[str, float]()
        for presence in self._workers().values():
            for warm in presence.models:
                if warm.name == model and revision in ("", warm.revision):
                    pool = presence.pools[0]
                    offers[pool] = min(warm.row_ms, offers.get(pool, math.inf))
        alike = [pool for pool, cost in offers.items() if cost <= ALIKE * min(offers.values())]
        return min(alike, key=lambda pool: (there[pool].busy, pool), default=None)


@dataclass(frozen=True)
class Crew:
    """The live workers of one pool together: the rows that they take at once, and the models that they offer.

    `loaded`: the models in memory of workers with free rows, or of all workers if none has any. `roomy`: the models of
    workers with free rows.
    """

    pool: str
    workers: int
    rows: int
    free: int
    models: frozenset[str]
    loaded: frozenset[str] = frozenset()
    roomy: frozenset[str] = frozenset()

    @property
    def busy(self) -> float:
        """The share of rows in use."""
        return 1.0 - self.free / self.rows if self.rows else 1.0

    def full(self, model: str) -> bool:
        """Return whether no worker that could run `model` (empty: any) has a free row; False if none could."""
        return self.free <= 0 or (model in self.models and model not in self.roomy)


def crews(workers: Mapping[str, Presence]) -> dict[str, Crew]:
    """Group the live workers by pool. A worker of two pools counts fully in each."""
    teams: dict[str, list[Presence]] = {}
    for presence in workers.values():
        for pool in presence.pools:
            teams.setdefault(pool, []).append(presence)
    return {pool: _crew(pool, team) for pool, team in teams.items()}


def _crew(pool: str, team: Sequence[Presence]) -> Crew:
    idle = [presence for presence in team if presence.free > 0] or team
    return Crew(
        pool,
        len(team),
        sum(presence.rows for presence in team),
        sum(presence.free for presence in team),
        frozenset(warm.name for presence in team for warm in presence.models),
        frozenset(warm.name for presence in idle for warm in presence.models if warm.loaded),
        frozenset(warm.name for presence in team for warm in presence.models if presence.free > 0),
    )
