"""The result of `darkroom imagine`: pictures in memory, then files, then one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.domain.errors import UserError
from bot.pictures.image_codec import png_size


@dataclass(frozen=True)
class ImagineResult:
    """A finished job. `pictures` are PNGs, `film` an animated WebP; `preview_count` counts the live previews.

    `numbers`: of the pictures in their job, where steering left out some; empty: 1, 2, …
    """

    id: str
    seed: int
    steps: int
    evaluations: int
    sampler: str
    pictures: tuple[bytes, ...]
    film: bytes | None
    preview_count: int
    seconds: float
    ms_per_step: float
    numbers: tuple[int, ...] = ()


class GenerationError(Exception):
    """The job ended without pictures, not because of a bad request. The text is the reason, as a sentence."""


def check_output_folder(folder: Path) -> None:
    """Raise `UserError` if `folder` cannot be written. Call it before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".darkroom"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Pictures cannot be written to {folder}: {(error.strerror or str(error)).lower()}.") from error


def save_result(result: ImagineResult, folder: Path) -> tuple[list[Path], Path | None]:
    """Write `ID-1.png` … and `ID-film.webp`; return their paths."""
    numbers = result.numbers or range(1, len(result.pictures) + 1)
    picture_paths = [folder / f"{result.id}-{number}.png" for number in numbers]
    for path, png in zip(picture_paths, result.pictures, strict=True):
        path.write_bytes(png)
    if result.film is None:
        return picture_paths, None
    film_path = folder / f"{result.id}-film.webp"
    film_path.write_bytes(result.film)
    return picture_paths, film_path


def to_dict(result: ImagineResult, picture_paths: Sequence[Path], film_path: Path | None) -> dict[str, Any]:
    """Return the one object that `imagine --json` prints."""
    size = png_size(result.pictures[0]) if result.pictures else None  # all are alike
    return {
        **{name: getattr(result, name) for name in ("id", "seed", "steps", "evaluations", "sampler")},
        "pictures": [str(path) for path in picture_paths],
        **({"width": size[0], "height": size[1]} if size else {}),
        "film": None if film_path is None else str(film_path),
        "previews": result.preview_count,
        "seconds": round(result.seconds, 3),
        "ms_per_step": round(result.ms_per_step, 3),
    }
