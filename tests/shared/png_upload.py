"""Picture files as members upload them."""

from __future__ import annotations

import io

from PIL import Image


def make_png(width: int, height: int, shade: int = 128) -> bytes:
    """A grey PNG."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), shade).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
