"""Film files: read back, every format shows its frames for their durations, within its size limit."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from bot.domain.errors import UserError
from bot.pictures.animation import (
    FILM_FORMATS,
    FRAME_MS,
    HOLD_MS,
    MAX_FILM_BYTES,
    MAX_SIDE,
    MEDIA_TYPES,
    Animation,
    FilmFormat,
    available_formats,
    bound_size,
    check_film_format,
    encode_frames,
    encode_to_fit,
    frame_durations,
    join_animations,
    parse_film_format,
    select_frames,
)

PICTURES: tuple[FilmFormat, ...] = ("webp", "avif", "gif")


def read_film(payload: bytes, kind: FilmFormat) -> tuple[list[Image.Image], list[int]]:
    """Frames and their milliseconds, by Pillow; for an MP4 by FFmpeg, which counts equal frames as one."""
    if kind == "mp4":
        return _video(payload)
    frames = []
    times = []
    with Image.open(io.BytesIO(payload)) as film:
        assert film.format == kind.upper()
        for index in range(getattr(film, "n_frames", 1)):
            film.seek(index)
            film.load()
            frames.append(film.convert("RGB"))
            times.append(int(film.info.get("duration", 0)))
    return frames, times


def _video(payload: bytes) -> tuple[list[Image.Image], list[int]]:
    frames: list[Image.Image] = []
    times: list[int] = []
    with av.open(io.BytesIO(payload), "r") as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        for frame in container.decode(stream):
            picture = frame.to_image()
            if frames and np.abs(np.asarray(picture, int) - np.asarray(frames[-1], int)).mean() < 2:
                times[-1] += FRAME_MS
            else:
                frames.append(picture)
                times.append(FRAME_MS)
    return frames, times


def grey(size: tuple[int, int], value: int) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def make_animation(count: int = 8, size: tuple[int, int] = (64, 48), **options: object) -> Animation:
    return Animation(count, size, lambda index, size: grey(size, (20 + 25 * index) % 256), **options)  # type: ignore[arg-type]


def make_noisy_animation(count: int = 12, size: tuple[int, int] = (128, 128)) -> Animation:
    """Every frame is different noise, which compresses worst."""

    def draw(index: int, size: tuple[int, int]) -> Image.Image:
        noise_pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(noise_pixels)

    return Animation(count, size, draw)


def level(picture: Image.Image) -> float:
    return float(np.asarray(picture).mean())


@pytest.mark.parametrize("kind", FILM_FORMATS)
def test_every_format_shows_each_frame_for_its_duration_and_pauses_on_the_last(kind: FilmFormat) -> None:
    frames, times = read_film(encode_to_fit(make_animation(), kind), kind)
    assert [round((level(one) - 20) / 25) for one in frames] == list(range(8))
    pause = round(HOLD_MS / FRAME_MS) * FRAME_MS if kind == "mp4" else HOLD_MS
    assert times == [FRAME_MS] * 7 + [pause]
    assert {one.size for one in frames} == {(64, 48)}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_film_loops(kind: FilmFormat) -> None:
    film = encode_to_fit(make_animation(), kind)
    if kind == "avif":  # ISO/IEC 23008-12 has no loop but the edit list: flag 1 repeats it (ISO/IEC 14496-12, 8.6.6)
        offset = film.index(b"elst")
        assert film[offset + 5 : offset + 8] == b"\0\0\1"
        return
    with Image.open(io.BytesIO(film)) as image:
        assert image.info["loop"] == 0


@pytest.mark.sampled
@pytest.mark.parametrize("kind", FILM_FORMATS)
def test_the_same_frames_give_the_same_bytes_at_any_time(kind: FilmFormat) -> None:
    """AVIF and MP4 have a field for their time of creation."""
    first = encode_to_fit(make_noisy_animation(5), kind)
    time.sleep(1.1)
    assert encode_to_fit(make_noisy_animation(5), kind) == first


def test_a_video_begins_with_its_index() -> None:
    """A player can start with the first part of the file, at any length of the film."""
    for animation in (
        make_animation(1),
        make_noisy_animation(96, (64, 64)),
        make_animation(90, (16, 16), pauses={0: 60_000}),
    ):
        film = encode_to_fit(animation, "mp4", 1 << 30)
        assert film.index(b"moov") < film.index(b"mdat")


@pytest.mark.parametrize("kind", FILM_FORMATS)
def test_odd_sizes_and_single_frames_are_encoded(kind: FilmFormat) -> None:
    (single_frame,), _ = read_film(encode_to_fit(make_animation(1, (33, 17)), kind), kind)
    assert single_frame.size == ((34, 18) if kind == "mp4" else (33, 17))
    assert level(single_frame.crop((0, 0, 33, 17))) == pytest.approx(20, abs=4)
    assert len(read_film(encode_to_fit(make_animation(3, (1, 1)), kind), kind)[0]) == 3


SMALLEST = 0.1  # share of the whole film; every limit above it can be met
WHOLE = {kind: len(encode_to_fit(make_noisy_animation(), kind)) for kind in FILM_FORMATS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILM_FORMATS)
@settings(deadline=None, max_examples=12)
@given(share=st.floats(0.0, 1.2))
@example(share=1.0)
@example(share=0.02)
def test_no_film_exceeds_its_size_limit(kind: FilmFormat, share: float) -> None:
    limit = int(WHOLE[kind] * share)
    if share < SMALLEST:
        with suppress(UserError):
            assert len(encode_to_fit(make_noisy_animation(), kind, limit)) <= limit
        return
    film = encode_to_fit(make_noisy_animation(), kind, limit)
    assert len(film) <= limit
    frames, times = read_film(film, kind)
    assert times[-1] >= HOLD_MS - FRAME_MS
    assert len(frames) >= 2
    assert sum(times) == pytest.approx(11 * FRAME_MS + HOLD_MS, abs=FRAME_MS), "it lasts as long with fewer frames"


@pytest.mark.parametrize("kind", FILM_FORMATS)
def test_a_size_limit_takes_frames_first_then_pixels_then_quality(kind: FilmFormat) -> None:
    half, _ = read_film(encode_to_fit(make_noisy_animation(), kind, round(WHOLE[kind] * 0.7)), kind)
    assert (len(half), half[0].size) == (6, (128, 128))
    small, _ = read_film(encode_to_fit(make_noisy_animation(), kind, round(WHOLE[kind] * 0.25)), kind)
    assert len(small) == 4
    assert small[0].size < (128, 128)


def test_a_gif_loses_its_dithering_before_it_loses_frames() -> None:
    def draw(index: int, size: tuple[int, int]) -> Image.Image:
        gradient = np.linspace(0, 255, size[0])[None, :, None]
        down = np.linspace(0, 255, size[1])[:, None, None]
        pixels = np.concatenate(
            [(gradient + 0 * down + 5 * index) % 256, down + 0 * gradient, 0 * gradient + 0 * down], 2
        )
        return Image.fromarray(pixels.astype(np.uint8))

    animation = Animation(6, (128, 128), draw)
    full_film = encode_to_fit(animation, "gif")
    smaller_film = encode_to_fit(animation, "gif", len(full_film) - 1)
    assert len(read_film(smaller_film, "gif")[0]) == len(read_film(full_film, "gif")[0]) == 6
    errors = [_error(film, draw, animation) for film in (full_film, smaller_film)]
    assert errors[0] < errors[1], "to an eye, dithering is closer to the frames"


def _error(film: bytes, draw: Callable[[int, tuple[int, int]], Image.Image], animation: Animation) -> float:
    last = read_film(film, "gif")[0][-1].resize((32, 32), Image.Resampling.BOX)
    expected = draw(animation.count - 1, animation.size).resize((32, 32), Image.Resampling.BOX)
    return float(np.abs(np.asarray(last, float) - np.asarray(expected, float)).mean())


def test_a_gif_has_one_palette_for_all_frames() -> None:
    film = encode_frames([grey((32, 32), value) for value in (10, 120, 230)], [90] * 3, "gif")
    assert film[10] & 0x80, "a global palette (GIF89a, 18)"
    assert [round(level(one)) for one in read_film(film, "gif")[0]] == pytest.approx([10, 120, 230], abs=4)
    with Image.open(io.BytesIO(film)) as image:
        tables = []
        for index in range(3):
            image.seek(index)
            tables.append(image.global_palette is not None)  # type: ignore[attr-defined]
    assert all(tables)


def test_an_unavailable_format_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_formats() == FILM_FORMATS
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"darkroom-bot\[mp4\]") as error:
        encode_to_fit(make_animation(), "mp4")
    assert error.value.status == 422
    assert available_formats() == ("webp", "avif", "gif")
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(UserError, match="without AVIF"):
        check_film_format("avif")
    assert available_formats() == ("webp", "gif")


def test_formats_are_accepted_as_members_write_them() -> None:
    assert [parse_film_format(text) for text in ("GIF", " .mp4", "WebP", "avif")] == ["gif", "mp4", "webp", "avif"]
    assert MEDIA_TYPES.keys() == set(FILM_FORMATS)
    for unknown_format in ("", "mov", "image/gif"):
        with pytest.raises(UserError, match="webp, avif, gif or mp4"):
            parse_film_format(unknown_format)


def test_frames_of_several_sizes_are_rejected() -> None:
    for frames, times in (([], []), ([grey((8, 8), 0), grey((9, 8), 0)], [90, 90]), ([grey((8, 8), 0)], [])):
        with pytest.raises(ValueError, match="one size"):
            encode_frames(frames, times, "webp")


@given(st.integers(1, 96), st.integers(1, 12), st.sets(st.integers(0, 95), max_size=4))
def test_thinning_keeps_the_end_the_pauses_and_the_duration(count: int, interval: int, pauses: set[int]) -> None:
    pause_times = {index: 700 for index in pauses if index < count - 1}
    animation = Animation(count, (8, 8), lambda _, size: grey(size, 0), pause_times)
    places = select_frames(animation, interval)
    assert places[-1] == count - 1
    assert pause_times.keys() <= set(places)
    times = frame_durations(animation, places)
    assert len(times) == len(places)
    assert times[-1] == HOLD_MS
    full_duration = (count - 1) * FRAME_MS if len(places) > 1 else 0
    assert sum(times[:-1]) == full_duration + sum(pause_times.values())


def test_joined_reels_have_the_size_of_the_second() -> None:
    joined = join_animations(make_animation(3, (16, 16)), make_animation(2, (40, 20), pauses={0: 5}), 300)
    assert (joined.count, joined.size, dict(joined.pauses)) == (5, (40, 20), {2: 300, 3: 5})
    assert [round((level(joined.draw(index, (40, 20))) - 20) / 25) for index in range(5)] == [0, 1, 2, 0, 1]


def test_a_frame_has_a_largest_size() -> None:
    assert bound_size((2064, 1000)) == (MAX_SIDE, 500)
    assert bound_size((64, 64)) == (64, 64)
    assert MAX_FILM_BYTES == 10 * 1024 * 1024
