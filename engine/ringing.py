"""Clamps ringing in an upscaled picture: colours outside the range around the same place in the source.

It suits flat artwork; a photo has glints and hairs that its small copy lacks.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

SLACK = 2  # of 255: allowed excess


def bounded(large: Image.Image, source: Image.Image) -> Image.Image:
    """Clamp each colour of `large` to its range in the nearest nine pixels of `source`. Both are RGB."""
    least, most = (
        np.asarray(source.filter(rank(3)).resize(large.size, Image.Resampling.NEAREST), dtype=np.int16)
        for rank in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    kept = np.asarray(large, dtype=np.int16).clip(least - SLACK, most + SLACK)
    return Image.fromarray(kept.clip(0, 255).astype(np.uint8))
