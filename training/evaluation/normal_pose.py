"""Renders real drawings in the pose that prompts ask for: on white, centred, complete."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.pictures.artwork import Artwork
from training.pictures.variants import BACKGROUND_COLOURS, USUAL_SCALE, compose

OTHER_SCALES = (0.88, 0.96)  # two scales for a second rendering of a drawing; shifts would change it far more


def render_posed(art: Artwork, scale: float = USUAL_SCALE) -> np.ndarray:
    """Render the drawing on white, centred: uint8 [64, 64, 3]."""
    unused_rng = np.random.default_rng(0)  # unused: white has one shade, and the position is fixed
    return compose(art.pixels, scale, 0.0, BACKGROUND_COLOURS["white"], unused_rng)


def render_posed_rescaled(drawings: Sequence[Artwork]) -> np.ndarray:
    """Render each drawing a little smaller and a little larger than in training: the judge has seen neither exactly.

    Returns uint8 [2 · n, 64, 64, 3]: all drawings at the one scale, then all at the other.
    """
    return np.stack([render_posed(drawing, scale) for scale in OTHER_SCALES for drawing in drawings])
