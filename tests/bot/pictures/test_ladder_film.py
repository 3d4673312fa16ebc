"""Films: every keyframe in order, a longer last frame, a size limit, and ladders that break the contract."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures import ladder_film as film_module
from bot.pictures.animation import FRAME_MS, HOLD_MS, MAX_SIDE
from bot.pictures.captions import FilmCaption, list_caption_lines
from bot.pictures.grid import GAP
from bot.pictures.image_codec import UnreadableImage, encode_image
from bot.pictures.ladder_film import list_keyframe_steps, render_film, render_keyframe
from engine.contract import Keyframe, Ladder, encode

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def thumbnail(grey: int, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, grey).convert("RGB").save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def noisy_thumbnail(seed: int) -> bytes:
    """A thumbnail that does not compress."""
    buffer = io.BytesIO()
    state = seed + 1
    values = bytearray()
    for _ in range(64 * 64 * 3):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        values.append(state >> 16 & 255)
    Image.frombytes("RGB", (64, 64), bytes(values)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def ladder(image: int = 0, count: int = 6, first: int = 0, pictures: list[bytes] | None = None) -> bytes:
    pictures = pictures or [thumbnail(first + 20 * index) for index in range(count)]
    keyframes = tuple(Keyframe(step=index * 10, thumbnail=one) for index, one in enumerate(pictures))
    return encode(Ladder(job=JOB, image=image, total_steps=1000, shape=(16, 8, 8), keyframes=keyframes))


def frames(payload: bytes) -> list[tuple[Image.Image, int]]:
    shades = []
    with Image.open(io.BytesIO(payload)) as film:
        assert film.format == "WEBP"
        for index in range(getattr(film, "n_frames", 1)):
            film.seek(index)
            film.load()
            shades.append((film.convert("RGB"), film.info.get("duration", 0)))
    return shades


def test_captions_stand_below_the_frames_from_their_step_on() -> None:
    captions = [
        FilmCaption(15, "fox 0.4, terrier 0.6", "Ann"),
        FilmCaption(18, "keeps image 2"),
        FilmCaption(40, "blue", "Bö"),
    ]
    steps = list_keyframe_steps([ladder()])
    assert list_caption_lines(captions, steps) == [
        "",
        "",
        *["Ann: fox 0.4, terrier 0.6 | keeps image 2"] * 2,
        *["Bö: blue"] * 2,
    ]
    plain = frames(render_film([ladder()]))
    captioned = frames(render_film([ladder()], captions=captions))
    (width, height), (wide, high) = plain[0][0].size, captioned[0][0].size
    assert (wide, high > height + 20) == (width, True)
    durations = [duration for _, duration in captioned]
    assert [duration > FRAME_MS for duration in durations[:5]] == [False, False, True, False, True]
    bars = [picture.crop((0, height + 4, wide, high - 8)) for picture, _ in captioned]
    brightness = [int(np.asarray(bar.convert("L")).max()) for bar in bars]
    assert max(brightness[:2]) < 100 < min(brightness[2:]), "letters appear with the first caption"
    assert abs(grey(captioned[0][0], (10, 10)) - grey(plain[0][0], (10, 10))) < 8, "the picture itself stays"


def grey(picture: Image.Image, position: tuple[int, int]) -> int:
    value = picture.getpixel(position)
    assert isinstance(value, tuple)
    return int(value[0])


def test_a_film_shows_every_keyframe_and_pauses_on_the_last() -> None:
    pairs = frames(render_film([ladder()]))
    assert [round(grey(one, (128, 128)) / 20) for one, _ in pairs] == [0, 1, 2, 3, 4, 5]
    assert [duration for _, duration in pairs] == [FRAME_MS] * 5 + [HOLD_MS]
    assert pairs[0][0].size == (256, 256)


def test_images_are_placed_by_number_whatever_their_order() -> None:
    ladders = [ladder(2, first=100), ladder(0), ladder(1, first=50)]
    last = frames(render_film(ladders))[-1][0]
    assert last.size == (512 + GAP, 512 + GAP)
    assert grey(last, (100, 100)) == pytest.approx(100, abs=4)
    assert grey(last, (400, 100)) == pytest.approx(150, abs=4)
    assert grey(last, (100, 400)) == pytest.approx(200, abs=4)
    assert render_film(ladders) == render_film(ladders[::-1])


def test_a_shorter_ladder_repeats_its_last_keyframe() -> None:
    ladders = [ladder(0, 6), ladder(1, 3, first=100)]
    last = frames(render_film(ladders))[-1][0]
    assert (grey(last, (100, 100)), grey(last, (400, 100))) == (pytest.approx(100, abs=4), pytest.approx(140, abs=4))
    assert list_keyframe_steps(ladders) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("side", [256, 512])
def test_the_last_frame_shows_the_finished_pictures(side: int) -> None:
    """A small model's pictures are larger than its keyframes: enlarged keyframes would look blurred there."""
    chart = np.zeros((side, side, 3), dtype=np.uint8)
    chart[:, side // 2 :] = 255
    final_pictures = [encode_image(Image.fromarray(chart), "PNG")] * 2
    pairs = frames(render_film([ladder(0), ladder(1)], finals=final_pictures))
    assert [round(grey(one, (128, 128)) / 20) for one, _ in pairs[:-1]] == [0, 1, 2, 3, 4]
    assert len({one.size for one, _ in pairs}) == 1
    last = pairs[-1][0]
    assert (grey(last, (120, 128)), grey(last, (136, 128))) == (pytest.approx(0, abs=9), pytest.approx(255, abs=9))
    with pytest.raises(UnreadableImage):
        render_film([ladder()], finals=[b"no picture"])


def test_each_large_finished_picture_is_reduced_before_the_next_is_opened() -> None:
    large = encode_image(Image.new("RGB", (2048, 1024)), "PNG")
    assert film_module._open_scaled(large, film_module.MAX_FINAL_SIDE).size == (
        film_module.MAX_FINAL_SIDE,
        film_module.MAX_FINAL_SIDE // 2,
    )
    pairs = frames(render_film([ladder(0), ladder(1)], finals=[large, large]))
    assert len({one.size for one, _ in pairs}) == 1


def test_a_single_keyframe_is_a_still_grid() -> None:
    ladders = [ladder(0), ladder(1, first=100)]
    ((frame, _),) = frames(render_keyframe(ladders, 2))
    assert frame.size == (512 + GAP, 256)
    assert (grey(frame, (100, 100)), grey(frame, (400, 100))) == (pytest.approx(40, abs=4), pytest.approx(140, abs=4))
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            render_keyframe(ladders, outside)


def test_a_film_stays_within_its_size_limit() -> None:
    ladders = [
        ladder(image, pictures=[noisy_thumbnail(image * 10 + index) for index in range(5)]) for image in range(4)
    ]
    full_film = render_film(ladders)
    small = render_film(ladders, limit=len(full_film) // 4)
    assert len(small) <= len(full_film) // 4
    assert frames(small)[-1][1] == HOLD_MS
    with pytest.raises(UserError, match="too large") as error:
        render_film(ladders, limit=100)
    assert error.value.status == 413


def test_thumbnails_of_any_sizes_make_frames_of_one_bounded_size() -> None:
    """They come from workers: a large one among small ones neither fails nor makes a film of gigabytes."""
    sizes = [(64, 64), (1024, 1024), (8, 640), (512, 256)]
    odd = ladder(pictures=[thumbnail(40, size) for size in sizes])
    pairs = frames(render_film([odd, odd, odd]))
    assert {one.size for one, _ in pairs} == {frames(render_film([odd, odd, odd]))[0][0].size}
    assert max(pairs[0][0].size) <= MAX_SIDE
    huge_ladder = ladder(pictures=[thumbnail(40 + index, (1000, 1000)) for index in range(3)])
    assert frames(render_film([huge_ladder] * 4))[0][0].size == (MAX_SIDE, MAX_SIDE)


def test_an_invalid_ladder_is_refused() -> None:
    oversized_ladder = ladder(pictures=[thumbnail(9, (1100, 1000))])
    for invalid_ladder in (
        b"",
        b"\x00nonsense",
        ladder(count=6)[:-9],
        ladder(pictures=[b"no picture"]),
        oversized_ladder,
    ):
        with pytest.raises(UnreadableImage):
            render_film([invalid_ladder])
    with pytest.raises(UnreadableImage, match="without keyframes"):
        render_film([encode(Ladder(job=JOB, image=0, total_steps=10, shape=(1,), keyframes=()))])
    for number in (0, 5):
        with pytest.raises(ValueError, match="1 to 4"):
            render_film([ladder()] * number)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_any_ladders_make_a_film_as_long_as_the_longest(counts: list[int]) -> None:
    ladders = [ladder(image, count) for image, count in enumerate(counts)]
    assert len(frames(render_film(ladders, 64))) == max(counts) == len(list_keyframe_steps(ladders))
