"""Renders the pictures of `docs/pictures.md`: `python docs/pictures/draw.py`; faster beside a running `darkroom up`.

Every picture comes from `darkroom imagine` with the embedded model. This file only calls the command line and puts the
results side by side.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw

from bot.pictures.ladder_film import compose_side_by_side

HERE = Path(__file__).parent
STEPS = ["--steps", "60", "--sampler", "dpmpp_2m", "--count", "1"]
QUALITY = 82

LabelledPictures = list[tuple[str, Path | Image.Image]]  # label and picture, from left to right


class ExampleRenderer:
    """Renders example pictures into a folder, each only once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn: dict[tuple[str, ...], Path] = {}

    def draw(self, *typed: str | Path) -> Path:
        """Run `darkroom imagine` with this prompt and these options; return the file of its picture."""
        words = tuple(map(str, typed))
        if words not in self._drawn:
            command = [sys.executable, "-m", "bot", "imagine", *words, *STEPS, "--json", "--out", str(self._folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            self._drawn[words] = Path(json.loads(done.stdout)["pictures"][0])
        return self._drawn[words]

    def save(self, name: str, picture: Image.Image) -> Path:
        """Save a picture as a file, and return its path."""
        path = self._folder / name
        picture.save(path)
        return path


def render_strengths(renderer: ExampleRenderer) -> LabelledPictures:
    """The same picture, words and seed: only how much is drawn anew differs."""
    cat = renderer.draw("cat face, white background", "--seed", "3")
    dog = "dog face, white background"
    shares = ("0.3", "0.6", "0.9")
    new = [renderer.draw(dog, "--image", cat, "--strength", share, "--seed", "5") for share in shares]
    return [("begins with", cat), *((f"--strength {share}", one) for share, one in zip(shares, new, strict=True))]


def render_blends(renderer: ExampleRenderer) -> LabelledPictures:
    """Two pictures, and what lies between them: without words, and with."""
    one = renderer.draw("red apple, white background", "--seed", "7")
    two = renderer.draw("lemon, white background", "--seed", "7")
    between = renderer.draw("--blend", one, two, "--seed", "7")
    named = renderer.draw("--blend", one, two, "pear, white background", "--seed", "7")
    return [("one", one), ("the other", two), ("blended", between), ("with words", named)]


def render_mixed_prompts(renderer: ExampleRenderer) -> LabelledPictures:
    """One text between two, against two texts whose predictions are added."""
    one = "cat face, white background"
    two = "owl, white background"
    parts = f"{one}::2 {two}::1"
    return [
        ("cat face", renderer.draw(one, "--seed", "11")),
        ("owl", renderer.draw(two, "--seed", "11")),
        ("::2 ::1 --mix", renderer.draw(parts, "--mix", "--seed", "11")),
        ("::2 ::1", renderer.draw(parts, "--seed", "11")),
    ]


def render_inpainting(renderer: ExampleRenderer) -> LabelledPictures:
    """The middle of a picture drawn anew."""
    whole = renderer.draw("sunflower, blue background", "--seed", "2")
    mask = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(mask).ellipse((64, 64, 192, 192), fill=255)
    path = renderer.save("mask.png", mask)
    anew = renderer.draw("red apple, blue background", "--image", whole, "--mask", path, "--seed", "4")
    return [("a picture", whole), ("its mask", mask.convert("RGB")), ("the rest is kept", anew)]


def render_tiles(renderer: ExampleRenderer) -> LabelledPictures:
    """A tile, and four of it; beside them four of the same without `--tile`."""
    words = ["green leaves, pattern", "--seed", "6"]
    return [
        ("--tile", renderer.draw(*words, "--tile")),
        ("four of it", _four(renderer.draw(*words, "--tile"))),
        ("without: four", _four(renderer.draw(*words))),
    ]


def _four(path: Path) -> Image.Image:
    with Image.open(path) as one:
        small = one.convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)
    made = Image.new("RGB", (256, 256))
    for x in (0, 128):
        for y in (0, 128):
            made.paste(small, (x, y))
    return made


def _png(picture: Path | Image.Image) -> bytes:
    if isinstance(picture, Path):
        return picture.read_bytes()
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


EXAMPLES: dict[str, Callable[[ExampleRenderer], LabelledPictures]] = {
    "strength": render_strengths,
    "blend": render_blends,
    "mix": render_mixed_prompts,
    "part": render_inpainting,
    "tile": render_tiles,
}


def main(names: list[str]) -> None:
    """All strips, or those that are named."""
    with TemporaryDirectory() as folder:
        renderer = ExampleRenderer(Path(folder))
        for name in names or EXAMPLES:
            labels, pictures = zip(*EXAMPLES[name](renderer), strict=True)
            with Image.open(io.BytesIO(compose_side_by_side([_png(one) for one in pictures], list(labels)))) as made:
                made.save(HERE / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main(sys.argv[1:])
