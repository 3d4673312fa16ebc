"""The contact sheets of the model card: 64 captioned prompts with one seed, not chosen by hand.

The rule of the mixed sheet: every held-out word once, in the templates' order. Then labels drawn evenly by the seed:
half of them with a background other than white, a quarter with a hue (unless the label names a colour), a quarter with
a style. The other sheets show labels alone, held-out lemmas of WordNet, and sentences as people write them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.evaluation.accepted_labels import ACCEPTED_LABELS, PROMPT_TEMPLATES
from training.pictures.artwork import ARTWORK_PACKAGES
from training.pictures.captions import COLOURS
from training.pictures.variants import BACKGROUND_COLOURS, HUE_DEGREES

PROMPT_COUNT = 64
# pixels
COLUMNS = 8
CELL_SIDE = 192
CAPTION_HEIGHT = 34
FONT_SIZE = 12
MAX_BYTES = 1_000_000
QUALITIES = (90, 80, 70, 60, 50)


def choose_words(words: Collection[str], seed: int, count: int = PROMPT_COUNT) -> list[str]:
    """Choose labels or lemmas evenly, each on white; the same for the same words and seed."""
    chosen = np.random.default_rng([seed, 8]).choice(sorted(words), min(count, len(words)), replace=False)
    return [f"{word}, white background" for word in chosen]


def choose_mixed_prompts(labels: Sequence[str], seed: int, count: int = PROMPT_COUNT) -> list[str]:
    """Choose the prompts of the mixed sheet; the same for the same labels and seed."""
    rng = np.random.default_rng([seed, 6])
    word_prompts = [
        PROMPT_TEMPLATES[i % len(PROMPT_TEMPLATES)].format(word=word) for i, word in enumerate(ACCEPTED_LABELS)
    ]
    sheet_labels = rng.choice(labels, max(0, count - len(word_prompts)), replace=count > len(labels))
    return [*word_prompts, *(_random_prompt(str(label), rng) for label in sheet_labels)][:count]


def _random_prompt(label: str, rng: np.random.Generator) -> str:
    background = str(rng.choice([subject for subject in BACKGROUND_COLOURS if subject != "white"]))
    hue = str(rng.choice(list(HUE_DEGREES)))
    style = str(rng.choice([package.style for package in ARTWORK_PACKAGES]))
    has_background = rng.random() < 0.5
    has_hue = rng.random() < 0.25
    has_style = rng.random() < 0.25
    subject = f"{hue} {label}" if has_hue and COLOURS.isdisjoint(label.split()) else label
    return ", ".join(
        [subject, *([style] if has_style else []), f"{background if has_background else 'white'} background"]
    )


def draw_sheet(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Draw all pictures in reading order, eight a line, each above its caption."""
    row_count = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * CELL_SIDE, row_count * (CELL_SIDE + CAPTION_HEIGHT)), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(FONT_SIZE)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = index % COLUMNS * CELL_SIDE
        top = index // COLUMNS * (CELL_SIDE + CAPTION_HEIGHT)
        thumbnail = picture.convert("RGB").resize((CELL_SIDE - 4, CELL_SIDE - 4), Image.Resampling.LANCZOS)
        page.paste(thumbnail, (left + 2, top + 2))
        wrapped_caption = "\n".join(textwrap.wrap(caption, CELL_SIDE // 7, max_lines=2, placeholder=" …"))
        pen.multiline_text(
            (left + CELL_SIDE / 2, top + CELL_SIDE),
            wrapped_caption,
            fill="black",
            font=font,
            anchor="ma",
            align="center",
        )
    return page


def check_file_name(path: Path) -> None:
    """Raise ValueError for a file that is no WebP."""
    if path.suffix.lower() != ".webp":
        raise ValueError("A sheet is a file that ends in .webp.")


def write_sheet(page: Image.Image, path: Path) -> None:
    """Write WebP of at most 1 MB. Raises ValueError for another suffix or a too large sheet."""
    check_file_name(path)
    for quality in QUALITIES:
        file = io.BytesIO()
        page.save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= MAX_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
            return
    raise ValueError(f"The sheet does not fit into {MAX_BYTES / 1e6:g} MB.")
