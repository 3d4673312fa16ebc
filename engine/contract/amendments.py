"""Amendments: what members change about a picture while it develops, each from a step on.

`steering` says what they mean.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from engine.contract.fields import MAX_CONCEPTS, MAX_COUNT, MAX_STEPS, Fraction, Index, Seed, Text

AmendmentNumber = Annotated[int, Meta(ge=1, le=1_000_000)]


class Concept(Struct, frozen=True, forbid_unknown_fields=True):
    """One weighted part of a prompt. A negative weight steers away (Liu et al. 2022, composable diffusion)."""

    text: Text
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class SetConcepts(Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """The prompt from now on. Over `fade_steps` steps each weight goes evenly from the old to the new one.

    `mixed`: as in a recipe.
    """

    concepts: Annotated[tuple[Concept, ...], Meta(min_length=1, max_length=MAX_CONCEPTS)]
    mixed: bool = False
    fade_steps: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0


class SetNegative(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The negative prompt from now on."""

    negative: Text


class SetGuidance(Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """The guidance scale from now on, and the fractions of all steps between which guidance holds."""

    guidance: Annotated[float, Meta(ge=1, le=30)]
    start: Fraction = 0.0
    stop: Fraction = 1.0


class DropImages(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """These images develop no further, and no pictures are made of them."""

    images: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=MAX_COUNT - 1)]


class SplitImage(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """One image goes on as several: as itself, and in free places with fresh noise at the same noise level.

    A new image in place i starts with x = alpha·x0 + sigma·noise, x0 by the step of the split (Ho et al. 2020, equation
    4). Its noise is that of `seed` + i.
    """

    image: Index
    places: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=MAX_COUNT - 1)]
    seed: Seed


Change = SetConcepts | SetNegative | SetGuidance | DropImages | SplitImage


class Amendment(Struct, frozen=True, forbid_unknown_fields=True):
    """A change that holds from step `step` on. `number` counts the changes that were asked for of one job."""

    number: AmendmentNumber
    step: Annotated[int, Meta(ge=0, lt=MAX_STEPS)]
    change: Change
