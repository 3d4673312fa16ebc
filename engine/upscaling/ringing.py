"""Clamps ringing in an upscaled picture: colours outside the range around the same place in the source.

It suits flat artwork; a photo has glints and hairs that its small copy lacks.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

MAX_EXCESS = 2  # of 255: allowed excess


def clamp_ringing(large: Image.Image, source: Image.Image) -> Image.Image:
    """Clamp each colour of `large` to its range in the nearest nine pixels of `source`. Both are RGB."""
    minimum, maximum = (
        np.asarray(source.filter(rank_filter(3)).resize(large.size, Image.Resampling.NEAREST), dtype=np.int16)
        for rank_filter in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    clamped = np.asarray(large, dtype=np.int16).clip(minimum - MAX_EXCESS, maximum + MAX_EXCESS)
    return Image.fromarray(clamped.clip(0, 255).astype(np.uint8))
