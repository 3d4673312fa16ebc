"""`--control canny:sketch.png` and `--reference face.png:0.5`: each argument split into its flag's value and its file.

The order behind the name is free, and a file's own colons stay. Reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bot.domain.errors import UserError
from bot.prompt.picture_flags import DEFAULT_REFERENCE_SCALE, is_control_part, is_scale

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".heic", ".tif", ".tiff")
DEFAULT_VALUE = f"{DEFAULT_REFERENCE_SCALE:g}"


def split_controls(arguments: Sequence[str], images: Sequence[Path] = ()) -> tuple[list[str], list[Path]]:
    """Return the values of the flag `--control`, and the files. Raise `UserError` for a file without a control.

    Where only some have a file, the others follow the first of `images`, if there is one.
    """
    values = list[str]()
    files = list[Path | None]()
    for argument in arguments:
        name, *parts = argument.split(":")
        if not parts and _is_file(name):
            raise UserError(f"Say what of {name} is followed, as in --control canny:{name}.")
        file = ":".join(part for part in parts if not is_control_part(part))
        values.append(":".join([name, *(part for part in parts if is_control_part(part))]))
        files.append(Path(file) if file else None)
    followed_image = images[0] if images and any(files) else None
    return values, [path for path in (file or followed_image for file in files) if path is not None]


def split_references(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the values of the flag `--reference`, and the files. A file alone takes the model's first adapter.

    Arguments without name and scale have no value.
    """
    values = list[str]()
    files = list[Path]()
    for argument in arguments:
        scales = [part for part in argument.split(":") if is_scale(part)]
        name, *parts = [part for part in argument.split(":") if not is_scale(part)] or [""]
        if _is_file(name) or Path(":".join((name, *parts))).is_file():
            name, parts = "", [name, *parts]
        files += [Path(":".join(parts))] if parts else []
        values.append(":".join(part for part in (name, *scales) if part))
    return _fill_values(values), files


def _fill_values(values: list[str]) -> list[str]:
    """Return the values, where one is missing with the usual scale; nothing if all are missing."""
    return [value or DEFAULT_VALUE for value in values] if any(values) else []


def _is_file(text: str) -> bool:
    return Path(text).suffix.lower() in PICTURE_SUFFIXES or Path(text).is_file()
