"""The result of `darkroom imagine`: pictures in memory, then files, then one JSON object."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.refused import Refused


@dataclass(frozen=True)
class Developed:
    """A finished job. `pictures` are PNGs, `film` an animated WebP; `frames` counts the live previews."""

    id: str
    seed: int
    steps: int
    sampler: str
    pictures: tuple[bytes, ...]
    film: bytes | None
    frames: int
    seconds: float
    ms_per_step: float


class Undeveloped(Exception):
    """The job ended without pictures, not because of a bad request. The text is the reason, as a sentence."""


def check_folder(out: Path) -> None:
    """Raise `Refused` if `out` cannot be written. Call it before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".darkroom"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refused(f"Pictures cannot be written to {out}: {(error.strerror or str(error)).lower()}.") from error


def save(developed: Developed, out: Path) -> tuple[list[Path], Path | None]:
    """Write `ID-1.png` … and `ID-film.webp`; return their paths."""
    pictures = [out / f"{developed.id}-{index + 1}.png" for index in range(len(developed.pictures))]
    for path, png in zip(pictures, developed.pictures, strict=True):
        path.write_bytes(png)
    if developed.film is None:
        return pictures, None
    film = out / f"{developed.id}-film.webp"
    film.write_bytes(developed.film)
    return pictures, film


def as_json(developed: Developed, pictures: Sequence[Path], film: Path | None) -> dict[str, Any]:
    """Return the one object that `imagine --json` prints."""
    return {
        "id": developed.id,
        "seed": developed.seed,
        "steps": developed.steps,
        "sampler": developed.sampler,
        "pictures": [str(path) for path in pictures],
        **_size(developed.pictures),
        "film": None if film is None else str(film),
        "frames": developed.frames,
        "seconds": round(developed.seconds, 3),
        "ms_per_step": round(developed.ms_per_step, 3),
    }


def _size(pictures: Sequence[bytes]) -> dict[str, int]:
    """Return width and height from the first picture's header (PNG specification, 11.2.2 IHDR): all are alike."""
    if not pictures:
        return {}
    width, height = struct.unpack(">II", pictures[0][16:24])
    return {"width": int(width), "height": int(height)}
