"""Writes an experiment's result: PNG sheets, an animated WebP, and a sentence or JSON on the terminal."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import typer
from PIL import Image

from engine.contract.rejection import JobRejected
from training.lab.context import ExperimentResult

FRAME_MS = 120


def write_result(result: ExperimentResult, out: Path, *, as_json: bool) -> None:
    """Write `NAME.png`, and `NAME.webp` for a film, into `out`, and print the sentence.

    Existing files stay: the new one becomes `NAME-2.png`, and so on.
    """
    target = _find_free_path(ensure_folder(out), result.name)
    files = [target]
    with translate_write_errors(out):
        result.sheet.save(target)
        if result.frames:
            files.append(target.with_suffix(".webp"))
            write_film(result.frames, files[-1])
    if as_json:
        record = {"files": [str(file) for file in files], "sentence": result.summary, **result.figures}
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        typer.echo(f"{', '.join(map(str, files))}: {result.summary}")


def _find_free_path(out: Path, name: str) -> Path:
    paths = (out / f"{name}{f'-{number}' if number > 1 else ''}.png" for number in count(1))
    return next(path for path in paths if not path.exists())


def write_film(frames: Sequence[Image.Image], target: Path, quality: int = 80) -> None:
    """Write the frames as an endless animation."""
    first, *other_frames = frames
    first.save(target, save_all=True, append_images=other_frames, duration=FRAME_MS, loop=0, quality=quality, method=4)


def ensure_folder(out: Path) -> Path:
    """Make the folder if it is missing, and check that it is writable. Raises `JobRejected`."""
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out


@contextmanager
def translate_write_errors(out: Path) -> Generator[None]:
    """Turn an OSError into `JobRejected`."""
    try:
        yield
    except OSError as error:
        raise JobRejected(f"Nothing can be written to {error.filename or out}: {error.strerror}.", "member") from error
