"""Reads the captions of a picture folder from `NAME.txt` files and `metadata.jsonl`, and lists what is wrong with them.

The files are untrusted: it checks their size, encoding, and paths that lead outside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

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
    captions.skipped += [
        SkippedFile(_relative_name(folder, path), "is a link that leads out")
        for path in caption_files
        if path not in inside_set
    ]
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
