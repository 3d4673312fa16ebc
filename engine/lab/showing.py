"""What an experiment found, on disk and in the terminal: PNG sheets, an animated WebP, a sentence or JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import typer
from PIL import Image

from engine.lab.room import Shown
from engine.unfit import Unfit

FRAME_MS = 120


def keep(shown: Shown, out: Path, *, as_json: bool) -> None:
    """Writes `NAME.png` (and `NAME.webp` where something moves) into `out` and says what is seen on it.

    What is there already stays: then it is `NAME-2.png`, and so on.
    """
    target = _free(folder(out), shown.name)
    files = [target]
    with writing(out):
        shown.sheet.save(target)
        if shown.frames:
            files.append(target.with_suffix(".webp"))
            film(shown.frames, files[-1])
    if as_json:
        found = {"files": [str(file) for file in files], "sentence": shown.sentence, **shown.figures}
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        typer.echo(f"{', '.join(map(str, files))}: {shown.sentence}")


def _free(out: Path, name: str) -> Path:
    places = (out / f"{name}{f'-{number}' if number > 1 else ''}.png" for number in count(1))
    return next(place for place in places if not place.exists())


def film(frames: Sequence[Image.Image], target: Path, quality: int = 80) -> None:
    """The frames as an animation that never ends."""
    first, *rest = frames
    first.save(target, save_all=True, append_images=rest, duration=FRAME_MS, loop=0, quality=quality, method=4)


def folder(out: Path) -> Path:
    """The folder, made where it is missing; asked for before minutes of drawing. Raises `Unfit` if it can't be used."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises `Unfit` for whatever the disk says against it."""
    try:
        yield
    except OSError as error:
        raise Unfit(f"Nothing can be written to {error.filename or out}: {error.strerror}.", "member") from error
