"""Writes an experiment's result: PNG sheets, an animated WebP, and a sentence or JSON on the terminal."""

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
    """Write `NAME.png`, and `NAME.webp` for a film, into `out`, and print the sentence.

    Existing files stay: the new one becomes `NAME-2.png`, and so on.
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
    """Write the frames as an endless animation."""
    first, *rest = frames
    first.save(target, save_all=True, append_images=rest, duration=FRAME_MS, loop=0, quality=quality, method=4)


def folder(out: Path) -> Path:
    """Make the folder if it is missing and check that it can be written, before minutes of drawing. Raises `Unfit`."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an OSError into `Unfit`."""
    try:
        yield
    except OSError as error:
        raise Unfit(f"Nothing can be written to {error.filename or out}: {error.strerror}.", "member") from error
