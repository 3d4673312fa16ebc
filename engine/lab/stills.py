"""Two sample pictures drawn from shapes; no model was trained on them. Uses Pillow only."""

from __future__ import annotations

from PIL import Image, ImageDraw

SIDE = 256
_FINER = 4  # drawn larger and scaled down, for smooth edges
_DARK = (70, 44, 30)

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def apple() -> Image.Image:
    """Draw a red apple with a leaf, on white."""
    page = _Page((255, 255, 255))
    page.ellipse((52, 82, 150, 220), (214, 40, 48))
    page.ellipse((106, 82, 204, 220), (214, 40, 48))
    page.ellipse((92, 110, 164, 216), (214, 40, 48))
    page.ellipse((72, 104, 100, 144), (246, 132, 128))
    page.line([(128, 96), (134, 50)], _DARK, 9)
    page.polygon([(134, 70), (158, 42), (198, 46), (170, 74)], (70, 160, 62))
    return page.finished()


def cat() -> Image.Image:
    """Draw an orange cat's face, on pale blue."""
    page = _Page((190, 222, 246))
    for ear, inner in (
        ([(54, 130), (60, 40), (122, 84)], [(68, 110), (70, 64), (104, 86)]),
        ([(202, 130), (196, 40), (134, 84)], [(188, 110), (186, 64), (152, 86)]),
    ):
        page.polygon(ear, (240, 160, 60))
        page.polygon(inner, (250, 196, 170))
    page.ellipse((44, 72, 212, 222), (240, 160, 60))
    page.ellipse((92, 150, 164, 208), (255, 236, 206))
    for left in (82, 146):
        page.ellipse((left, 114, left + 28, 148), (46, 42, 40))
        page.ellipse((left + 6, 118, left + 15, 128), (255, 255, 255))
    page.polygon([(118, 162), (138, 162), (128, 174)], (226, 110, 110))
    for end in (108, 148):
        page.line([(128, 174), (end, 188)], _DARK, 4)
    return page.finished()


class _Page:
    def __init__(self, paper: Colour) -> None:
        self._page = Image.new("RGB", (SIDE * _FINER, SIDE * _FINER), paper)
        self._draw = ImageDraw.Draw(self._page)

    def ellipse(self, box: Box, colour: Colour) -> None:
        self._draw.ellipse([value * _FINER for value in box], fill=colour)

    def polygon(self, corners: list[tuple[int, int]], colour: Colour) -> None:
        self._draw.polygon([(x * _FINER, y * _FINER) for x, y in corners], fill=colour)

    def line(self, points: list[tuple[int, int]], colour: Colour, width: int) -> None:
        self._draw.line([(x * _FINER, y * _FINER) for x, y in points], fill=colour, width=width * _FINER)

    def finished(self) -> Image.Image:
        return self._page.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
