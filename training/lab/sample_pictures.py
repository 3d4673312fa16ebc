"""Two sample pictures drawn from shapes; no model was trained on them. Uses Pillow only."""

from __future__ import annotations

from PIL import Image, ImageDraw

SIDE = 256
_OVERSAMPLING = 4  # drawn larger and scaled down, for smooth edges
_DARK_BROWN = (70, 44, 30)

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def draw_apple() -> Image.Image:
    """Draw a red apple with a leaf, on white."""
    canvas = _Canvas((255, 255, 255))
    canvas.ellipse((52, 82, 150, 220), (214, 40, 48))
    canvas.ellipse((106, 82, 204, 220), (214, 40, 48))
    canvas.ellipse((92, 110, 164, 216), (214, 40, 48))
    canvas.ellipse((72, 104, 100, 144), (246, 132, 128))
    canvas.line([(128, 96), (134, 50)], _DARK_BROWN, 9)
    canvas.polygon([(134, 70), (158, 42), (198, 46), (170, 74)], (70, 160, 62))
    return canvas.to_image()


def draw_cat() -> Image.Image:
    """Draw an orange cat's face, on pale blue."""
    canvas = _Canvas((190, 222, 246))
    for ear, inner_ear in (
        ([(54, 130), (60, 40), (122, 84)], [(68, 110), (70, 64), (104, 86)]),
        ([(202, 130), (196, 40), (134, 84)], [(188, 110), (186, 64), (152, 86)]),
    ):
        canvas.polygon(ear, (240, 160, 60))
        canvas.polygon(inner_ear, (250, 196, 170))
    canvas.ellipse((44, 72, 212, 222), (240, 160, 60))
    canvas.ellipse((92, 150, 164, 208), (255, 236, 206))
    for eye_x in (82, 146):
        canvas.ellipse((eye_x, 114, eye_x + 28, 148), (46, 42, 40))
        canvas.ellipse((eye_x + 6, 118, eye_x + 15, 128), (255, 255, 255))
    canvas.polygon([(118, 162), (138, 162), (128, 174)], (226, 110, 110))
    for mouth_x in (108, 148):
        canvas.line([(128, 174), (mouth_x, 188)], _DARK_BROWN, 4)
    return canvas.to_image()


class _Canvas:
    def __init__(self, paper: Colour) -> None:
        self._page = Image.new("RGB", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING), paper)
        self._draw = ImageDraw.Draw(self._page)

    def ellipse(self, box: Box, colour: Colour) -> None:
        self._draw.ellipse([value * _OVERSAMPLING for value in box], fill=colour)

    def polygon(self, corners: list[tuple[int, int]], colour: Colour) -> None:
        self._draw.polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in corners], fill=colour)

    def line(self, points: list[tuple[int, int]], colour: Colour, width: int) -> None:
        self._draw.line(
            [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points], fill=colour, width=width * _OVERSAMPLING
        )

    def to_image(self) -> Image.Image:
        return self._page.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
