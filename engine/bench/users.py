"""Plots first preview and throughput against the number of users, for both systems: the README's figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from engine.bench import crowd, previews
from engine.bench.crowd import Load
from engine.families.family import Family

CROWDS = (1, 2, 4, 8, 16)
STEPS, ROUNDS = 30, 3
OURS, THEIRS, INK, PALE, PAPER = "#c2410c", "#475569", "#1e293b", "#cbd5e1", "#ffffff"
PANEL, MARGIN = (560, 380), (86, 64)
GAP = 40


@dataclass(frozen=True)
class Measured:
    """One number of users: pictures a second, and seconds until the last of them sees the preview at a tenth."""

    users: int
    ours: tuple[float, float]
    theirs: tuple[float, float]


def measure(family: Family, pipeline: Any, load: Load, say: Callable[[str], None]) -> list[Measured]:
    """Measure both systems; `pipeline` is in the number format to compare."""
    found = []
    for users in CROWDS:
        say(f"{users} at once")
        some = replace(load, users=users)
        crowd.serve_together(family, replace(some, steps=4))  # builds kernels and packs weights
        ours = _median(lambda some=some: (crowd.serve_together(family, some), previews.together(family, some)[-1]))
        theirs = _median(lambda some=some: _in_turn(family, pipeline, some))
        found.append(Measured(users, (users / ours[0], ours[1]), (users / theirs[0], theirs[1])))
    return found


def _in_turn(family: Family, pipeline: Any, load: Load) -> tuple[float, float]:
    return crowd.serve_in_turn(pipeline, family, load), previews.in_turn(pipeline, family, load)[-1]


def _median(run: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return the median of each figure over three rounds."""
    first, second = zip(*(run() for _ in range(ROUNDS)), strict=True)
    return median(first), median(second)


def plot(found: list[Measured], path: Path, told: str) -> None:
    """Draw two panels as a PNG with `told` as the caption. Raises OSError if it cannot be written."""
    width, height = 2 * PANEL[0] + GAP, PANEL[1] + 44
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    for number, title in enumerate(("pictures a second", "seconds to the last one's preview at a tenth")):
        both = [[each.ours[number] for each in found], [each.theirs[number] for each in found]]
        _panel(draw, number * (PANEL[0] + GAP), title, [each.users for each in found], both)
    draw.text((width // 2, height - 22), told, fill=INK, font=_font(15), anchor="mm")
    image.quantize(64).save(path, optimize=True)


def _panel(draw: ImageDraw.ImageDraw, left: int, title: str, users: list[int], both: list[list[float]]) -> None:
    """Draw axes from zero and a line for each system; users are evenly spaced, since they double."""
    (wide, high), (aside, below) = PANEL, MARGIN
    top = max(max(each) for each in both) * 1.12
    across = [left + aside + (wide - aside - 20) * number / max(1, len(users) - 1) for number in range(len(users))]
    draw.text((left + aside, 8), title, fill=INK, font=_font(18))

    def up(value: float) -> float:
        return high - below - (high - below - 44) * value / top

    for mark in _marks(top):
        draw.line([(left + aside, up(mark)), (left + wide - 20, up(mark))], fill=PALE)
        draw.text((left + aside - 10, up(mark)), f"{mark:g}", fill=INK, font=_font(15), anchor="rm")
    for place, number in zip(across, users, strict=True):
        draw.text((place, high - below + 16), str(number), fill=INK, font=_font(15), anchor="mm")
    draw.text((left + (wide + aside) // 2, high - 20), "users at once", fill=INK, font=_font(15), anchor="mm")
    for values, colour, name in zip(both, (OURS, THEIRS), ("Darkroom", "diffusers, in turn"), strict=True):
        points = [(place, up(value)) for place, value in zip(across, values, strict=True)]
        draw.line(points, fill=colour, width=3)
        for x, y in points:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        x, y = points[-1]
        beside = 18 if points[-2][1] < y else -18  # on the side where the line does not cross its name
        draw.text((x - 10, y + beside), name, fill=colour, font=_font(16), anchor="rm")


def _marks(top: float) -> list[float]:
    """Return about five round numbers from zero."""
    step = next(size * 10**power for power in range(-3, 6) for size in (1, 2, 5) if top / (size * 10.0**power) <= 6)
    return [number * step for number in range(int(top / step) + 1)]


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
