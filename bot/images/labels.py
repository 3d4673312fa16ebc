"""Lines of text in pictures, in the letters that the built-in font has."""

from __future__ import annotations

import unicodedata

from PIL import ImageFont

MAX_LABEL_LENGTH = 200  # characters of a label that are used

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def fit_label(label: str, font: Font, width: int) -> str:
    """Return the label in at most `width` pixels. Characters outside ASCII are dropped, accents and all."""
    return _shorten_text(_to_ascii(label), font, width)


def _to_ascii(label: str) -> str:
    letters = unicodedata.normalize("NFKD", label[:MAX_LABEL_LENGTH]).encode("ascii", "ignore").decode()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in letters).split())


def _shorten_text(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
