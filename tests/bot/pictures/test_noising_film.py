"""The noising film: equation 4 holds for every frame; its first and last frame; its way back along a ladder."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures.animation import FILM_FORMATS, FRAME_MS, HOLD_MS, TURN_MS, FilmFormat
from bot.pictures.image_codec import UnreadableImage, decode_image, encode_image
from bot.pictures.ladder_film import (
    FRAMES,
    MAX_SIDE,
    add_noise,
    animate_dissolve,
    cosine_alpha,
    derive_seed,
    render_dissolve,
    render_dissolve_and_back,
    to_image,
)
from engine.contract import Keyframe, Ladder, encode

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def picture(size: tuple[int, int] = (256, 256)) -> bytes:
    """A slope from dark to light with a red square."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:] = np.linspace(30, 220, size[0])[None, :, None]
    pixels[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = (220, 30, 30)
    return encode_image(Image.fromarray(pixels), "PNG")


def ladder(count: int = 5) -> bytes:
    keyframes = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (10 + 40 * index,) * 3).save(buffer, "WEBP", lossless=True)
        keyframes.append(Keyframe(step=1 + index, thumbnail=buffer.getvalue()))
    return encode(Ladder(job=JOB, image=0, total_steps=count, shape=(4, 8, 8), keyframes=tuple(keyframes)))


def frames(payload: bytes) -> tuple[list[Image.Image], list[int]]:
    shades = []
    durations = []
    with Image.open(io.BytesIO(payload)) as film:
        for index in range(getattr(film, "n_frames", 1)):
            film.seek(index)
            film.load()
            shades.append(film.convert("RGB"))
            durations.append(int(film.info["duration"]))
    return shades, durations


def array(one: Image.Image) -> np.ndarray:
    return np.asarray(one, dtype=np.float64)


def test_the_first_frame_is_the_picture_and_the_last_is_unit_noise() -> None:
    animation = animate_dissolve(picture())
    assert (animation.count, animation.size) == (FRAMES, (256, 256))
    assert animation.draw(0, animation.size).tobytes() == decode_image(picture()).tobytes()
    noise = add_noise(np.asarray(decode_image(picture())), derive_seed(picture()), 0.0)
    n = noise.size
    assert animation.draw(FRAMES - 1, animation.size).tobytes() == to_image(noise).tobytes()
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert noise.var() == pytest.approx(1.0, abs=4 * math.sqrt(2 / n))
    for deviations in (1.0, 2.0, 3.0):  # as many values lie within one sigma as in a normal distribution
        expected = math.erf(deviations / math.sqrt(2))
        assert (np.abs(noise) < deviations).mean() == pytest.approx(
            expected, abs=4 * math.sqrt(expected * (1 - expected) / n)
        )
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 0], noise[..., 1])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.size), "neighbours and colours are uncorrelated"
    scaled_pixels = array(decode_image(picture())) / 127.5 - 1
    assert abs((noise * scaled_pixels).mean()) < 4 / math.sqrt(n), "the noise is uncorrelated with the picture"


@settings(deadline=None, max_examples=20)
@given(st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_every_frame_has_the_mean_and_the_variance_of_equation_4(level: float, seed: int) -> None:
    pixels = np.asarray(decode_image(picture((128, 96))))
    scaled_pixels = pixels / 127.5 - 1.0
    noise = add_noise(pixels, seed, level) - math.sqrt(level) * scaled_pixels
    n = noise.size
    variance = 1.0 - level
    assert abs(noise.mean()) < 6 * math.sqrt(variance / n) + 1e-6
    assert noise.var() == pytest.approx(variance, abs=6 * variance * math.sqrt(2 / n) + 1e-6)


def test_the_seed_decides_the_noise_of_all_frames() -> None:
    pixels = np.asarray(decode_image(picture((64, 64))))
    half = add_noise(pixels, 5, 0.5)
    without_noise = add_noise(pixels, 5, 0.0)
    scaled_pixels = pixels / 127.5 - 1.0
    assert np.allclose((half - math.sqrt(0.5) * scaled_pixels) / math.sqrt(0.5), without_noise, atol=1e-5)
    assert not np.allclose(add_noise(pixels, 6, 0.0), without_noise)
    assert derive_seed(picture()) == derive_seed(picture()) != derive_seed(picture((64, 64)))


def test_the_cosine_schedule_matches_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    reference = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()
    model_alphas = [cosine_alpha((step + 1) / 1000) for step in range(1000)]
    assert np.allclose(
        reference[:-1], model_alphas[:-1], atol=1e-5
    )  # diffusers clips the last step, which leaves no signal
    assert (cosine_alpha(0.0), cosine_alpha(1.0)) == (1.0, 0.0)


@pytest.mark.parametrize("kind", FILM_FORMATS)
def test_a_noising_film_is_made_in_every_format(kind: FilmFormat) -> None:
    film = render_dissolve([picture((96, 64))], frames=6, film_format=kind)
    assert film == render_dissolve([picture((96, 64))], frames=6, film_format=kind)
    if kind == "mp4":
        return
    film_frames, durations = frames(film)
    assert durations == [FRAME_MS + TURN_MS, *[FRAME_MS] * 4, HOLD_MS]
    assert {one.size for one in film_frames} == {(384, 256)}
    first = array(animate_dissolve(picture((96, 64))).draw(0, (384, 256)))
    assert np.abs(array(film_frames[0]) - first).mean() < 4
    spread = [array(one.convert("L")).std() for one in film_frames]
    assert np.corrcoef(array(film_frames[-1]).ravel(), first.ravel())[0, 1] < 0.05
    assert spread[-1] > 30


def test_a_smaller_film_draws_its_noise_at_its_own_size() -> None:
    """Scaling a noisy frame down would average its noise to grey."""
    full_film = render_dissolve([picture()], frames=8)
    small = render_dissolve([picture()], frames=8, limit=len(full_film) // 10)
    film_frames, durations = frames(small)
    assert len(small) <= len(full_film) // 10
    assert film_frames[0].width < 256
    assert durations[-1] == HOLD_MS
    assert array(film_frames[-1].convert("L")).std() > 30


def test_a_there_and_back_film_ends_with_its_first_picture() -> None:
    film = render_dissolve_and_back([picture(), ladder()], frames=8)
    film_frames, durations = frames(film)
    assert len(film_frames) == 8 + 5
    assert durations == [FRAME_MS + TURN_MS, *[FRAME_MS] * 6, FRAME_MS + TURN_MS, *[FRAME_MS] * 4, HOLD_MS]
    assert np.abs(array(film_frames[0]) - array(film_frames[-1])).mean() < 3
    assert np.corrcoef(array(film_frames[0]).ravel(), array(film_frames[7]).ravel())[0, 1] < 0.05
    assert [round((array(one).mean() - 10) / 40) for one in film_frames[8:12]] == [0, 1, 2, 3]
    small_film = render_dissolve_and_back([picture(), ladder()], frames=8, limit=len(film) // 3)
    assert len(small_film) <= len(film) // 3
    small_frames, times = frames(small_film)
    assert times[0] >= FRAME_MS + TURN_MS
    assert times[-1] == HOLD_MS
    assert np.corrcoef(array(small_frames[0]).ravel(), array(small_frames[-1]).ravel())[0, 1] > 0.9


def test_sizes_are_bounded_and_invalid_input_is_refused() -> None:
    assert animate_dissolve(picture((2000, 1000))).size == (MAX_SIDE, MAX_SIDE // 2)
    assert max(animate_dissolve(picture((3000, 4))).size) == MAX_SIDE
    with pytest.raises(UnreadableImage):
        render_dissolve([b"no picture"])
    with pytest.raises(UnreadableImage):
        render_dissolve_and_back([picture(), b"no ladder"])
    with pytest.raises(UserError, match="too large"):
        render_dissolve([picture()], limit=500)
