"""A model as the workers of several pools offer it: which can draw a recipe, and which pool is the best. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from engine.contract import ControlModel, ModelPart, ModelProfile, Recipe, find_missing_part

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
