"""Real drawings as the prompts ask for them: on white, in the middle, whole. Knows pixels only; it judges nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.training.pictures.artwork import Artwork
from engine.training.pictures.variants import BACKGROUNDS, USUAL_SCALE, compose

OTHERWISE = (0.88, 0.96)  # the scales of "the same drawing, rendered once more"; a shift would allow for far more


def posed(art: Artwork, scale: float = USUAL_SCALE) -> np.ndarray:
    """The drawing on white, in the middle: uint8 [64, 64, 3]."""
    nothing = np.random.default_rng(0)  # is left to chance: white has one shade, and the middle is the middle
    return compose(art.pixels, scale, 0.0, BACKGROUNDS["white"], nothing)


def posed_again(drawings: Sequence[Artwork]) -> np.ndarray:
    """Each drawing a little smaller and a little larger than training poses it, so that neither was learnt to the bit.

    uint8 [2 · n, 64, 64, 3]: all of them at the one scale, then all at the other.
    """
    return np.stack([posed(one, scale) for scale in OTHERWISE for one in drawings])
