"""Reads a folder of captioned pictures: `NAME.txt` beside `NAME.png`, or `metadata.jsonl` (`file_name`, `text`).

It follows the imagefolder convention of the datasets library, subfolders included. An unusable file never ends a run:
it is left out and listed with the reason. It is independent of networks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.pictures.dataset_captions import CAPTION_ENDING, METADATA_FILE, FolderCaptions, SkippedFile, read_captions
from training.pictures.picture_file import SUPPORTED_ENDINGS, UnusablePicture, decode_picture

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
        raise UnusablePicture(
            folder_captions.problems.get(path)
            or f"has no caption, neither {path.stem}.txt nor a line in {METADATA_FILE}"
        )
    decode_picture(path)
    with path.open("rb") as file:
        return DatasetPicture(path, name, caption, hashlib.file_digest(file, "sha256").hexdigest())


def _walk_files(folder: Path, skipped: list[SkippedFile]) -> Iterator[Path]:
    """Yield pictures and captions in the order of their names; ignores hidden files and folders."""
    count = 0
    for folder_name, folders, names in os.walk(folder):
        current_folder = Path(folder_name)
        for name in sorted(folders):
            if (current_folder / name).is_symlink():
                skipped.append(
                    SkippedFile((current_folder / name).relative_to(folder).as_posix(), "is a link to a folder")
                )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = current_folder / name
            ending = Path(name).suffix.lower()
            if ending in UNSUPPORTED_ENDINGS:
                supported = ", ".join(sorted(supported_ending[1:] for supported_ending in SUPPORTED_ENDINGS))
                skipped.append(
                    SkippedFile(
                        path.relative_to(folder).as_posix(), f"is in a format that is not supported ({supported})"
                    )
                )
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
