"""The upload decoder with its real processes: every format, every limit, and hostile files."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from bot.domain.errors import UserError
from bot.pictures.image_codec import RGB, InvalidPng, UnreadableImage, validate_png
from bot.pictures.uploads import upload_decoder as intake_module
from bot.pictures.uploads.image_decoding import FORMATS
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES, MAX_WAITING, DecodedImage, UploadDecoder
from shared.picture_files import encode_picture

pytestmark = pytest.mark.asyncio
HALVES = np.zeros((24, 48, 3), np.uint8)
HALVES[:, :24] = (200, 30, 40)
HALVES[:, 24:] = (20, 60, 190)
Until = Callable[..., Any]


@pytest_asyncio.fixture
async def upload_decoder() -> AsyncIterator[UploadDecoder]:
    async with open_decoder() as decoder:
        yield decoder


def halves(form: str = "PNG", **options: Any) -> bytes:
    return encode_picture(Image.fromarray(HALVES), form, **options)


@asynccontextmanager
async def open_decoder(**options: Any) -> AsyncIterator[UploadDecoder]:
    decoder = UploadDecoder(**options)
    try:
        yield decoder
    finally:
        await decoder.close()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, bits: int, colour: int, data: bytes, *chunks: bytes) -> bytes:
    """A PNG with any header and any data."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def deflated_zeros(length: int) -> bytes:
    """Deflates `length` zeros without holding them all in memory."""
    compressor = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [compressor.compress(block[: min(len(block), length - offset)]) for offset in range(0, length, len(block))]
    return b"".join(parts) + compressor.flush()


def pixels(picture: DecodedImage) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(picture.png)) as opened_image:
        assert (opened_image.size, opened_image.info) == ((picture.width, picture.height), {})
        return np.asarray(opened_image.convert("RGB"), int)


def is_near(decoded: DecodedImage, expected: np.ndarray[Any, Any], max_difference: float = 6) -> bool:
    actual = pixels(decoded)
    return actual.shape == expected.shape and float(np.abs(actual - expected.astype(int)).mean()) < max_difference


async def assert_refused(upload_decoder: UploadDecoder, content: bytes, match: str, status: int = 422) -> None:
    with pytest.raises(UserError, match=match) as error:
        await upload_decoder.decode_picture(content)
    assert error.value.status == status
    assert error.value.sentence.endswith(".")


def decoder_processes(upload_decoder: UploadDecoder) -> list[psutil.Process]:
    pids = {process.pid for process in upload_decoder._decoders}
    processes = [psutil.Process(pid) for pid in pids]
    return [*processes, *(one for parent in processes for one in parent.children(recursive=True))]


@pytest.mark.parametrize("form", FORMATS)
async def test_every_format_is_read(upload_decoder: UploadDecoder, form: str) -> None:
    options = {"quality": 95} if form in ("JPEG", "WEBP", "AVIF") else {}
    content = halves(form, **options)
    decoded = await upload_decoder.decode_picture(content)
    assert is_near(decoded, HALVES)
    assert decoded.notes == ()
    assert (await upload_decoder.decode_picture(content)).sha256 == decoded.sha256, (
        "the same bytes again, in another process"
    )
    assert validate_png(decoded.png, 64, RGB) == (48, 24)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
async def test_every_mode_becomes_rgb(upload_decoder: UploadDecoder, mode: str) -> None:
    grey = Image.linear_gradient("L").resize((64, 32))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    else:
        picture = grey.convert("RGB").convert(mode) if mode == "RGBA" else grey.convert(mode)
    expected = np.asarray(grey.convert("1") if mode == "1" else grey, int)
    expected = np.where(expected == 1, 255, expected) if mode == "1" else expected
    assert is_near(
        await upload_decoder.decode_picture(encode_picture(picture)), np.repeat(expected[..., None], 3, 2), 8
    )


async def test_transparent_pixels_become_white(upload_decoder: UploadDecoder) -> None:
    layer = np.dstack([HALVES, np.where(HALVES[..., 0] > 100, 255, 0).astype(np.uint8)])
    white = HALVES.copy()
    white[:, 24:] = 255
    for form in ("PNG", "WEBP"):
        decoded = await upload_decoder.decode_picture(encode_picture(Image.fromarray(layer), form, lossless=True))
        assert is_near(decoded, white, 1)
        assert decoded.notes == ("What is transparent in it was made white.",)
    palette = Image.fromarray(HALVES).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    decoded = await upload_decoder.decode_picture(encode_picture(palette, transparency=int(np.asarray(palette)[0, 30])))
    assert is_near(decoded, white, 1)


async def test_photographs_are_turned_upright_and_lose_their_metadata(upload_decoder: UploadDecoder) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "A camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    content = halves("JPEG", quality=95, exif=exif, comment=b"my home")
    assert b"A camera" in content
    decoded = await upload_decoder.decode_picture(content)
    assert is_near(decoded, np.rot90(HALVES, -1), 6)
    assert validate_png(decoded.png, 64, RGB) == (24, 48)
    text = PngInfo()
    text.add_text("parameters", "a secret prompt")
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>", zip=True)
    for exif_orientation, expected_pixels in (
        (3, np.rot90(HALVES, 2)),
        (8, np.rot90(HALVES)),
        (99, HALVES),
        (1, HALVES),
    ):
        exif[ExifTags.Base.Orientation] = exif_orientation
        assert is_near(await upload_decoder.decode_picture(halves(exif=exif, pnginfo=text)), expected_pixels, 1)


async def test_circular_exif_is_read(upload_decoder: UploadDecoder) -> None:
    """The IFD names itself as the next one, and as its own EXIF part."""
    entry = struct.pack("<HHIIHHII", 0x8769, 4, 1, 8, 0x0112, 3, 1, 6)
    body = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entry + struct.pack("<I", 8)
    decoded = await upload_decoder.decode_picture(halves("JPEG", quality=95, exif=body))
    assert (decoded.width, decoded.height) in ((24, 48), (48, 24))


async def test_colour_profiles_are_applied(upload_decoder: UploadDecoder) -> None:
    """A profile with red and blue exchanged changes the picture; a damaged profile is ignored."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    offset = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(profile[131])}
    red, blue = (profile[offset[tag] + 4 : offset[tag] + 12] for tag in (b"rXYZ", b"bXYZ"))
    profile[offset[b"rXYZ"] + 4 : offset[b"rXYZ"] + 12] = blue
    profile[offset[b"bXYZ"] + 4 : offset[b"bXYZ"] + 12] = red
    with_swapped_channels = await upload_decoder.decode_picture(halves(icc_profile=bytes(profile)))
    assert is_near(with_swapped_channels, HALVES[..., ::-1], 3)
    for damaged_profile in (b"no profile", bytes(profile[:200]), bytes(profile[:128]) + b"\xff" * 300):
        assert is_near(await upload_decoder.decode_picture(halves(icc_profile=damaged_profile)), HALVES, 1)


async def test_cmyk_pictures_ignore_the_profile_of_another_colour_space(upload_decoder: UploadDecoder) -> None:
    """CMYK with a LAB profile keeps its pixels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    content = encode_picture(Image.fromarray(HALVES).convert("CMYK"), "JPEG", quality=95, icc_profile=profile)
    assert is_near(await upload_decoder.decode_picture(content), HALVES)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", *(["AVIF"] if "AVIF" in FORMATS else [])])
async def test_of_an_animation_only_the_first_frame_is_taken(upload_decoder: UploadDecoder, form: str) -> None:
    more_frames = [Image.new("RGB", (48, 24), (0, shade, 0)) for shade in (90, 180)]
    options = {} if form in ("GIF", "PNG") else {"quality": 95}
    decoded = await upload_decoder.decode_picture(halves(form, save_all=True, append_images=more_frames, **options))
    assert is_near(decoded, HALVES)
    assert decoded.notes == ("It is animated: its first picture is taken.",)


async def test_an_animation_of_ten_thousand_frames_is_read_quickly(upload_decoder: UploadDecoder) -> None:
    content = encode_picture(Image.new("P", (16, 16)), "GIF")
    frame = content[content.index(b"\x2c", 13) : -1]
    started_at = time.monotonic()
    decoded = await upload_decoder.decode_picture(content[:-1] + (b"\x21\xf9\x04\0\1\0\0\0" + frame) * 10_000 + b";")
    assert time.monotonic() - started_at < 3
    assert decoded.notes == ("It is animated: its first picture is taken.",)


async def test_large_pictures_are_scaled_down(upload_decoder: UploadDecoder) -> None:
    wide_picture = Image.fromarray(HALVES).resize((4800, 2400), Image.Resampling.NEAREST)
    for form in ("PNG", "JPEG"):
        decoded = await upload_decoder.decode_picture(encode_picture(wide_picture, form))
        assert (decoded.width, decoded.height) == (2048, 1024)
        assert decoded.notes == ("It was made smaller, from 4800 × 2400 to 2048 × 1024.",)
        shades = pixels(decoded)
        assert np.abs(shades[500, 100] - HALVES[0, 0].astype(int)).max() < 4
        assert np.abs(shades[500, -100] - HALVES[0, -1].astype(int)).max() < 4
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    decoded = await upload_decoder.decode_picture(encode_picture(wide_picture, "JPEG", exif=exif))
    assert decoded.notes == ("It was made smaller, from 2400 × 4800 to 1024 × 2048.",)
    thin_picture = await upload_decoder.decode_picture(encode_picture(Image.new("RGB", (16_000, 1))))
    assert (thin_picture.width, thin_picture.height) == (2048, 1)


async def test_oversized_pictures_are_refused_before_a_pixel_is_decoded(upload_decoder: UploadDecoder) -> None:
    await upload_decoder.decode_picture(halves())  # starts the process
    started_at = time.monotonic()
    bomb = raw_png(30_000, 30_000, 1, 0, deflated_zeros(30_000 * 3751))
    assert len(bomb) < 200_000
    await assert_refused(upload_decoder, bomb, r"The picture has too many pixels: up to 40 million are read\.", 413)
    await assert_refused(upload_decoder, raw_png(2**31 - 1, 2**31 - 1, 8, 2, b""), "too many pixels", 413)
    await assert_refused(upload_decoder, raw_png(16_385, 8, 8, 2, b""), "too long: up to 16384 pixels a side", 413)
    await assert_refused(upload_decoder, bytes(MAX_UPLOAD_BYTES + 1), "too large: up to 16 MiB", 413)
    lying_gif = bytearray(encode_picture(Image.new("P", (16, 16)), "GIF"))
    offset = lying_gif.index(b"\x2c\0\0\0\0", 13)
    lying_gif[offset + 5 : offset + 9] = struct.pack("<HH", 65_535, 65_535)  # a frame larger than its screen
    await assert_refused(upload_decoder, bytes(lying_gif), "too many pixels", 413)
    assert time.monotonic() - started_at < 5


async def test_files_that_are_no_picture_are_refused(upload_decoder: UploadDecoder) -> None:
    valid_picture = halves()
    kinds = "has a format that is not supported here: PNG, JPEG, WebP, GIF"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    postscript_file = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    for content in (b"\0", b"hello" * 99, svg, postscript_file, halves("TIFF"), valid_picture[8:]):
        await assert_refused(upload_decoder, content, kinds)
    await assert_refused(upload_decoder, b"", "is empty")
    damage_message = "is damaged and cannot be read"
    for content in (
        valid_picture[:60],
        valid_picture[:-30],
        valid_picture[:33],
        raw_png(0, 9, 8, 2, b""),
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
    ):
        await assert_refused(upload_decoder, content, damage_message)
    half = await upload_decoder.decode_picture(raw_png(10, 10, 8, 2, zlib.compress((b"\0" + bytes(30)) * 5)))
    assert (half.width, half.height) == (10, 10), "it has five of its ten rows: Pillow reads the others as black"
    with pytest.raises(UserError, match="The second picture has a format that is not supported"):
        await upload_decoder.decode_picture(b"hello", label="second picture")


async def test_decompression_bombs_do_not_inflate_without_limit(upload_decoder: UploadDecoder) -> None:
    """A bomb in a text, in a profile or after the last row is not inflated, or only up to a limit."""
    rows = zlib.compress((b"\0" + bytes(30)) * 10)
    bomb_data = deflated_zeros(2**28)
    for chunks in (chunk(b"zTXt", b"a\0\0" + bomb_data), chunk(b"iCCP", b"a\0\0" + bomb_data)):
        started_at = time.monotonic()
        await assert_refused(upload_decoder, raw_png(10, 10, 8, 2, rows, chunks), "is damaged")
        assert time.monotonic() - started_at < 5
    decoded = await upload_decoder.decode_picture(raw_png(10, 10, 8, 2, deflated_zeros(2**28)))
    assert (decoded.width, decoded.height, len(decoded.png) < 1000) == (10, 10, True)


def slow_jpeg() -> bytes:
    """A progressive photograph of 25 million pixels that repeats an empty scan 20,000 times: a few MB, minutes."""
    content = encode_picture(Image.new("L", (5000, 5000)), "JPEG", progressive=True)
    scan_starts = [offset for offset in range(len(content) - 1) if content[offset : offset + 2] == b"\xff\xda"]
    scan = content[scan_starts[1] : scan_starts[2]]
    scan = scan[: scan.index(b"\xff\xc4")] if b"\xff\xc4" in scan else scan
    return content[: scan_starts[2]] + scan * 20_000 + content[scan_starts[2] :]


async def test_a_picture_that_takes_too_long_is_refused() -> None:
    content = await asyncio.to_thread(slow_jpeg)
    assert len(content) < MAX_UPLOAD_BYTES
    async with open_decoder(timeout=1.0) as upload_decoder:
        started_at = time.monotonic()
        await assert_refused(upload_decoder, content, "takes too long to be read")
        assert 0.9 < time.monotonic() - started_at < 5
        (reader,) = decoder_processes(upload_decoder)
        assert (await upload_decoder.decode_picture(halves())).width == 48
        assert [one.pid for one in decoder_processes(upload_decoder)] == [reader.pid], "only the child process ended"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds an address space")
async def test_a_picture_that_needs_too_much_memory_is_refused() -> None:
    async with open_decoder(memory=128 * 2**20) as upload_decoder:
        await assert_refused(
            upload_decoder, raw_png(6000, 6000, 8, 2, deflated_zeros(18_001 * 6000)), "too much memory", 413
        )
        assert (await upload_decoder.decode_picture(halves())).width == 48


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds an address space")
@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P"), ("AVIF", "RGBA")],
)
async def test_the_largest_accepted_picture_fits_into_less_memory(form: str, mode: str) -> None:
    """40 million pixels fit in seven eighths of the memory limit."""
    if form not in FORMATS:
        pytest.skip("Pillow was built without AVIF")
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"progressive": True, "subsampling": 0},
        "WEBP": {"lossless": False, "method": 0},
        "AVIF": {"speed": 10},
        "PNG": {"compress_level": 1},
    }
    large = Image.new(mode, (6320, 6320), 100 if mode == "P" else (100, 90, 80, 70))
    if mode == "P":
        large.info["transparency"] = 0
    content = await asyncio.to_thread(lambda: encode_picture(large, form, **options.get(form, {})))
    async with open_decoder(memory=intake_module.MEMORY_LIMIT * 7 // 8, timeout=60) as upload_decoder:
        assert (await upload_decoder.decode_picture(content)).width == 2048


async def test_a_workers_pictures_are_decoded_whole_and_none_comes_back(upload_decoder: UploadDecoder) -> None:
    good = [halves(form) for form in ("PNG", "JPEG", "WEBP")]
    await upload_decoder.check_pictures(good)
    await upload_decoder.check_pictures(
        [encode_picture(Image.effect_noise((2600, 2600), 90))]
    )  # beyond an upload's 16 MiB
    bad = {
        "torn": good[0][: len(good[0]) // 2],
        "another format": halves("GIF"),
        "nothing": b"",
        "a bomb": raw_png(30_000, 30_000, 8, 2, deflated_zeros(1 << 20)),
    }
    for name, content in bad.items():
        outcome = await asyncio.gather(upload_decoder.check_pictures([*good, content]), return_exceptions=True)
        assert isinstance(outcome[0], UnreadableImage), name


async def test_a_worker_is_not_blamed_when_no_process_can_decode() -> None:
    decoder = UploadDecoder()
    await decoder.close()
    with pytest.raises(OSError, match="try again"):
        await decoder.check_pictures([halves()])


async def test_workers_pictures_wait_for_a_process_and_take_no_place_of_an_upload() -> None:
    """A busy evening brings more of them at once than the uploads that may wait; each refusal cost seconds."""
    picture = halves()
    async with open_decoder(max_waiting=1) as decoder:
        await asyncio.gather(
            *(decoder.check_pictures([picture] * 4) for _ in range(40)), decoder.decode_picture(picture)
        )


async def test_many_large_pictures_are_checked_in_several_turns(
    upload_decoder: UploadDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = halves()
    monkeypatch.setattr(intake_module, "MAX_WORKER_BYTES", 4 * len(picture) + 64)
    await upload_decoder.check_pictures([picture] * 9)
    with pytest.raises(UnreadableImage):
        await upload_decoder.check_pictures([picture] * 8 + [b"torn"])


async def test_masks_become_grey_and_bad_masks_are_refused(upload_decoder: UploadDecoder) -> None:
    stroke_mask = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    stroke_mask.paste((255, 255, 255, 255), (5, 5, 20, 20))
    decoded = await upload_decoder.decode_mask(encode_picture(stroke_mask), shape=(40, 30))
    with Image.open(io.BytesIO(decoded.png)) as grey:
        assert (grey.mode, grey.getextrema(), grey.getbbox()) == ("L", (0, 255), (5, 5, 20, 20))
    assert decoded.notes == ()
    with pytest.raises(UserError, match=r"The mask has 40 × 30 pixels, and its picture 64 × 64"):
        await upload_decoder.decode_mask(encode_picture(stroke_mask), shape=(64, 64))
    for empty in (Image.new("L", (40, 30), 100), Image.new("RGBA", (40, 30), (255, 255, 255, 0))):
        with pytest.raises(UserError, match="Nothing is painted"):
            await upload_decoder.decode_mask(encode_picture(empty))
    with pytest.raises(UserError, match="The mask has a format that is not supported"):
        await upload_decoder.decode_mask(b"hello")


async def test_a_killed_decoder_process_ends_one_picture_only(wait_until: Until) -> None:
    """The test kills the child, then its parent: each ends one picture and nothing else."""
    content = await asyncio.to_thread(slow_jpeg)
    small = halves()
    async with open_decoder() as upload_decoder:
        for process_index in (1, 0):
            decode_task = asyncio.create_task(upload_decoder.decode_picture(content))
            await wait_until(lambda: len(decoder_processes(upload_decoder)) == 2)
            decoder_processes(upload_decoder)[process_index].send_signal(signal.SIGKILL)
            with pytest.raises(UserError, match="Reading the picture broke off"):
                await decode_task
            assert (await upload_decoder.decode_picture(small)).width == 48
        idle_process = decoder_processes(upload_decoder)[0]
        idle_process.send_signal(signal.SIGKILL)
        await wait_until(lambda: not [one for one in upload_decoder._decoders if one.is_ready])
        assert (await upload_decoder.decode_picture(small)).width == 48
    assert not idle_process.is_running()


async def test_decoder_processes_end_when_the_request_is_cancelled_or_the_bot_closes(wait_until: Until) -> None:
    content = await asyncio.to_thread(slow_jpeg)
    upload_decoder = UploadDecoder()
    task = asyncio.create_task(upload_decoder.decode_picture(content))
    await wait_until(lambda: len(decoder_processes(upload_decoder)) == 2)
    processes = decoder_processes(upload_decoder)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes))
    task = asyncio.create_task(upload_decoder.decode_picture(content))
    await wait_until(lambda: len(decoder_processes(upload_decoder)) == 2)
    processes = decoder_processes(upload_decoder)
    await upload_decoder.close()
    with pytest.raises(UserError, match="broke off"):
        await task
    await wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes))
    with pytest.raises(UserError):
        await upload_decoder.decode_picture(content)


async def test_two_pictures_decode_at_once_and_the_queue_is_bounded(wait_until: Until) -> None:
    small = halves()
    max_running = 0
    async with open_decoder() as upload_decoder:
        tasks = [asyncio.create_task(upload_decoder.decode_picture(small)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(UserError, match="Too many pictures") as error:
            await upload_decoder.decode_picture(small)
        assert error.value.status == 429
        while not all(one.done() for one in tasks):
            max_running = max(max_running, len(upload_decoder._decoders))
            await asyncio.sleep(0.005)
        assert len({one.result().sha256 for one in tasks}) == 1
        assert max_running == 2


@pytest.mark.skipif(sys.platform != "linux", reason="bounds of other processes are read from /proc")
async def test_the_decoder_process_has_no_secrets_files_or_rights(
    wait_until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "a secret")
    content = await asyncio.to_thread(slow_jpeg)
    upload_decoder = UploadDecoder()
    task = asyncio.create_task(upload_decoder.decode_picture(content))
    try:
        await wait_until(
            lambda: (
                len(decoder_processes(upload_decoder)) == 2
                and decoder_processes(upload_decoder)[1].rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
            )
        )
        parent, child = decoder_processes(upload_decoder)
        for limit, expected_limit in (
            ("FSIZE", 0),
            ("NPROC", 0),
            ("CORE", 0),
            ("AS", intake_module.MEMORY_LIMIT),
            ("CPU", 12),
        ):
            assert child.rlimit(getattr(psutil, f"RLIMIT_{limit}")) == (expected_limit, expected_limit)
        assert set(parent.environ()) | set(child.environ()) <= {"LC_CTYPE", "LD_LIBRARY_PATH"}
        status = await asyncio.to_thread(Path(f"/proc/{child.pid}/status").read_text)
        assert "NoNewPrivs:\t1" in status
        names = await asyncio.to_thread(os.listdir, f"/proc/{child.pid}/fd")
        links = {os.readlink(f"/proc/{child.pid}/fd/{name}") for name in names}
        assert {name for name in links if not name.startswith("pipe:")} == {"/dev/null"}
        assert len([name for name in links if name.startswith("pipe:")]) == 1, (
            "it has its own pipe and none of the bot's"
        )
        mapped_files = await asyncio.to_thread(Path(f"/proc/{parent.pid}/maps").read_text)
        assert "PIL" in mapped_files
        assert not any(name in mapped_files for name in ("sqlalchemy", "aiohttp", "msgspec", "numpy", "_ssl"))
        parent.send_signal(signal.SIGKILL)
        await wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upload_decoder.close()


LIAR = """
import os, sys
sys.path.insert(0, {root!r})
from bot.pictures.uploads import image_decoding, sandbox_worker
image_decoding.prepare_pillow()
def decode_upload(kind, content):
    exec(content.decode(), globals())
    return said
image_decoding.decode_upload = decode_upload
image_decoding.prepare_pillow = lambda: None
sandbox_worker.main(2.0, 2**30)
"""
GOOD = "image_decoding.HEADER.pack(b'+', 0, 4, 4)"


def patch_decoder_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets new decoder processes run each upload as Python code. The code sets `said`, the reply."""

    code = LIAR.format(root=str(intake_module.ROOT)).replace("{", "{{").replace("}", "}}") + "#{!r}{!r}{!r}"
    monkeypatch.setattr(intake_module, "START_CODE", code)


async def test_a_patched_decoder_process_may_still_tell_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterpart of the lying scripts below: it proves that such code runs at all."""
    patch_decoder_process(monkeypatch)
    honest_script = f"from PIL import Image\nsaid = {GOOD} + image_decoding._encode_png(Image.new('RGB', (4, 4)))"
    async with open_decoder(timeout=20.0) as upload_decoder:
        assert (await upload_decoder.decode_picture(honest_script.encode())).width == 4


@pytest.mark.sampled
@pytest.mark.parametrize(
    "lying_script",
    [
        "said = b''",
        "said = b'+'",
        "said = b'?' * 99",
        f"said = {GOOD}",
        f"said = {GOOD} + b'no PNG'",
        f"said = {GOOD} + bytes(sandbox_worker.MAX_OUTPUT_BYTES)",
        "said = b'x'\nwhile True: os.write(ends, bytes(1 << 20))",
        "os.kill(os.getpid(), 11)",
        "os.abort()",
        "import time; time.sleep(60)",
        "os.setsid(); os.close(ends); import time; time.sleep(60)",
        "raise KeyboardInterrupt",
        "os.fork(); said = b''",
        "open('/etc/hostname')",
    ],
)
async def test_a_hostile_decoder_process_is_not_trusted(
    lying_script: str, monkeypatch: pytest.MonkeyPatch, wait_until: Until
) -> None:
    """A hostile picture controls the child, which now sends any reply."""
    patch_decoder_process(monkeypatch)
    async with open_decoder(timeout=2.0) as upload_decoder:
        with pytest.raises(UserError, match=r"broke off|too long"):
            await upload_decoder.decode_picture(
                lying_script.replace("ends", "sys._getframe(2).f_locals['sink']").encode()
            )
        await wait_until(lambda: len(decoder_processes(upload_decoder)) <= 1)


async def test_only_a_plain_png_is_accepted_from_a_decoder_process() -> None:
    rows = zlib.compress((b"\0" + bytes(30)) * 10)
    assert validate_png(raw_png(10, 10, 8, 2, rows), 10, RGB) == (10, 10)
    valid_png = raw_png(10, 10, 8, 2, rows)
    for invalid_png in (
        valid_png[:-1],
        valid_png + b"\0",
        valid_png[:40] + b"\1" + valid_png[41:],
        raw_png(11, 10, 8, 2, rows),
        raw_png(10, 10, 8, 0, rows),
        raw_png(10, 10, 8, 2, rows, chunk(b"tEXt", b"a\0b")),
        raw_png(10, 10, 8, 2, deflated_zeros(2**28)),
        raw_png(10, 10, 8, 2, zlib.compress((b"\5" + bytes(30)) * 10)),
        raw_png(10, 10, 8, 2, rows + b"\0"),
        raw_png(10, 10, 8, 2, zlib.compress((b"\0" + bytes(30)) * 9)),
        b"",
        valid_png[:8],
        valid_png[:8] + bytes(40),
    ):
        with pytest.raises(InvalidPng):
            validate_png(invalid_png, 10, RGB)
