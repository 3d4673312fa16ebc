"""Reads a folder of captioned pictures, and makes views of them: slightly zoomed, shifted, brighter or darker.

A caption is `NAME.txt` beside `NAME.png`, or a line of `metadata.jsonl` (`file_name`, `text`). It follows the
imagefolder convention of the datasets library, subfolders included. An unusable file never ends a run: it is left out
and listed with the reason. It is independent of networks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageEnhance

from training.pictures.picture_file import (
    SUPPORTED_ENDINGS,
    DecodedPicture,
    UnusablePicture,
    decode_picture,
    fit_square,
)

UNSUPPORTED_ENDINGS = frozenset({".tif", ".tiff", ".heic", ".heif", ".avif", ".svg", ".psd", ".jxl", ".jp2", ".apng"})
MAX_PICTURES = 1_000_000


@dataclass(frozen=True)
class DatasetPicture:
    """One usable picture: `name` is its path inside the folder, `digest` the SHA-256 of its bytes."""

    path: Path
    name: str
    caption: str
    digest: str


@dataclass(frozen=True)
class PictureDataset:
    """A folder's pictures in the order of their names, and the files left out."""

    pictures: tuple[DatasetPicture, ...]
    skipped: tuple[SkippedFile, ...]

    @property
    def fingerprint(self) -> str:
        """Return twelve hex digits that change with any picture or caption."""
        lines = "".join(f"{picture.name}\n{picture.digest}\n{picture.caption}\n" for picture in self.pictures)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def read_folder(
    folder: Path,
    *,
    require_captions: bool = True,
    on_progress: Callable[[int, int], None] = lambda finished, total: None,
) -> PictureDataset:
    """Check every picture of a folder.

    Without `require_captions` they may be missing. Raises ValueError if no picture is usable.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is {'a file and ' if folder.exists() else ''}not a folder of pictures.")
    skipped: list[SkippedFile] = []
    files = list(_walk_files(folder, skipped))
    folder_captions = read_captions(folder, [path for path in files if _is_caption(path)], files)
    picture_paths = [path for path in files if path.suffix.lower() in SUPPORTED_ENDINGS]
    usable: list[DatasetPicture] = []
    names_by_content: dict[tuple[str, str], str] = {}
    for number, path in enumerate(picture_paths):
        name = path.relative_to(folder).as_posix()
        try:
            picture = _read_picture(folder, path, name, folder_captions, require_captions)
            if (first_name := names_by_content.setdefault((picture.digest, picture.caption), name)) != name:
                raise UnusablePicture(f"is the same picture as {first_name}, with the same caption")
            usable.append(picture)
        except UnusablePicture as reason:
            skipped.append(SkippedFile(name, str(reason)))
        on_progress(number + 1, len(picture_paths))
    skipped += folder_captions.skipped if require_captions else ()
    if not usable:
        raise ValueError(_empty_folder_message(folder, skipped))
    return PictureDataset(tuple(usable), tuple(skipped))


def _read_picture(
    folder: Path, path: Path, name: str, folder_captions: FolderCaptions, require_captions: bool
) -> DatasetPicture:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnusablePicture("is a link that leads out of the folder")
    caption = folder_captions.by_picture.get(path, "")
    if require_captions and not caption:
        no_caption = f"has no caption, neither {path.stem}.txt nor a line in {METADATA_FILE}"
        raise UnusablePicture(folder_captions.problems.get(path) or no_caption)
    decode_picture(path)
    with path.open("rb") as file:
        return DatasetPicture(path, name, caption, hashlib.file_digest(file, "sha256").hexdigest())


def _walk_files(folder: Path, skipped: list[SkippedFile]) -> Iterator[Path]:
    """Yield pictures and captions in the order of their names; ignores hidden files and folders."""
    count = 0
    for folder_name, folders, names in os.walk(folder):
        current_folder = Path(folder_name)
        links = [name for name in sorted(folders) if (current_folder / name).is_symlink()]
        skipped += [
            SkippedFile(_relative_name(folder, current_folder / name), "is a link to a folder") for name in links
        ]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in sorted(current_folder / name for name in names if not name.startswith(".")):
            ending = path.suffix.lower()
            if ending in UNSUPPORTED_ENDINGS:
                supported = ", ".join(sorted(supported_ending[1:] for supported_ending in SUPPORTED_ENDINGS))
                reason = f"is in a format that is not supported ({supported})"
                skipped.append(SkippedFile(_relative_name(folder, path), reason))
            elif ending in SUPPORTED_ENDINGS or _is_caption(path):
                count += 1
                if count > 2 * MAX_PICTURES:
                    raise ValueError(f"{folder} has more than {MAX_PICTURES} pictures: too many for one run.")
                yield path


def _is_caption(path: Path) -> bool:
    return path.name == METADATA_FILE or path.suffix.lower() == CAPTION_ENDING


def _empty_folder_message(folder: Path, skipped: list[SkippedFile]) -> str:
    if not skipped:
        return f"{folder} has no pictures ({', '.join(sorted(ending[1:] for ending in SUPPORTED_ENDINGS))})."
    count_note = f" {len(skipped)} files were left out;" if len(skipped) > 1 else ""
    return f"{folder} has no picture that can be used:{count_note} {skipped[0]}."


METADATA_FILE = "metadata.jsonl"
CAPTION_ENDING = ".txt"
MAX_CAPTION_LENGTH = 1000  # characters: our text encoders read at most 77 tokens
MAX_TEXT_BYTES = 64 << 10
MAX_METADATA_BYTES = 256 << 20


@dataclass(frozen=True)
class SkippedFile:
    """A file left out, and why. Its text is one printable line, for any file name."""

    name: str
    reason: str

    def __str__(self) -> str:
        line = "".join(character if character.isprintable() else "?" for character in f"{self.name} {self.reason}")
        return line if len(line) <= 300 else line[:299] + "…"


@dataclass
class FolderCaptions:
    """The caption of each picture, or what is wrong with it. `skipped` lists entries without a picture."""

    by_picture: dict[Path, str] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)
    skipped: list[SkippedFile] = field(default_factory=list)


def read_captions(folder: Path, caption_files: Sequence[Path], files: Sequence[Path]) -> FolderCaptions:
    """Read all captions for the pictures among `files`. A picture's first caption counts."""
    captions = FolderCaptions()
    files_by_path = {os.path.normpath(path): path for path in files}
    by_stem: dict[Path, list[Path]] = {}
    for path in files:
        by_stem.setdefault(path.with_suffix(""), []).append(path)
    root = folder.resolve()
    inside = [path for path in caption_files if path.resolve().is_relative_to(root)]
    inside_set = set(inside)  # computed once: a folder may have a million captions
    outside = [path for path in caption_files if path not in inside_set]
    captions.skipped += [SkippedFile(_relative_name(folder, path), "is a link that leads out") for path in outside]
    for path in (file for file in inside if file.name == METADATA_FILE):
        _read_metadata(folder, path, files_by_path, captions)
    for path in (file for file in inside if file.name != METADATA_FILE):
        pictures = [file for file in by_stem[path.with_suffix("")] if file.suffix.lower() != CAPTION_ENDING]
        _read_text(path, _relative_name(folder, path), pictures, captions)
    return captions


def _read_text(path: Path, name: str, pictures: list[Path], captions: FolderCaptions) -> None:
    if not pictures:
        captions.skipped.append(SkippedFile(name, "has no picture beside it"))
        return
    if any(picture in captions.by_picture for picture in pictures):
        captions.skipped.append(SkippedFile(name, f"is a second caption: {METADATA_FILE} has one already"))
        return
    try:
        caption = clean_caption(_read_bytes(path, MAX_TEXT_BYTES))
    except ValueError as reason:
        captions.problems.update((picture, f"has a caption that {reason}") for picture in pictures)
    else:
        captions.by_picture.update((picture, caption) for picture in pictures)


def _read_metadata(folder: Path, path: Path, files_by_path: Mapping[str, Path], captions: FolderCaptions) -> None:
    name = _relative_name(folder, path)
    try:
        lines = _read_bytes(path, MAX_METADATA_BYTES).splitlines()
    except ValueError as reason:
        captions.skipped.append(SkippedFile(name, str(reason)))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            _read_line(path.parent, line, files_by_path, captions)
        except (ValueError, RecursionError) as reason:
            captions.skipped.append(SkippedFile(f"{name} line {number}", str(reason)))


def _read_line(base_folder: Path, line: bytes, files_by_path: Mapping[str, Path], captions: FolderCaptions) -> None:
    try:
        entry = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON in UTF-8") from error
    fields = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
    file_name = fields.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise ValueError("names no picture: it needs file_name and text")
    normal_path = os.path.normpath(base_folder / file_name)
    if os.path.isabs(file_name) or not Path(normal_path).is_relative_to(os.path.normpath(base_folder)):
        raise ValueError("names a path outside of its folder")
    if (picture := files_by_path.get(normal_path)) is None:
        raise ValueError(f"names {file_name[:80]}, which is not there")
    if picture in captions.by_picture or picture in captions.problems:
        raise ValueError(f"names {file_name[:80]} a second time: the first caption counts")
    try:
        captions.by_picture[picture] = clean_caption(fields.get("text"))
    except ValueError as reason:
        captions.problems[picture] = f"has a caption that {reason}"


def clean_caption(caption: object) -> str:
    """Clean a caption to one printable line. Raises ValueError with the end of a sentence about what is wrong."""
    if isinstance(caption, bytes):
        try:
            caption = caption.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8") from None
    if not isinstance(caption, str):
        raise ValueError("is not text")
    line = " ".join("".join(character if character.isprintable() else " " for character in caption).split())
    if not line:
        raise ValueError("is empty")
    if len(line) > MAX_CAPTION_LENGTH:
        raise ValueError(f"has {len(line)} characters, and at most {MAX_CAPTION_LENGTH} are read")
    return line


def _relative_name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise ValueError("is not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    if len(content) > max_bytes:
        raise ValueError(f"is larger than {max_bytes >> 10} kB")
    return content


ENOUGH_ROWS = 1000  # cache rows above which pictures need no more views
MAX_VIEWS = 8  # views of one picture
MIN_VISIBLE_SHARE = 0.9  # the smallest share of a side that a view shows
MAX_BRIGHTNESS_CHANGE = 0.06


def number_views(pictures: Sequence[DatasetPicture], flip: bool) -> list[tuple[int, int]]:
    """Return all (picture, number) pairs: view 0 is the unchanged picture; with `flip` odd numbers are mirrored."""
    views = max(1, min(MAX_VIEWS, ENOUGH_ROWS // len(pictures)))
    return [(index, number) for index in range(len(pictures)) for number in range(max(views, 1 + flip))]


def render_view(picture: DatasetPicture, number: int, side: int, seed: int, flip: bool) -> np.ndarray:
    """Render a view, uint8 [side, side, 3]. Raises `UnusablePicture` if the file has changed."""
    decoded = decode_picture(picture.path)
    rng = np.random.default_rng([seed, int(picture.digest[:8], 16), number])
    square = fit_square(decoded, side)
    if number > flip:
        square = _crop_at_random(decoded, side, rng)
    if flip and number % 2:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square)


def _crop_at_random(decoded: DecodedPicture, side: int, rng: np.random.Generator) -> Image.Image:
    visible_share = rng.uniform(MIN_VISIBLE_SHARE, 1.0)
    large_square = fit_square(decoded, max(side, round(side / visible_share)))
    left, top = rng.integers(0, large_square.width - side + 1, 2)
    crop = large_square.crop((int(left), int(top), int(left) + side, int(top) + side))
    if decoded.was_transparent:  # its background is white and stays white
        return crop
    brightness = float(rng.uniform(1 - MAX_BRIGHTNESS_CHANGE, 1 + MAX_BRIGHTNESS_CHANGE))
    return ImageEnhance.Brightness(crop).enhance(brightness)
