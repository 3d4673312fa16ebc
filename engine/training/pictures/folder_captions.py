"""Reads the captions of a picture folder from `NAME.txt` files and `metadata.jsonl`, and lists what is wrong with them.

The files are untrusted: it checks their size, encoding, and paths that lead outside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

METADATA, CAPTION_FILE = "metadata.jsonl", ".txt"
MAX_CAPTION = 1000  # characters: our text encoders read at most 77 tokens
MAX_TEXT_BYTES = 64 << 10
MAX_METADATA_BYTES = 256 << 20


@dataclass(frozen=True)
class Skipped:
    """A file left out, and why. Its text is one printable line, for any file name."""

    name: str
    reason: str

    def __str__(self) -> str:
        line = "".join(letter if letter.isprintable() else "?" for letter in f"{self.name} {self.reason}")
        return line if len(line) <= 300 else line[:299] + "…"


@dataclass
class Captions:
    """The caption of each picture, or what is wrong with it. `skipped` lists entries without a picture."""

    of: dict[Path, str] = field(default_factory=dict)
    wrong: dict[Path, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def read_captions(folder: Path, texts: Sequence[Path], files: Sequence[Path]) -> Captions:
    """Read all captions for the pictures among `files`. A picture's first caption counts."""
    said, known = Captions(), {os.path.normpath(path): path for path in files}
    by_stem: dict[Path, list[Path]] = {}
    for path in files:
        by_stem.setdefault(path.with_suffix(""), []).append(path)
    root = folder.resolve()
    inside = [path for path in texts if path.resolve().is_relative_to(root)]
    held = set(inside)  # computed once: a folder may have a million captions
    said.skipped += [Skipped(_name(folder, path), "is a link that leads out") for path in texts if path not in held]
    for path in (one for one in inside if one.name == METADATA):
        _read_metadata(folder, path, known, said)
    for path in (one for one in inside if one.name != METADATA):
        pictures = [one for one in by_stem[path.with_suffix("")] if one.suffix.lower() != CAPTION_FILE]
        _read_text(path, _name(folder, path), pictures, said)
    return said


def _read_text(path: Path, name: str, pictures: list[Path], said: Captions) -> None:
    if not pictures:
        said.skipped.append(Skipped(name, "has no picture beside it"))
        return
    if any(picture in said.of for picture in pictures):
        said.skipped.append(Skipped(name, f"is a second caption: {METADATA} has one already"))
        return
    try:
        caption = cleaned(_bytes(path, MAX_TEXT_BYTES))
    except ValueError as reason:
        said.wrong.update((picture, f"has a caption that {reason}") for picture in pictures)
    else:
        said.of.update((picture, caption) for picture in pictures)


def _read_metadata(folder: Path, path: Path, known: Mapping[str, Path], said: Captions) -> None:
    name = _name(folder, path)
    try:
        lines = _bytes(path, MAX_METADATA_BYTES).splitlines()
    except ValueError as reason:
        said.skipped.append(Skipped(name, str(reason)))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            _read_line(path.parent, line, known, said)
        except (ValueError, RecursionError) as reason:
            said.skipped.append(Skipped(f"{name} line {number}", str(reason)))


def _read_line(here: Path, line: bytes, known: Mapping[str, Path], said: Captions) -> None:
    try:
        entry = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON in UTF-8") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise ValueError("names no picture: it needs file_name and text")
    named = entry["file_name"]
    place = os.path.normpath(here / named)
    if os.path.isabs(named) or not Path(place).is_relative_to(os.path.normpath(here)):
        raise ValueError("names a path outside of its folder")
    if (picture := known.get(place)) is None:
        raise ValueError(f"names {named[:80]}, which is not there")
    if picture in said.of or picture in said.wrong:
        raise ValueError(f"names {named[:80]} a second time: the first caption counts")
    try:
        said.of[picture] = cleaned(entry.get("text"))
    except ValueError as reason:
        said.wrong[picture] = f"has a caption that {reason}"


def cleaned(caption: object) -> str:
    """Clean a caption to one printable line. Raises ValueError with the end of a sentence about what is wrong."""
    if isinstance(caption, bytes):
        try:
            caption = caption.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8") from None
    if not isinstance(caption, str):
        raise ValueError("is not text")
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in caption).split())
    if not line:
        raise ValueError("is empty")
    if len(line) > MAX_CAPTION:
        raise ValueError(f"has {len(line)} characters, and at most {MAX_CAPTION} are read")
    return line


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _bytes(path: Path, most: int) -> bytes:
    if not path.is_file():
        raise ValueError("is not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise ValueError(f"is larger than {most >> 10} kB")
    return content
