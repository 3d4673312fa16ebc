"""Which models there are and what each needs: from live workers, else as last seen, else as shipped.

One that is not `loaded` can be asked for like any other: a worker fetches it into memory then.

Knows presences and the store; knows nothing of prompts or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from bot.store import Store, reads
from engine.job import RESOLVING, Presence, Warm

DEFAULT_POOL = "default"
ALIKE = 1.25  # costs that differ by less are the same to whoever waits

# What the embedded model is taken for until a worker has said better: its full course, as measured on two slow cores.
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
    """A model, the pool whose workers run it, and whether one of them is alive."""

    warm: Warm
    pool: str
    live: bool


class Models:
    """Call `refresh` when workers come or go; it keeps new profiles in the store."""

    def __init__(self, store: Store, workers: Callable[[], Mapping[str, Presence]], clock: Callable[[], float]) -> None:
        self._store, self._workers, self._clock = store, workers, clock
        self._known: dict[str, tuple[Warm, str]] = {}

    async def load(self) -> None:
        """Read what earlier workers had."""
        self._known = {warm.name: (warm, pool) for warm, pool in await self._store.ask(reads.known_models)}

    async def refresh(self) -> None:
        """Remember every profile that is new or has changed; not whether it is in memory, which comes and goes."""
        there = crews(self._workers())
        for name, profile in self._live().items():
            warm = msgspec.structs.replace(profile.warm, loaded=True)
            known, pool = self._known.get(name, (None, ""))
            if known != warm or pool not in there:  # which of several pools is better now comes and goes too
                self._known[name] = (warm, profile.pool)
                await self._store.remember(warm, profile.pool, self._clock())

    def profiles(self) -> list[Profile]:
        """Every model once, live ones first; never empty: where none was ever seen, the shipped one."""
        live = self._live()
        known = [Profile(warm, pool, False) for name, (warm, pool) in self._known.items() if name not in live]
        return [*live.values(), *known] or [Profile(SHIPPED, DEFAULT_POOL, False)]

    def names(self) -> list[str]:
        """What `--model` may be."""
        return [profile.warm.name for profile in self.profiles()]

    def profile(self, name: str | None) -> Profile:
        """This model; for None the embedded one, or another if only that is live. Raises KeyError."""
        profiles = self.profiles()
        if name is None:
            return min(profiles, key=lambda one: (not one.live, one.warm.name != SHIPPED.name))
        return {one.warm.name: one for one in profiles}[name]

    def any_pool(self, liked: str) -> str:
        """A pool that somebody serves now, `liked` if it is one; else `liked`, to wait in."""
        live = crews(self._workers())
        return liked if liked in live or not live else min(live)

    def resolving(self, pool: str) -> float | None:
        """Milliseconds a megapixel that the slowest super-resolver of a pool's live workers takes.

        0 where none of them has one, or one is too old to be asked for it; None while nobody serves the pool.
        """
        there = [one for one in self._workers().values() if pool in one.pools]
        if any(one.v < RESOLVING for one in there):
            return 0.0
        return max((one.enlarge_ms for one in there), default=None)

    def _live(self) -> dict[str, Profile]:
        """Of two workers with the same model, the one whose name is first speaks for it: recipes shall not flutter.

        It is loaded where any of them has it in memory; its pool is the best of those that have the same weights.
        """
        spoken: dict[str, Warm] = {}
        workers = sorted(self._workers().items())
        loaded = {warm.name for _, presence in workers for warm in presence.models if warm.loaded}
        for _, presence in workers:
            for warm in presence.models:
                spoken.setdefault(warm.name, msgspec.structs.replace(warm, loaded=warm.name in loaded))
        return {name: Profile(warm, self.pool_of(name, warm.revision) or "", True) for name, warm in spoken.items()}

    def pool_of(self, model: str, revision: str = "") -> str | None:
        """The pool that a job for a model goes to, of the pools whose live workers offer it with these weights (empty:
        any): the one where it costs least, or the least busy of those where it costs about the same. None: nobody does.
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
    """The live workers of one pool together: the rows that they take at once, and the models that they have ready.

    `loaded`: the models that are in memory, as far as that matters: where rows are free, or anywhere if none are.
    `roomy`: the models of those who have free rows.
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
        """The share of its rows that are taken."""
        return 1.0 - self.free / self.rows if self.rows else 1.0

    def full(self, model: str) -> bool:
        """Whether all who could run a job for `model` (empty: any) have their rows taken; not where nobody could."""
        return self.free <= 0 or (model in self.models and model not in self.roomy)


def crews(workers: Mapping[str, Presence]) -> dict[str, Crew]:
    """The pools that live workers serve. A worker of two pools counts fully in each."""
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
