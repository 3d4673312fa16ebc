"""Opens pictures from outside: bytes of a bounded size become RGB pixels, or are refused with a sentence."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

from PIL import Image

from engine.contract import Blame
from engine.contract.rejection import JobRejected

MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP")


def open_image(content: bytes, subject: str = "init image", blame: Blame = "us") -> Image.Image:
    """Return an RGB picture of at most `MAX_PIXELS`. Raises `JobRejected`."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise JobRejected(f"The {subject} is too large.", blame)
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise JobRejected(f"The {subject} cannot be read.", blame) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise JobRejected(f"The {subject} is too large.", blame) from error
