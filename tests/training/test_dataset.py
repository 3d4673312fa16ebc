"""A folder of untrusted pictures: each faulty file is reported in one line, and none ends the run."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.pictures.dataset import PictureDataset, number_views, read_folder, render_view
from training.pictures.picture_file import decode_picture, fit_square


def write_picture(
    path: Path, caption: str | bytes | None = "a ball", *, mode: str = "RGB", **save_options: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))  # `hash` differs between runs, and two names may agree
    pixels = Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).convert(mode)
    pixels.save(path, **save_options)
    if caption is not None:
        content = caption.encode() if isinstance(caption, str) else caption
        path.with_suffix(".txt").write_bytes(content)
    return path


def reasons_by_name(dataset: PictureDataset) -> dict[str, str]:
    assert all("\n" not in str(one) for one in dataset.skipped)
    return {one.name: one.reason for one in dataset.skipped}


def names(dataset: PictureDataset) -> list[str]:
    return [one.name for one in dataset.pictures]


def write_bomb(path: Path, side: int) -> None:
    """Writes a PNG of a few bytes that declares to be `side` pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(b"\0" * 99)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"".join(parts))
    path.with_suffix(".txt").write_text("a bomb")


def test_captions_come_from_text_files_and_metadata_in_subfolders_too(tmp_path: Path) -> None:
    write_picture(tmp_path / "one.png", "\ufeff a red\nball \x1b[31m")
    write_picture(tmp_path / "deep" / "er" / "two.JPG", "two")
    write_picture(tmp_path / "listed" / "three.webp", None)
    write_picture(tmp_path / "listed" / "in" / "four.bmp", None)
    lines = [{"file_name": "three.webp", "text": "three"}, {"file_name": "in/four.bmp", "text": "four"}]
    (tmp_path / "listed" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    dataset = read_folder(tmp_path)
    assert {one.name: one.caption for one in dataset.pictures} == {
        "one.png": "a red ball [31m",
        "deep/er/two.JPG": "two",
        "listed/three.webp": "three",
        "listed/in/four.bmp": "four",
    }
    assert dataset.skipped == ()
    assert dataset.fingerprint == read_folder(tmp_path).fingerprint
    (tmp_path / "one.txt").write_text("a blue ball")
    assert dataset.fingerprint != read_folder(tmp_path).fingerprint


def test_unusable_pictures_are_skipped_by_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "good.png")
    truncated_file = write_picture(tmp_path / "cut.png")
    truncated_file.write_bytes(truncated_file.read_bytes()[:900])
    write_picture(tmp_path / "text.jpg").write_bytes(b"<html>not found</html>")
    write_picture(tmp_path / "nothing.png").write_bytes(b"")
    write_bomb(tmp_path / "bomb.png", 60_000)
    write_bomb(tmp_path / "large.png", 8_001)
    Image.new("RGB", (15, 400)).save(tmp_path / "tiny.png")
    (tmp_path / "tiny.txt").write_text("tiny")
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 200)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / "moving.txt").write_text("moving")
    with write_picture(tmp_path / "heavy.png").open("ab") as file:
        file.truncate(65 << 20)
    (tmp_path / "scan.tiff").write_bytes(b"II*\0")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe.txt").write_text("a pipe")
    dataset = read_folder(tmp_path)
    assert names(dataset) == ["good.png"]
    reasons = reasons_by_name(dataset)
    assert "cannot be decoded" in reasons["cut.png"]
    assert "cannot be decoded" in reasons["text.jpg"]
    assert reasons["nothing.png"] == "is empty"
    assert reasons["bomb.png"] == reasons["large.png"] == "has more than 64 million pixels, which are not read"
    assert reasons["tiny.png"] == "is 15×400 pixels, and each side needs 16"
    assert all("is animated" in reasons[name] for name in ("moving.gif", "moving.webp", "moving.png"))
    assert "has 65 MB, and at most 64" in reasons["heavy.png"]
    assert "is in a format that is not supported" in reasons["scan.tiff"]
    assert reasons["pipe.png"] == "is not a regular file"


def test_unusable_captions_are_reported_with_their_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "good.png")
    for name, caption in {
        "none": None,
        "empty": " \n\t",
        "long": "a" * 1001,
        "latin": "caf\xe9".encode("latin-1"),
    }.items():
        write_picture(tmp_path / f"{name}.png", caption)
    write_picture(tmp_path / "vast.png", "a" * (70 << 10))
    (tmp_path / "orphan.txt").write_text("of nothing")
    dataset = read_folder(tmp_path)
    assert names(dataset) == ["good.png"]
    assert reasons_by_name(dataset) == {
        "none.png": "has no caption, neither none.txt nor a line in metadata.jsonl",
        "empty.png": "has a caption that is empty",
        "long.png": "has a caption that has 1001 characters, and at most 1000 are read",
        "latin.png": "has a caption that is not UTF-8",
        "vast.png": "has a caption that is larger than 64 kB",
        "orphan.txt": "has no picture beside it",
    }
    assert len(read_folder(tmp_path, require_captions=False).pictures) == 6


def test_unusable_lines_of_metadata_are_reported(tmp_path: Path) -> None:
    for name in ("one", "two", "both"):
        write_picture(tmp_path / "in" / f"{name}.png", "from a text" if name == "both" else None)
    write_picture(tmp_path / "out.png")
    lines: list[Any] = [
        {"file_name": "one.png", "text": "first"},
        {"file_name": "one.png", "text": "again"},
        {"file_name": "../out.png", "text": "outside"},
        {"file_name": str(tmp_path / "out.png"), "text": "outside"},
        {"file_name": "gone.png", "text": "not there"},
        {"text": "no name"},
        ["a list"],
        {"file_name": "two.png", "text": 7},
        {"file_name": "both.png", "text": "from metadata"},
        {"file_name": "./one.png", "text": "the same"},
    ]
    encoded_lines = [json.dumps(line).encode() for line in lines] + [b"{torn", b"\xff\xfe", b"[" * 100_000]
    (tmp_path / "in" / "metadata.jsonl").write_bytes(b"\n".join(encoded_lines))
    dataset = read_folder(tmp_path)
    assert {one.name: one.caption for one in dataset.pictures} == {
        "in/both.png": "from metadata",
        "in/one.png": "first",
        "out.png": "a ball",
    }
    reasons = reasons_by_name(dataset)
    assert "second time" in reasons["in/metadata.jsonl line 2"]
    assert (
        reasons["in/metadata.jsonl line 3"]
        == reasons["in/metadata.jsonl line 4"]
        == "names a path outside of its folder"
    )
    assert "not there" in reasons["in/metadata.jsonl line 5"]
    assert all("names no picture" in reasons[f"in/metadata.jsonl line {number}"] for number in (6, 7))
    assert reasons["in/two.png"] == "has a caption that is not text"
    assert "second time" in reasons["in/metadata.jsonl line 10"]
    assert all(reasons[f"in/metadata.jsonl line {number}"] == "is not JSON in UTF-8" for number in (11, 12, 13))
    assert "second caption" in reasons["in/both.txt"]


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "elsewhere" / "secret.png", "a secret")
    write_picture(tmp_path / "mine" / "good.png")
    (tmp_path / "mine" / "link.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "mine" / "link.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (tmp_path / "mine" / "more").symlink_to(tmp_path / "elsewhere")
    write_picture(tmp_path / "mine" / ".cache" / "hidden.png")
    dataset = read_folder(tmp_path / "mine")
    assert names(dataset) == ["good.png"]
    assert set(reasons_by_name(dataset)) == {"link.png", "link.txt", "more"}


def test_the_same_picture_is_taken_once_for_each_caption(tmp_path: Path) -> None:
    first = write_picture(tmp_path / "a.png", "a ball").read_bytes()
    for name, caption in (("b", "a ball"), ("c", "a toy")):
        (tmp_path / f"{name}.png").write_bytes(first)
        (tmp_path / f"{name}.txt").write_text(caption)
    dataset = read_folder(tmp_path)
    assert names(dataset) == ["a.png", "c.png"]
    assert reasons_by_name(dataset) == {"b.png": "is the same picture as a.png, with the same caption"}


def test_a_name_is_one_printable_line(tmp_path: Path) -> None:
    write_picture(tmp_path / "evil\n\x1b[31m.png", None)
    write_picture(tmp_path / "good.png")
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes((tmp_path / "good.png").read_bytes())
    for one in read_folder(tmp_path).skipped:
        assert str(one).isprintable()
        str(one).encode()


def test_a_folder_without_usable_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder of pictures"):
        read_folder(tmp_path / "gone")
    with pytest.raises(ValueError, match="has no pictures"):
        read_folder(tmp_path)
    write_picture(tmp_path / "a.png", None)
    with pytest.raises(ValueError, match=r"no picture that can be used: a\.png has no caption"):
        read_folder(tmp_path)


def test_every_kind_of_pixel_becomes_upright_rgb_on_white(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 20), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((20, 40), 51_400, np.uint16)).save(tmp_path / "deep.png")
    see_through = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    see_through.paste((0, 0, 255, 255), (0, 0, 20, 20))
    see_through.save(tmp_path / "cut-out.png")
    see_through.save(tmp_path / "cut-out.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(tmp_path / "turned.jpg", exif=exif)
    red.convert("P").save(tmp_path / "palette.gif")
    red.convert("1").save(tmp_path / "lines.png")
    pictures = {path.name: decode_picture(path) for path in tmp_path.iterdir()}
    assert all(one.pixels.mode == "RGB" for one in pictures.values())
    cmyk_pixel: Any = pictures["cmyk.jpg"].pixels.getpixel((5, 5))
    assert np.abs(np.array(cmyk_pixel) - (200, 30, 30)).max() < 40
    assert pictures["deep.png"].pixels.getpixel((5, 5)) == (200, 200, 200)
    assert pictures["turned.jpg"].pixels.size == (20, 40)
    for name in ("cut-out.png", "cut-out.webp"):
        assert pictures[name].pixels.getpixel((30, 5)) == (255, 255, 255)
        assert pictures[name].pixels.getpixel((5, 5)) == (0, 0, 255)
        assert fit_square(pictures[name], 32).getpixel((16, 1)) == (255, 255, 255)  # padded: nothing of it is lost
    assert fit_square(pictures["turned.jpg"], 32).getpixel((16, 1)) != (255, 255, 255)  # the middle is kept


def test_views_depend_on_the_seed_and_are_mirrored_only_with_flip(tmp_path: Path) -> None:
    half = Image.new("RGB", (64, 64), (0, 0, 0))
    half.paste((255, 255, 255), (32, 0, 64, 64))
    half.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("half")
    (one,) = read_folder(tmp_path).pictures
    assert [number for _, number in number_views([one], flip=False)] == list(range(8))
    assert len(number_views([one] * 5000, flip=False)) == 5000
    assert len(number_views([one] * 5000, flip=True)) == 10_000
    views = [render_view(one, number, 32, 7, flip=False) for number in range(8)]
    assert all(pixels.shape == (32, 32, 3) and pixels[16, 2].max() < 60 for pixels in views)
    assert np.array_equal(views[3], render_view(one, 3, 32, 7, flip=False))
    assert not np.array_equal(views[3], views[4])
    assert render_view(one, 1, 32, 7, flip=True)[16, 2].min() > 200
    assert np.array_equal(render_view(one, 0, 32, 7, flip=True), views[0])
