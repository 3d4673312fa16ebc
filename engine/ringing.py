"""What an enlarged picture may not show: colours beyond those around a place in the small one, as ringing does.

Knows pixels alone. Meant for flat artwork; a photo has glints and hairs that its small copy lacks.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

SLACK = 2  # of 255: so much further it may go


def bounded(large: Image.Image, source: Image.Image) -> Image.Image:
    """`large` within the range that each colour has in the nine pixels of `source` around a place. Both RGB."""
    least, most = (
        np.asarray(source.filter(rank(3)).resize(large.size, Image.Resampling.NEAREST), dtype=np.int16)
        for rank in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    kept = np.asarray(large, dtype=np.int16).clip(least - SLACK, most + SLACK)
    return Image.fromarray(kept.clip(0, 255).astype(np.uint8))
