"""Words on pictures: labels of cells, and captions below the frames of a film.

A caption says who changed the picture while it developed, and at which step. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from bot.pictures.animation import Animation, Size, bound_size
from bot.pictures.image_codec import BACKGROUND, resize_image
from bot.prompt.change_texts import describe_change
from engine.contract import Recipe

# height of the bar: as a share of the frame's width, and its least pixels
BAR_SHARE = 0.075
MIN_BAR = 26
READ_MS = 1100  # how much longer a frame is shown that brings a caption
_TEXT_COLOUR = (232, 232, 236)
_LINE_COLOUR = (62, 62, 70)
_MARK_COLOUR = (255, 176, 64)
_DONE_COLOUR = (150, 150, 160)


@dataclass(frozen=True)
class FilmCaption:
    """What was changed before step `step`, on one line, and the name of who said so; empty if nobody is known."""

    step: int
    text: str
    speaker: str = ""

    @property
    def line(self) -> str:
        """The caption as one line."""
        return f"{self.speaker}: {self.text}" if self.speaker else self.text


def list_recipe_captions(recipe: Recipe) -> tuple[FilmCaption, ...]:
    """Return the captions of a recipe's amendments. It does not know who asked for them."""
    return tuple(FilmCaption(each.step, describe_change(each.change)) for each in recipe.amendments)


def list_caption_lines(captions: Sequence[FilmCaption], steps: Sequence[int]) -> list[str]:
    """Return the line under each frame, of rising steps: what was said since the frame before, else what was before."""
    lines = list[str]()
    previous_step = -1
    for step in steps:
        new_lines = [caption.line for caption in captions if previous_step < caption.step <= step]
        lines.append(" | ".join(new_lines) or (lines[-1] if lines else ""))
        previous_step = step
    return lines


def find_pauses(captions: Sequence[FilmCaption], steps: Sequence[int]) -> dict[int, int]:
    """Return the frames that bring a caption, and how many milliseconds longer each is shown."""
    first_frames = (next((index for index, step in enumerate(steps) if step >= each.step), None) for each in captions)
    return {index: READ_MS for index in first_frames if index is not None}


def add_bar_height(size: Size) -> Size:
    """Return the size of a frame with its bar."""
    width, height = size
    return width, height + max(MIN_BAR, round(BAR_SHARE * width))


def add_captions(
    animation: Animation, captions: Sequence[FilmCaption], steps: Sequence[int], total_steps: int
) -> Animation:
    """Return the animation with a bar below each frame. `steps`: of each frame, rising."""
    lines = list_caption_lines(captions, steps)
    marks = [caption.step / total_steps for caption in captions]
    size = bound_size(add_bar_height(animation.size))

    def draw(index: int, frame_size: Size) -> Image.Image:
        frame = animation.draw(index, animation.size)
        return draw_bar(frame, frame_size, lines[index], steps[index] / total_steps, marks)

    return Animation(animation.count, size, draw, {**animation.pauses, **find_pauses(captions, steps)})


def draw_bar(frame: Image.Image, size: Size, line: str, position: float, marks: Sequence[float]) -> Image.Image:
    """Return the frame at `size`, which includes the bar: the line of text over a scale of all steps with its marks.

    `position`, `marks`: fractions of the steps.
    """
    _, whole_height = add_bar_height(frame.size)
    bar = max(1, round(size[1] * (whole_height - frame.height) / whole_height))
    canvas = Image.new("RGB", size, BACKGROUND)
    canvas.paste(resize_image(frame, (size[0], max(1, size[1] - bar))))
    draw = ImageDraw.Draw(canvas)
    top = size[1] - bar
    font = ImageFont.load_default(max(6, round(bar * 0.5)))
    draw.text((6, top + bar * 0.42), fit_label(line, font, size[0] - 12), fill=_TEXT_COLOUR, font=font, anchor="lm")
    _draw_scale(draw, (size[0], size[1] - max(2, bar // 8)), position, marks)
    return canvas


def _draw_scale(draw: ImageDraw.ImageDraw, corner: Size, position: float, marks: Sequence[float]) -> None:
    width, y = corner
    thickness = max(1, width // 200)
    draw.line((0, y, width, y), fill=_LINE_COLOUR, width=thickness)
    draw.line((0, y, round(position * width), y), fill=_DONE_COLOUR, width=thickness)
    for mark in marks:
        x = min(width - 2 * thickness, round(mark * width))
        draw.rectangle((x, y - 2 * thickness, x + thickness, y + thickness), fill=_MARK_COLOUR)


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
