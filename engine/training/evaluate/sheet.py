"""The contact sheet of the model card: 64 captioned prompts with one seed, not chosen by hand.

The rule: every held-out word once, in the templates' order. Then labels drawn evenly by the seed: half of them with a
background other than white, a quarter with a hue (unless the label names a colour), a quarter with a style.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.training.evaluate.words import ACCEPTED, TEMPLATES
from engine.training.pictures.artwork import SETS
from engine.training.pictures.captions import COLOURS
from engine.training.pictures.variants import BACKGROUNDS, HUES

COLUMNS, CELL, CAPTION, LETTER = 8, 192, 34, 12  # pixels
MOST_BYTES = 1_000_000
QUALITIES = (90, 80, 70, 60, 50)


def prompts(labels: Sequence[str], seed: int, count: int = 64) -> list[str]:
    """Choose the prompts; the same for the same labels and seed."""
    rng = np.random.default_rng([seed, 6])
    said = [TEMPLATES[i % len(TEMPLATES)].format(word=word) for i, word in enumerate(ACCEPTED)]
    chosen = rng.choice(labels, max(0, count - len(said)), replace=count > len(labels))
    return [*said, *(_asked(str(label), rng) for label in chosen)][:count]


def _asked(label: str, rng: np.random.Generator) -> str:
    background = str(rng.choice([name for name in BACKGROUNDS if name != "white"]))
    hue, style = str(rng.choice(list(HUES))), str(rng.choice([one.style for one in SETS]))
    coloured, hued, styled = rng.random() < 0.5, rng.random() < 0.25, rng.random() < 0.25
    name = f"{hue} {label}" if hued and COLOURS.isdisjoint(label.split()) else label
    return ", ".join([name, *([style] if styled else []), f"{background if coloured else 'white'} background"])


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Draw all pictures in reading order, eight a line, each above its caption."""
    lines = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * CELL, lines * (CELL + CAPTION)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = place % COLUMNS * CELL, place // COLUMNS * (CELL + CAPTION)
        shown = picture.convert("RGB").resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS)
        page.paste(shown, (left + 2, top + 2))
        words = "\n".join(textwrap.wrap(caption, CELL // 7, max_lines=2, placeholder=" …"))
        pen.multiline_text((left + CELL / 2, top + CELL), words, fill="black", font=font, anchor="ma", align="center")
    return page


def write(page: Image.Image, path: Path) -> None:
    """Write PNG or WebP by the file's suffix, at most 1 MB.

    Raises ValueError for another suffix or a too large sheet.
    """
    for content in _encoded(page, path.suffix.lower()):
        if len(content) <= MOST_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            return
    raise ValueError(f"The sheet does not fit into {MOST_BYTES / 1e6:g} MB: name a file that ends in .webp.")


def _encoded(page: Image.Image, suffix: str) -> list[bytes]:
    if suffix not in (".png", ".webp"):
        raise ValueError("A sheet is a file that ends in .webp or .png.")
    made: list[bytes] = []
    for quality in QUALITIES if suffix == ".webp" else QUALITIES[:1]:
        file = io.BytesIO()
        page.save(file, "WEBP" if suffix == ".webp" else "PNG", quality=quality, method=4, optimize=True)
        made.append(file.getvalue())
        if len(made[-1]) <= MOST_BYTES:
            break
    return made
