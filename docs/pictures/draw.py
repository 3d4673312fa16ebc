"""Makes the pictures of `docs/pictures.md` anew: `python docs/pictures/draw.py`, sooner beside a `darkroom up`.

Everything is drawn by `darkroom imagine` as anybody can type it, with the embedded model; here it is only put side by
side. Knows the command line and labels; knows nothing of models.
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

from bot.images.contact_sheet import compose_side_by_side

HERE = Path(__file__).parent
STEPS = ["--steps", "60", "--sampler", "dpmpp_2m", "--count", "1"]
QUALITY = 82

Strip = list[tuple[str, Path | Image.Image]]  # label and picture, from left to right


class Easel:
    """Draws into a folder. Each picture is drawn once, whoever asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn: dict[tuple[str, ...], Path] = {}

    def draw(self, *typed: str | Path) -> Path:
        """`darkroom imagine` with these words and options; the file of its picture."""
        words = tuple(map(str, typed))
        if words not in self._drawn:
            command = [sys.executable, "-m", "bot", "imagine", *words, *STEPS, "--json", "--out", str(self._folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            self._drawn[words] = Path(json.loads(done.stdout)["pictures"][0])
        return self._drawn[words]

    def keep(self, name: str, picture: Image.Image) -> Path:
        """A picture of ours as a file."""
        path = self._folder / name
        picture.save(path)
        return path


def strength(easel: Easel) -> Strip:
    """The same picture, words and seed: only how much is drawn anew differs."""
    cat, dog = easel.draw("cat face, white background", "--seed", "3"), "dog face, white background"
    shares = ("0.3", "0.6", "0.9")
    new = [easel.draw(dog, "--image", cat, "--strength", share, "--seed", "5") for share in shares]
    return [("begins with", cat), *((f"--strength {share}", one) for share, one in zip(shares, new, strict=True))]


def blend(easel: Easel) -> Strip:
    """Two pictures, and what lies between them: without words, and with."""
    one, two = (
        easel.draw("red apple, white background", "--seed", "7"),
        easel.draw("lemon, white background", "--seed", "7"),
    )
    between = easel.draw("--blend", one, two, "--seed", "7")
    named = easel.draw("--blend", one, two, "pear, white background", "--seed", "7")
    return [("one", one), ("the other", two), ("blended", between), ("with words", named)]


def mixed(easel: Easel) -> Strip:
    """One text between two, against two texts whose predictions are added."""
    one, two = "cat face, white background", "owl, white background"
    parts = f"{one}::2 {two}::1"
    return [
        ("cat face", easel.draw(one, "--seed", "11")), ("owl", easel.draw(two, "--seed", "11")),
        ("::2 ::1 --mix", easel.draw(parts, "--mix", "--seed", "11")), ("::2 ::1", easel.draw(parts, "--seed", "11")),
    ]  # fmt: skip


def part(easel: Easel) -> Strip:
    """The middle of a picture drawn anew."""
    whole = easel.draw("sunflower, blue background", "--seed", "2")
    mask = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(mask).ellipse((64, 64, 192, 192), fill=255)
    path = easel.keep("mask.png", mask)
    anew = easel.draw("red apple, blue background", "--image", whole, "--mask", path, "--seed", "4")
    return [("a picture", whole), ("its mask", mask.convert("RGB")), ("the rest is kept", anew)]


def tiles(easel: Easel) -> Strip:
    """A tile, and four of it; beside them four of the same without `--tile`."""
    words = ["green leaves, pattern", "--seed", "6"]
    return [
        ("--tile", easel.draw(*words, "--tile")), ("four of it", _four(easel.draw(*words, "--tile"))),
        ("without: four", _four(easel.draw(*words))),
    ]  # fmt: skip


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


STRIPS: dict[str, Callable[[Easel], Strip]] = {
    "strength": strength, "blend": blend, "mix": mixed, "part": part, "tile": tiles,
}  # fmt: skip


def main(names: list[str]) -> None:
    """All strips, or those that are named."""
    with TemporaryDirectory() as folder:
        easel = Easel(Path(folder))
        for name in names or STRIPS:
            labels, pictures = zip(*STRIPS[name](easel), strict=True)
            with Image.open(io.BytesIO(compose_side_by_side([_png(one) for one in pictures], list(labels)))) as made:
                made.save(HERE / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main(sys.argv[1:])
