"""Reads a folder of captioned pictures: `NAME.txt` beside `NAME.png`, or `metadata.jsonl` (`file_name`, `text`).

It follows the imagefolder convention of the datasets library, subfolders included. An unusable file never ends a run:
it is left out and listed with the reason. Knows files and captions; knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.training.pictures.folder_captions import CAPTION_FILE, METADATA, Captions, Skipped, read_captions
from engine.training.pictures.picture_file import ENDINGS, Unusable, decode

UNREAD = frozenset({".tif", ".tiff", ".heic", ".heif", ".avif", ".svg", ".psd", ".jxl", ".jp2", ".apng"})
MAX_PICTURES = 1_000_000


@dataclass(frozen=True)
class Picture:
    """One usable picture: `name` is its path inside the folder, `digest` the SHA-256 of its bytes."""

    path: Path
    name: str
    caption: str
    digest: str


@dataclass(frozen=True)
class Reading:
    """A folder's pictures in the order of their names, and the files left out."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]

    @property
    def fingerprint(self) -> str:
        """Return twelve hex digits that change with any picture or caption."""
        lines = "".join(f"{one.name}\n{one.digest}\n{one.caption}\n" for one in self.pictures)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def read_folder(
    folder: Path, *, captions: bool = True, told: Callable[[int, int], None] = lambda done, of: None
) -> Reading:
    """Check every picture of a folder.

    Without `captions` they may be missing. Raises ValueError if no picture is usable.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is {'a file and ' if folder.exists() else ''}not a folder of pictures.")
    skipped: list[Skipped] = []
    files = list(_files(folder, skipped))
    said = read_captions(folder, [path for path in files if _is_caption(path)], files)
    pictures = [path for path in files if path.suffix.lower() in ENDINGS]
    found: list[Picture] = []
    seen: dict[tuple[str, str], str] = {}
    for number, path in enumerate(pictures):
        name = path.relative_to(folder).as_posix()
        try:
            one = _picture(folder, path, name, said, captions)
            if (first := seen.setdefault((one.digest, one.caption), name)) != name:
                raise Unusable(f"is the same picture as {first}, with the same caption")
            found.append(one)
        except Unusable as reason:
            skipped.append(Skipped(name, str(reason)))
        told(number + 1, len(pictures))
    skipped += said.skipped if captions else ()
    if not found:
        raise ValueError(_nothing(folder, skipped))
    return Reading(tuple(found), tuple(skipped))


def _picture(folder: Path, path: Path, name: str, said: Captions, captions: bool) -> Picture:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Unusable("is a link that leads out of the folder")
    caption = said.of.get(path, "")
    if captions and not caption:
        raise Unusable(said.wrong.get(path) or f"has no caption, neither {path.stem}.txt nor a line in {METADATA}")
    decode(path)
    with path.open("rb") as file:
        return Picture(path, name, caption, hashlib.file_digest(file, "sha256").hexdigest())


def _files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield pictures and captions in the order of their names; ignores hidden files and folders."""
    count = 0
    for where, folders, names in os.walk(folder):
        here = Path(where)
        for name in sorted(folders):
            if (here / name).is_symlink():
                skipped.append(Skipped((here / name).relative_to(folder).as_posix(), "is a link to a folder"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path, ending = here / name, Path(name).suffix.lower()
            if ending in UNREAD:
                read = ", ".join(sorted(one[1:] for one in ENDINGS))
                skipped.append(
                    Skipped(path.relative_to(folder).as_posix(), f"is in a format that is not supported ({read})")
                )
            elif ending in ENDINGS or _is_caption(path):
                count += 1
                if count > 2 * MAX_PICTURES:
                    raise ValueError(f"{folder} has more than {MAX_PICTURES} pictures: too many for one run.")
                yield path


def _is_caption(path: Path) -> bool:
    return path.name == METADATA or path.suffix.lower() == CAPTION_FILE


def _nothing(folder: Path, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"{folder} has no pictures ({', '.join(sorted(one[1:] for one in ENDINGS))})."
    more = f" {len(skipped)} files were left out;" if len(skipped) > 1 else ""
    return f"{folder} has no picture that can be used:{more} {skipped[0]}."
