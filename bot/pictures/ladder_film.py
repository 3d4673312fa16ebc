"""Films of a job, and its contact sheet: how a picture appeared, how noise buries it, the way between two.

A ladder is the list of a job's previews by step. Pure: pictures come in, frames go out.

Films from the ladders of a job's images, and the grid at one keyframe.

Films of a picture dissolving into noise by the forward process, in pixel space.

q(x_t | x_0) = N(√ᾱ_t · x_0, (1 - ᾱ_t) · I) (Ho et al. 2020, equation 4), with pixels from -1 to 1 and one draw of noise
for all t: each frame has that distribution, and the eye can follow it. A model adds noise to latents, and a ladder
shows estimates of x0. So this noise is not the noise from which the picture was made, nor the noise at the start of its
film.

The interpolation film: the pictures of a walk in order, cross-faded, to the end and back.

Labelled pictures: the contact sheet of a ladder's keyframes, and pictures side by side.

Every picture is opened within limits and scaled down before the next is opened. CPU-bound: async callers use a thread.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bot.domain.errors import UserError
from bot.pictures.animation import (
    HOLD_MS,
    MAX_FILM_BYTES,
    TURN_MS,
    Animation,
    FilmFormat,
    Size,
    bound_size,
    check_film_format,
    encode_to_fit,
    join_animations,
)
from bot.pictures.captions import FilmCaption, add_captions, fit_label
from bot.pictures.grid import CELL_SIZE, GAP, MAX_GRID_SIDE, compose_images, scale_size
from bot.pictures.image_codec import BACKGROUND, ImageFormat, UnreadableImage, decode_image, encode_image, resize_image
from bot.pictures.ladder_keyframes import NO_KEYFRAMES, KeyframeThumbnail, read_keyframes
from engine.contract import MAX_COUNT, Keyframe, Ladder, MalformedMessage, decode, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FINAL_SIDE = 1024  # pixels on the longer side of a finished picture in a film: four are in memory at once
MAX_THUMBNAIL_PIXELS = 1024 * 1024  # pixels


def render_film(
    ladders: Sequence[bytes],
    size: int = CELL_SIZE,
    *,
    finals: Sequence[bytes] = (),
    film_format: FilmFormat = "webp",
    limit: int = MAX_FILM_BYTES,
    captions: Sequence[FilmCaption] = (),
) -> bytes:
    """Return an animation of up to four images side by side, at most `limit` bytes; the last frame is held.

    `ladders`: encoded `Ladder`, one per image, in any order. `size`: pixels of a cell's shorter side.
    `finals`: the finished pictures in the order of the images, shown as the last frame; a small model draws them larger
    than its keyframes. `captions`: by rising steps, each shown below the frames from its step on. Raises
    `UnreadableImage` for ladders that break the contract. Raises `UserError`: 422 if this machine cannot encode the
    format, 413 if even the smallest film does not fit.
    """
    check_film_format(film_format)
    return encode_to_fit(animate_ladders(ladders, size, finals=finals, captions=captions), film_format, limit)


def animate_ladders(
    ladders: Sequence[bytes],
    size: int = CELL_SIZE,
    *,
    finals: Sequence[bytes] = (),
    captions: Sequence[FilmCaption] = (),
) -> Animation:
    """Return the frames of `render_film`. Raises `UnreadableImage`; drawing a frame may raise it, too."""
    animation = _animate_keyframes(ladders, size, finals)
    return add_captions(animation, captions, *_read_scale(ladders)) if captions else animation


def _read_scale(ladders: Sequence[bytes]) -> tuple[list[int], int]:
    """Return the step of each frame, and the number of all steps."""
    return list_keyframe_steps(ladders), max(ladder.total_steps for ladder in _decode_ladders(ladders))


def _animate_keyframes(ladders: Sequence[bytes], size: int, finals: Sequence[bytes]) -> Animation:
    keyframes = _sorted_keyframes(ladders)
    final_images = [_open_final(picture) for picture in finals]
    last_index = max(map(len, keyframes)) - 1

    def draw(index: int, frame_size: Size) -> Image.Image:
        shows_final = index == last_index and final_images
        return resize_image(
            compose_images(final_images, size) if shows_final else _keyframe_grid(keyframes, index, size), frame_size
        )

    return Animation(last_index + 1, bound_size(_keyframe_grid(keyframes, last_index, size).size), draw)


def drop_latents(ladders: Sequence[bytes]) -> list[bytes]:
    """Return the ladders without latents, which are nearly all of their bytes. Raises `UnreadableImage`."""
    return [encode(_drop_ladder_latents(ladder)) for ladder in _decode_ladders(ladders)]


def _drop_ladder_latents(ladder: Ladder) -> Ladder:
    keyframes = (
        msgspec.structs.replace(keyframe, latent=None, history=None, estimate=None) for keyframe in ladder.keyframes
    )
    return msgspec.structs.replace(ladder, keyframes=tuple(keyframes))


def list_keyframe_steps(ladders: Sequence[bytes]) -> list[int]:
    """Return the step of each keyframe, for a slider; of the image with the most keyframes."""
    return [keyframe.step for keyframe in max(_sorted_keyframes(ladders), key=len)]


def render_keyframe(
    ladders: Sequence[bytes],
    index: int,
    size: int = CELL_SIZE,
    *,
    image_format: ImageFormat = "WEBP",
    quality: int = 85,
) -> bytes:
    """Return the grid at keyframe `index`, from 0; an image with fewer shows its last. Raises `IndexError`."""
    keyframes = _sorted_keyframes(ladders)
    if not 0 <= index < max(map(len, keyframes)):
        raise IndexError(index)
    return encode_image(_keyframe_grid(keyframes, index, size), image_format, quality)


def _decode_ladders(ladders: Sequence[bytes]) -> list[Ladder]:
    if not 1 <= len(ladders) <= MAX_COUNT:
        raise ValueError(f"a film has 1 to {MAX_COUNT} images, not {len(ladders)}")
    try:
        return sorted((decode(ladder, Ladder) for ladder in ladders), key=lambda ladder: ladder.image)
    except MalformedMessage as error:
        raise UnreadableImage(f"not a ladder: {error}") from error


def _sorted_keyframes(ladders: Sequence[bytes]) -> list[tuple[Keyframe, ...]]:
    decoded = _decode_ladders(ladders)
    if not all(ladder.keyframes for ladder in decoded):
        raise UnreadableImage("a ladder without keyframes")
    return [tuple(sorted(ladder.keyframes, key=lambda keyframe: keyframe.step)) for ladder in decoded]


def _open_final(picture: bytes) -> Image.Image:
    """Scale a picture down before the next is opened: four of 4096 pixels a side would take 200 MB."""
    pixels = decode_image(picture)
    return resize_image(pixels, scale_size(*pixels.size, 1, MAX_FINAL_SIDE))


def _keyframe_grid(keyframes: list[tuple[Keyframe, ...]], index: int, size: int) -> Image.Image:
    chosen = [ladder[min(index, len(ladder) - 1)] for ladder in keyframes]
    return compose_images([decode_image(keyframe.thumbnail, MAX_THUMBNAIL_PIXELS) for keyframe in chosen], size)


FRAMES = 48
MAX_FRAMES = 96
MAX_SIDE = 512  # pixels: noise does not compress, and more of it shows nothing new
COSINE_OFFSET = 0.008  # s of the cosine schedule


def render_dissolve(
    png: bytes,
    seed: int,
    *,
    frames: int = FRAMES,
    alphas: Sequence[float] = (),
    film_format: FilmFormat = "webp",
    limit: int = MAX_FILM_BYTES,
) -> bytes:
    """Return an animation of a picture becoming noise, at most `limit` bytes.

    The first frame is the picture; the last is held. `seed`: of the noise, 0 or more. `frames`: 2 to 96. `alphas`: a
    model's schedule, ᾱ of each of its steps from clear to noisy (diffusers: `alphas_cumprod`), of any length; empty
    means `cosine_alpha`. Raises `UnreadableImage` for bytes that are no picture, `ValueError` for numbers out of range,
    `UserError` as `encode_to_fit` does.
    """
    check_film_format(film_format)
    return encode_to_fit(animate_dissolve(png, seed, frames=frames, alphas=alphas), film_format, limit)


def render_dissolve_and_back(
    png: bytes,
    ladder: bytes,
    seed: int,
    *,
    frames: int = FRAMES,
    alphas: Sequence[float] = (),
    film_format: FilmFormat = "webp",
    limit: int = MAX_FILM_BYTES,
) -> bytes:
    """Return `render_dissolve`, then the film of the picture's ladder, which ends with the picture. Raises what both
    raise.
    """
    check_film_format(film_format)
    return_film = animate_ladders([ladder], finals=[png])
    return_film = replace(return_film, size=bound_size(return_film.size, MAX_SIDE))
    return encode_to_fit(
        join_animations(animate_dissolve(png, seed, frames=frames, alphas=alphas), return_film), film_format, limit
    )


def animate_dissolve(png: bytes, seed: int, *, frames: int = FRAMES, alphas: Sequence[float] = ()) -> Animation:
    """Return the frames of `render_dissolve`. It draws noise at a frame's size: scaled down afterwards, noise would
    turn grey.
    """
    levels = _alpha_levels(frames, alphas)
    pixels = decode_image(png)
    size = scale_size(*pixels.size, CELL_SIZE, MAX_SIDE)
    pixels = resize_image(pixels, size)

    def draw(index: int, frame_size: Size) -> Image.Image:
        clean = resize_image(pixels, frame_size)
        return clean if index == 0 else to_image(add_noise(np.asarray(clean), seed, levels[index]))

    return Animation(frames, size, draw, {0: TURN_MS})


def add_noise(pixels: NDArray[np.uint8], seed: int, level: float) -> NDArray[np.float32]:
    """Return x_t for ᾱ_t = `level`, of pixels 0 to 255. A seed and a shape give the same noise at every level."""
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    clean = pixels.astype(np.float32) / 127.5 - 1.0
    return (math.sqrt(level) * clean + math.sqrt(1.0 - level) * noise).astype(np.float32, copy=False)


def to_image(values: NDArray[np.float32]) -> Image.Image:
    """Return values from -1 to 1 as a picture; values outside are clipped."""
    return Image.fromarray(np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8))


def cosine_alpha(fraction: float) -> float:
    """Return ᾱ at a fraction of the schedule, from 1 to 0 (Nichol and Dhariwal 2021, equation 17)."""
    value, start = (
        math.cos((point + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2 for point in (fraction, 0.0)
    )
    return min(1.0, max(0.0, value / start)) if fraction < 1.0 else 0.0


def derive_seed(picture: bytes) -> int:
    """Return a 32-bit seed derived from the picture: it dissolves in the same way each time."""
    return int.from_bytes(hashlib.sha256(picture).digest()[:4], "big")


def _alpha_levels(frames: int, alphas: Sequence[float]) -> list[float]:
    """Return ᾱ of each frame: first the picture, then levels spread evenly over the schedule's steps."""
    if not 2 <= frames <= MAX_FRAMES:
        raise ValueError(f"2 to {MAX_FRAMES} frames, not {frames}")
    if not alphas:
        return [cosine_alpha(index / (frames - 1)) for index in range(frames)]
    if not all(0.0 <= after <= before <= 1.0 for before, after in zip(alphas, [*alphas[1:], alphas[-1]], strict=True)):
        raise ValueError("a schedule's alphas lie between 1 and 0 and never grow")
    last = len(alphas) - 1
    return [1.0, *(alphas[round(last * index / (frames - 1))] for index in range(1, frames))]


FRAMES_BETWEEN = 3  # frames from one picture to the next
MIN_SIDE = 256


def render_interpolation_film(
    pictures: Sequence[bytes], *, film_format: FilmFormat = "webp", limit: int = MAX_FILM_BYTES
) -> bytes:
    """Return two to sixteen pictures of one size as a looping film, at most `limit` bytes.

    The film pauses at both ends. Raises `UnreadableImage` for bytes that are no picture, and `ValueError` for fewer
    than two. Raises `UserError`: 422 if this machine cannot encode the format, 413 if even the smallest film does not
    fit.
    """
    return encode_to_fit(animate_walk(pictures), film_format, limit)


def animate_walk(pictures: Sequence[bytes]) -> Animation:
    """Return the frames of `render_interpolation_film`."""
    if len(pictures) < 2:
        raise ValueError("a walk has two pictures at least")
    tiles = [decode_image(picture) for picture in pictures]
    width, height = tiles[0].size
    scale = max(1.0, MIN_SIDE / min(width, height))
    size = bound_size((round(width * scale), round(height * scale)), MAX_SIDE)
    images = [resize_image(tile, size) for tile in tiles]
    last_position = (len(images) - 1) * FRAMES_BETWEEN

    @lru_cache(maxsize=1)
    def frame_at(position: int) -> Image.Image:
        picture_index, step = divmod(position, FRAMES_BETWEEN)
        if not step:
            return images[picture_index]
        return Image.blend(images[picture_index], images[picture_index + 1], step / FRAMES_BETWEEN)

    def draw(index: int, frame_size: Size) -> Image.Image:
        return resize_image(frame_at(last_position - abs(last_position - index)), frame_size)

    return Animation(2 * last_position + 1, size, draw, {last_position: HOLD_MS})


MAX_CELLS = 12  # cells of a contact sheet
SHEET_CELL_SIZE = 192  # pixels of a cell's longer side
HEIGHT_RANGE = (256, 768)  # least and most pixels of the height of pictures side by side
MIN_WIDTH = 96  # pixels: the least width of a picture beside others, for its label
# colour and size of the text
_TEXT_COLOUR = (232, 232, 236)
_SMALL_FONT = 18
_LARGE_FONT = 22


def make_contact_sheet(ladder: bytes, image_format: ImageFormat = "WEBP") -> bytes:
    """Return the keyframes that can be branched, each labelled with its step: up to 12, in rows of up to four.

    If there are more, choose 12 from the first to the last. Raises `UserError` (404) if there are none,
    `UnreadableImage` for a bad thumbnail.
    """
    keyframes = [keyframe for keyframe in read_keyframes(ladder) if keyframe.can_branch]
    if not keyframes:
        raise UserError(NO_KEYFRAMES, 404)
    cells = [_make_cell(keyframe.thumbnail, f"step {keyframe.step}") for keyframe in _pick_evenly(keyframes)]
    columns = min(4, len(cells)) if len(cells) != 5 else 3
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), BACKGROUND)
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % columns * (width + GAP), index // columns * (height + GAP)))
    return encode_image(sheet, image_format, 85)


def compose_side_by_side(pictures: Sequence[bytes], labels: Sequence[str]) -> bytes:
    """Return 2 to 4 pictures side by side at equal height, each with its label under it, as PNG.

    The height is that of the highest, between 256 and 768 pixels, or less if together they would be wider than 4096. It
    cuts a label that is too long for its picture. Characters outside ASCII are dropped, since the font has no others.
    Raises `ValueError` for another number of pictures, `UnreadableImage` for bytes that are no picture.
    """
    if not 2 <= len(pictures) <= 4 or len(labels) != len(pictures):
        raise ValueError("2 to 4 pictures are compared, each with a label")
    images = [_open_bounded(image) for image in pictures]
    height = min(HEIGHT_RANGE[1], max(HEIGHT_RANGE[0], *(image.height for image in images)))
    widths = [height * image.width / image.height for image in images]
    scale = min(1.0, (MAX_GRID_SIDE - GAP * 3 - MIN_WIDTH * 4) / sum(widths))
    tiles = [
        _add_label(
            resize_image(image, (max(1, round(width * scale)), max(1, round(height * scale)))), label, _LARGE_FONT
        )
        for image, width, label in zip(images, widths, labels, strict=True)
    ]
    canvas = Image.new("RGB", (sum(image.width + GAP for image in tiles) - GAP, tiles[0].height), BACKGROUND)
    x = 0
    for tile in tiles:
        canvas.paste(tile, (x, 0))
        x += tile.width + GAP
    return encode_image(canvas, "PNG")


def _pick_evenly(keyframes: Sequence[KeyframeThumbnail]) -> list[KeyframeThumbnail]:
    if len(keyframes) <= MAX_CELLS:
        return list(keyframes)
    return [keyframes[round(index * (len(keyframes) - 1) / (MAX_CELLS - 1))] for index in range(MAX_CELLS)]


def _make_cell(thumbnail: bytes, label: str) -> Image.Image:
    pixels = decode_image(thumbnail, MAX_THUMBNAIL_PIXELS)
    return _add_label(
        resize_image(pixels, scale_size(*pixels.size, SHEET_CELL_SIZE, SHEET_CELL_SIZE)), label, _SMALL_FONT
    )


def _open_bounded(picture: bytes) -> Image.Image:
    pixels = decode_image(picture)
    return resize_image(pixels, scale_size(*pixels.size, 1, MAX_GRID_SIDE // 4))


def _add_label(picture: Image.Image, label: str, size: int) -> Image.Image:
    """Return the picture with its label centred below, at least as wide as a label needs."""
    width = max(picture.width, MIN_WIDTH)
    label_height = size * 3 // 2
    canvas = Image.new("RGB", (width, picture.height + label_height), BACKGROUND)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    font = ImageFont.load_default(size)
    text = fit_label(label, font, width - 8)
    ImageDraw.Draw(canvas).text(
        (width // 2, picture.height + label_height // 2), text, fill=_TEXT_COLOUR, font=font, anchor="mm"
    )
    return canvas
