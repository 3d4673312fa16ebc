"""Contact sheets: pictures in rows, a caption under each, a title above. Uses Pillow only; knows no model."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE = 192
GAP, TEXT, TITLE, LINES = 12, 13, 17, 2
INK, PAPER, FAINT = (34, 34, 38), (255, 255, 255), (226, 226, 230)
# Replacements for characters that Pillow's built-in font lacks. That font makes sheets equal on every machine.
_SPELLED = str.maketrans({"−": "-", "–": "-", "—": "-", "×": "x", "“": '"', "”": '"', "’": "'", "…": "...", "→": "to"})
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One picture and its caption. `hard` enlarges it without smoothing, to show its pixels."""

    picture: Image.Image
    caption: str = ""
    hard: bool = False


def sheet(title: str, rows: Sequence[Sequence[Tile | None]], tile: int = TILE) -> Image.Image:
    """Draw the rows under a title; None leaves a cell empty."""
    font, large = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    across = max(len(row) for row in rows)
    lines = [max(len(_wrapped(each.caption, tile, font)) for each in row if each) for row in rows]
    heights = [tile + 6 + count * (TEXT + 4) + GAP for count in lines]
    width = GAP + across * (tile + GAP)
    heading = _wrapped(title, width - 2 * GAP, large)
    top = GAP + len(heading) * (TITLE + 5) + 4
    page = Image.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    _text(draw, (GAP, GAP), heading, large, TITLE + 5)
    for number, row in enumerate(rows):
        y = top + sum(heights[:number])
        for column, each in enumerate(row):
            if each:
                _place(page, draw, (GAP + column * (tile + GAP), y), each, tile, font)
    return page


def plain(text: str) -> str:
    """Rewrite the text with characters that the font has."""
    apart = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    kept = (mark for mark in apart if not unicodedata.combining(mark))
    return "".join(mark if " " <= mark <= "~" else "?" for mark in kept)


def _place(
    page: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], each: Tile, tile: int, font: Font
) -> None:
    scale = tile / max(each.picture.size)
    size = (max(1, round(each.picture.width * scale)), max(1, round(each.picture.height * scale)))
    how = Image.Resampling.NEAREST if each.hard else Image.Resampling.LANCZOS
    shown = each.picture.convert("RGB").resize(size, how)
    left, top = at[0] + (tile - size[0]) // 2, at[1] + (tile - size[1]) // 2
    page.paste(shown, (left, top))
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=FAINT)
    _text(draw, (at[0], at[1] + tile + 5), _wrapped(each.caption, tile, font), font, TEXT + 4)


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], font: Font, height: int) -> None:
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * height), line, fill=INK, font=font)


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """Wrap to at most `LINES` lines of `width` pixels; a longer text ends in dots."""
    words, lines = plain(text).split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > LINES
    shown = lines[:LINES]
    return [_cut(line, width, font, dots=cut and number == LINES - 1) for number, line in enumerate(shown)]


def _cut(line: str, width: int, font: Font, *, dots: bool) -> str:
    end = "..." if dots or font.getlength(line) > width else ""
    while line and font.getlength(line + end) > width:
        line = line[:-1]
    return line + end
