"""Contact sheets: pictures in rows, a caption under each, a title above. Uses Pillow only."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE_SIDE = 192
GAP = 12
TEXT_SIZE = 13
TITLE_SIZE = 17
MAX_LINES = 2
TEXT_COLOUR = (34, 34, 38)
PAGE_COLOUR = (255, 255, 255)
FRAME_COLOUR = (226, 226, 230)
# Replacements for characters that Pillow's built-in font lacks. That font makes sheets equal on every machine.
_REPLACEMENTS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": "x", "“": '"', "”": '"', "’": "'", "…": "...", "→": "to"}
)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One picture and its caption. `is_pixelated`: enlarge it without smoothing, to show its pixels."""

    picture: Image.Image
    caption: str = ""
    is_pixelated: bool = False


def draw_sheet(title: str, rows: Sequence[Sequence[Tile | None]], tile_side: int = TILE_SIDE) -> Image.Image:
    """Draw the rows under a title; None leaves a cell empty."""
    font = ImageFont.load_default(TEXT_SIZE)
    large = ImageFont.load_default(TITLE_SIZE)
    columns = max(len(row) for row in rows)
    line_counts = [max(len(_wrap(cell.caption, tile_side, font)) for cell in row if cell) for row in rows]
    heights = [tile_side + 6 + count * (TEXT_SIZE + 4) + GAP for count in line_counts]
    width = GAP + columns * (tile_side + GAP)
    title_lines = _wrap(title, width - 2 * GAP, large)
    top = GAP + len(title_lines) * (TITLE_SIZE + 5) + 4
    page = Image.new("RGB", (width, top + sum(heights)), PAGE_COLOUR)
    draw = ImageDraw.Draw(page)
    _draw_text(draw, (GAP, GAP), title_lines, large, TITLE_SIZE + 5)
    for number, row in enumerate(rows):
        y = top + sum(heights[:number])
        for column, cell in enumerate(row):
            if cell:
                _draw_tile(page, draw, (GAP + column * (tile_side + GAP), y), cell, tile_side, font)
    return page


def to_ascii(text: str) -> str:
    """Rewrite the text with characters that the font has."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_REPLACEMENTS))
    letters = (letter for letter in decomposed if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in letters)


def _draw_tile(
    page: Image.Image, draw: ImageDraw.ImageDraw, position: tuple[int, int], cell: Tile, tile_side: int, font: Font
) -> None:
    scale = tile_side / max(cell.picture.size)
    size = (max(1, round(cell.picture.width * scale)), max(1, round(cell.picture.height * scale)))
    resampling = Image.Resampling.NEAREST if cell.is_pixelated else Image.Resampling.LANCZOS
    thumbnail = cell.picture.convert("RGB").resize(size, resampling)
    left = position[0] + (tile_side - size[0]) // 2
    top = position[1] + (tile_side - size[1]) // 2
    page.paste(thumbnail, (left, top))
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=FRAME_COLOUR)
    _draw_text(
        draw, (position[0], position[1] + tile_side + 5), _wrap(cell.caption, tile_side, font), font, TEXT_SIZE + 4
    )


def _draw_text(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], lines: Sequence[str], font: Font, height: int
) -> None:
    for number, line in enumerate(lines):
        draw.text((position[0], position[1] + number * height), line, fill=TEXT_COLOUR, font=font)


def _wrap(text: str, width: int, font: Font) -> list[str]:
    """Wrap to at most `MAX_LINES` lines of `width` pixels; a longer text ends in dots."""
    words = to_ascii(text).split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    is_cut = len(lines) > MAX_LINES
    visible_lines = lines[:MAX_LINES]
    return [
        _truncate(line, width, font, add_dots=is_cut and number == MAX_LINES - 1)
        for number, line in enumerate(visible_lines)
    ]


def _truncate(line: str, width: int, font: Font, *, add_dots: bool) -> str:
    ending = "..." if add_dots or font.getlength(line) > width else ""
    while line and font.getlength(line + ending) > width:
        line = line[:-1]
    return line + ending
