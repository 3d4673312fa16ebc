"""Picture files as members upload them."""

from __future__ import annotations

import io

from PIL import Image


def png(width: int, height: int, shade: int = 128) -> bytes:
    """A grey PNG."""
    out = io.BytesIO()
    Image.new("L", (width, height), shade).convert("RGB").save(out, "PNG")
    return out.getvalue()
