"""Keyframes to branch from: their list, the nearest one, their contact sheet; and pictures side by side."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures.grid import GAP, MAX_GRID_SIDE
from bot.pictures.image_codec import BACKGROUND, UnreadableImage, decode_image
from bot.pictures.ladder_film import HEIGHT_RANGE, MAX_CELLS, SHEET_CELL_SIZE, compose_side_by_side, make_contact_sheet
from bot.pictures.ladder_keyframes import branch_steps, nearest_branch_step, read_keyframes
from engine.batching import trajectory as engines
from engine.contract import BillingKey, Concept, Job, Keyframe, Ladder, Recipe, decode, encode
from engine.models.families.embedded import load_embedded
from engine.worker.local_run import run_locally
from shared.picture_files import make_png

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
LATENTS = b"\0" * (4 * 4 * 2 * 2)


def thumbnail(shade: int = 90, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def make_keyframe(step: int, *, with_latents: bool, shade: int = 90, size: tuple[int, int] = (64, 64)) -> Keyframe:
    return Keyframe(step=step, thumbnail=thumbnail(shade, size), latent=LATENTS if with_latents else None)


def ladder(*keyframes: Keyframe, total_steps: int = 1000) -> bytes:
    return encode(Ladder(job=JOB, image=0, total_steps=total_steps, shape=(4, 2, 2), keyframes=keyframes))


def branchable_ladder(*steps: int, total_steps: int = 1000) -> bytes:
    return ladder(*(make_keyframe(step, with_latents=True) for step in steps), total_steps=total_steps)


@pytest.fixture(scope="module")
def real_job() -> tuple[bytes, bytes]:
    """A picture and its ladder by the embedded model, in 18 steps."""
    family = load_embedded()
    recipe = Recipe(
        concepts=(Concept(text="a red apple"),),
        model=family.name,
        sampler="ddim",
        steps=18,
        seed=7,
        guidance=3.0,
        width=64,
        height=64,
        count=1,
        dtype="float32",
    )
    job = Job(id=JOB, task=recipe, billing_key=BillingKey("standard", "guild", "user"), cost=1.0, deadline=1e11)
    result = run_locally(job, {family.name: family})
    return result.pictures[0], result.ladders[0]


@pytest.mark.slow
def test_a_real_ladder_can_be_branched_where_the_engine_stored_latents(real_job: tuple[bytes, bytes]) -> None:
    stages = read_keyframes(real_job[1])
    assert [stage.step for stage in stages] == list(range(1, 19))
    assert [stage.can_branch for stage in stages] == [engines.has_latents(index) for index in range(18)]
    assert branch_steps(real_job[1]) == (4, 8, 12, 16)
    assert [nearest_branch_step(real_job[1], step) for step in (1, 4, 7, 8, 15, 18)] == [4, 4, 4, 8, 12, 16]
    assert [stage.thumbnail for stage in stages] == [one.thumbnail for one in decode(real_job[1], Ladder).keyframes]
    sheet = decode_image(make_contact_sheet(real_job[1]))
    assert sheet.size == (4 * (SHEET_CELL_SIZE + GAP) - GAP, SHEET_CELL_SIZE + 27)
    assert decode_image(compose_side_by_side([real_job[0], real_job[0]], ["parent", "branch"])).size == (516, 256 + 33)


def test_neither_the_start_nor_the_last_step_can_be_branched() -> None:
    assert branch_steps(branchable_ladder(0, 4, 8, 12, total_steps=12)) == (4, 8)
    assert nearest_branch_step(branchable_ladder(0, 4, 8, 12, total_steps=12), 12) == 8


def test_a_ladder_without_latents_says_why_it_cannot_be_branched() -> None:
    invalid_keyframe = Keyframe(step=5, thumbnail=thumbnail(), latent=LATENTS + b"\0")
    for empty in (ladder(), ladder(make_keyframe(5, with_latents=False)), ladder(invalid_keyframe)):
        assert branch_steps(empty) == ()
        for read in (lambda one: nearest_branch_step(one, 5), make_contact_sheet):
            with pytest.raises(UserError, match=r"no keyframes to branch from.*keeps none") as error:
                read(empty)
            assert error.value.status == 404


def test_an_invalid_ladder_is_refused() -> None:
    for invalid_ladder in (b"", b"nonsense", branchable_ladder(4)[:-3]):
        for read in (read_keyframes, branch_steps, make_contact_sheet, lambda one: nearest_branch_step(one, 1)):
            with pytest.raises(UserError, match="cannot be read") as error:
                read(invalid_ladder)
            assert error.value.status == 404
    for thumbnails in (b"no picture", thumbnail(size=(1100, 1000))):
        with pytest.raises(UnreadableImage):
            make_contact_sheet(ladder(Keyframe(step=3, thumbnail=thumbnails, latent=LATENTS)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=48), st.integers(0, 70))
def test_the_nearest_keyframe_is_the_last_at_or_below_else_the_first_above(
    places: list[tuple[int, bool]], step: int
) -> None:
    one = ladder(
        *(Keyframe(step=step, thumbnail=b"", latent=LATENTS if has_latents else None) for step, has_latents in places),
        total_steps=60,
    )
    branchable_steps = sorted({step for step, has_latents in places if has_latents and 0 < step < 60})
    assert branch_steps(one) == tuple(branchable_steps)
    assert [stage.step for stage in read_keyframes(one)] == sorted({step for step, _ in places})
    if not branchable_steps:
        with pytest.raises(UserError):
            nearest_branch_step(one, step)
        return
    nearest_step = nearest_branch_step(one, step)
    assert nearest_step in branchable_steps
    steps_below = [place_step for place_step in branchable_steps if place_step <= step]
    assert nearest_step == (steps_below[-1] if steps_below else branchable_steps[0])


def cell_positions(sheet: Image.Image, shades: list[int]) -> list[int]:
    """The position of each shade, in rows of four cells."""
    positions = []
    for shade in shades:
        pixels = np.argwhere(np.abs(np.asarray(sheet, int) - shade).max(2) < 4)
        row, column = np.median(pixels, axis=0)
        positions.append(int(row // (SHEET_CELL_SIZE + 27 + GAP)) * 4 + int(column // (SHEET_CELL_SIZE + GAP)))
    return positions


def test_a_contact_sheet_has_a_labelled_cell_for_each_step() -> None:
    shades = [40 + 16 * index for index in range(7)]
    steps = [100 * (index + 1) for index in range(7)]
    mixed_keyframes = [
        one
        for step, shade in zip(steps, shades, strict=True)
        for one in (
            make_keyframe(step - 50, with_latents=False, shade=255),
            make_keyframe(step, with_latents=True, shade=shade),
        )
    ]
    sheet = make_contact_sheet(ladder(*mixed_keyframes), "PNG")
    assert sheet == make_contact_sheet(ladder(*mixed_keyframes[::-1]), "PNG")
    picture = decode_image(sheet)
    assert picture.size == (4 * (SHEET_CELL_SIZE + GAP) - GAP, 2 * (SHEET_CELL_SIZE + 27 + GAP) - GAP)
    assert cell_positions(picture, shades) == list(range(7))
    labels = [
        np.asarray(
            picture.crop(
                (
                    x * (SHEET_CELL_SIZE + GAP),
                    SHEET_CELL_SIZE + 1,
                    x * (SHEET_CELL_SIZE + GAP) + SHEET_CELL_SIZE,
                    SHEET_CELL_SIZE + 27,
                )
            ).convert("L")
        )
        for x in range(4)
    ]
    assert all(one.max() > 200 for one in labels), "each cell has light text below it"
    assert len({one.tobytes() for one in labels}) == 4
    rows = np.flatnonzero((labels[0] > 120).any(1))
    assert rows.max() - rows.min() >= 12, "the text is high enough to read"


def test_a_contact_sheet_shows_at_most_twelve_steps_from_first_to_last() -> None:
    shades = {step: 30 + 4 * step for step in range(1, 48)}
    sheet = make_contact_sheet(
        ladder(*(make_keyframe(step, with_latents=True, shade=shade) for step, shade in shades.items())), "PNG"
    )
    assert decode_image(sheet).size == (4 * (SHEET_CELL_SIZE + GAP) - GAP, 3 * (SHEET_CELL_SIZE + 27 + GAP) - GAP)
    centres = [
        (SHEET_CELL_SIZE // 2 + x * (SHEET_CELL_SIZE + GAP), SHEET_CELL_SIZE // 2 + y * (SHEET_CELL_SIZE + 27 + GAP))
        for y in range(3)
        for x in range(4)
    ]
    colours = [decode_image(sheet).getpixel(step)[0] for step in centres]  # type: ignore[index]
    assert len(colours) == MAX_CELLS
    assert (colours[0], colours[-1]) == (shades[1], shades[47])
    assert colours == sorted(set(colours))
    assert len(make_contact_sheet(ladder(*(make_keyframe(step, with_latents=True) for step in range(1, 48))))) < 100_000


@pytest.mark.parametrize("size", [(128, 64), (16, 1024), (1000, 1000)])
def test_cells_keep_the_aspect_ratio_of_their_thumbnails(size: tuple[int, int]) -> None:
    sheet = decode_image(
        make_contact_sheet(ladder(*(make_keyframe(step, with_latents=True, size=size) for step in (1, 2))), "PNG")
    )
    height = round(size[1] * SHEET_CELL_SIZE / max(size))
    assert sheet.height == height + 27
    assert np.abs(np.asarray(sheet, int)[height // 2, sheet.width // 4 - 1] - 90).max() < 4


def test_pictures_are_compared_at_equal_height() -> None:
    pictures = [make_png(512, 256, 100), make_png(64, 128, 160), make_png(300, 300, 220)]
    sheet = compose_side_by_side(pictures, ["parent", "branch", "other"])
    assert sheet == compose_side_by_side(pictures, ["parent", "branch", "other"])
    pixels = np.asarray(decode_image(sheet), int)
    widths = [600, 150, 300]
    assert pixels.shape == (300 + 33, sum(widths) + 2 * GAP, 3)
    left = 0
    for width, shade in zip(widths, (100, 160, 220), strict=True):
        assert (pixels[:300, left : left + width] == shade).all()
        assert pixels[300:, left : left + width].max() > 200
        left += width + GAP


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=2, max_size=4),
    st.lists(st.text(max_size=400), min_size=4, max_size=4),
)
def test_any_pictures_and_labels_give_a_sheet_of_bounded_size(sizes: list[tuple[int, int]], labels: list[str]) -> None:
    sheet = decode_image(compose_side_by_side([make_png(*size, 200) for size in sizes], labels[: len(sizes)]))
    assert sheet.width <= MAX_GRID_SIDE
    assert sheet.height <= HEIGHT_RANGE[1] + 33


def test_a_long_label_is_cut_and_unknown_characters_are_left_out() -> None:
    two_pictures = [make_png(256, 256, 100)] * 2
    text_strips = [
        decode_image(compose_side_by_side(two_pictures, [text, ""])).crop((0, 256, 256, 289))
        for text in ("word " * 60, "word")
    ]
    assert np.asarray(text_strips[0], int)[:, [0, 1, 254, 255]].max() == max(BACKGROUND), (
        "the label ends before the edge"
    )
    assert compose_side_by_side(two_pictures, ["élan\n\tvital", "a"]) == compose_side_by_side(
        two_pictures, ["elan vital", "a"]
    )
    assert compose_side_by_side(two_pictures, ["🎈", "\ud800"]) == compose_side_by_side(two_pictures, ["", ""])


def test_one_five_or_unlabelled_pictures_are_not_compared() -> None:
    one = make_png(8, 8, 3)
    for pictures, labels in (([one], ["a"]), ([one] * 5, ["a"] * 5), ([one] * 2, ["a"])):
        with pytest.raises(ValueError, match="2 to 4"):
            compose_side_by_side(pictures, labels)
    with pytest.raises(UnreadableImage):
        compose_side_by_side([one, b"no picture"], ["a", "b"])
