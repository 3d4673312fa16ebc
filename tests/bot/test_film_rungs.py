"""Rungs to branch from: which there are, which is nearest, what the sheet of them shows; and pictures side by side."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.images.grid import GAP, MAX_SHEET
from bot.images.labelled import CELL, HEIGHTS, MOST, compared, contact_sheet
from bot.images.pixels import PAPER, Unreadable, opened, saved
from bot.images.rungs import branchable, nearest, stages
from bot.refused import Refused
from engine import ladder as engines
from engine.alone import develop
from engine.families.embedded import load_embedded
from engine.job import Concept, Job, Ladder, Recipe, Rung, Share, decode, encode

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WHOLE = b"\0" * (4 * 4 * 2 * 2)


def thumbnail(shade: int = 90, size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(out, "WEBP", lossless=True)
    return out.getvalue()


def rung(step: int, *, whole: bool, shade: int = 90, size: tuple[int, int] = (64, 64)) -> Rung:
    return Rung(step=step, thumbnail=thumbnail(shade, size), latent=WHOLE if whole else None)


def ladder(*rungs: Rung, of: int = 1000) -> bytes:
    return encode(Ladder(job=JOB, image=0, of=of, shape=(4, 2, 2), rungs=rungs))


def kept(*steps: int, of: int = 1000) -> bytes:
    return ladder(*(rung(step, whole=True) for step in steps), of=of)


@pytest.fixture(scope="module")
def real() -> tuple[bytes, bytes]:
    """A picture and its ladder by the embedded model, in 18 steps."""
    family = load_embedded()
    recipe = Recipe(
        concepts=(Concept(text="a red apple"),), model=family.name, sampler="ddim", steps=18, seed=7, guidance=3.0,
        width=64, height=64, count=1, dtype="float32",
    )  # fmt: skip
    job = Job(id=JOB, task=recipe, share=Share("standard", "guild", "user"), cost=1.0, deadline=1e11)
    done = develop(job, {family.name: family})
    return done.pictures[0], done.ladders[0]


def test_a_real_ladder_can_be_branched_where_the_engine_kept_latents(real: tuple[bytes, bytes]) -> None:
    found = stages(real[1])
    assert [stage.step for stage in found] == list(range(1, 19))
    assert [stage.branches for stage in found] == [engines.keeps_latent(place) for place in range(18)]
    assert branchable(real[1]) == (4, 8, 12, 16)
    assert [nearest(real[1], step) for step in (1, 4, 7, 8, 15, 18)] == [4, 4, 4, 8, 12, 16]
    assert [stage.thumbnail for stage in found] == [one.thumbnail for one in decode(real[1], Ladder).rungs]
    shown = opened(contact_sheet(real[1]))
    assert shown.size == (4 * (CELL + GAP) - GAP, CELL + 27)
    assert opened(compared([real[0], real[0]], ["parent", "branch"])).size == (516, 256 + 33)


def test_nothing_is_left_to_branch_after_the_last_step_or_before_the_first() -> None:
    assert branchable(kept(0, 4, 8, 12, of=12)) == (4, 8)
    assert nearest(kept(0, 4, 8, 12, of=12), 12) == 8


def test_a_ladder_without_latents_says_why_it_cannot_be_branched() -> None:
    wrong = Rung(step=5, thumbnail=thumbnail(), latent=WHOLE + b"\0")
    for empty in (ladder(), ladder(rung(5, whole=False)), ladder(wrong)):
        assert branchable(empty) == ()
        for ask in (lambda one: nearest(one, 5), contact_sheet):
            with pytest.raises(Refused, match=r"no latents.*earlier version") as refused:
                ask(empty)
            assert refused.value.status == 404


def test_what_is_no_ladder_is_refused() -> None:
    for wrong in (b"", b"nonsense", kept(4)[:-3]):
        for ask in (stages, branchable, contact_sheet, lambda one: nearest(one, 1)):
            with pytest.raises(Refused, match="cannot be read") as refused:
                ask(wrong)
            assert refused.value.status == 404
    for thumbnails in (b"no picture", thumbnail(size=(1100, 1000))):
        with pytest.raises(Unreadable):
            contact_sheet(ladder(Rung(step=3, thumbnail=thumbnails, latent=WHOLE)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=48), st.integers(0, 70))
def test_the_nearest_is_the_last_at_or_below_else_the_first_above(places: list[tuple[int, bool]], step: int) -> None:
    one = ladder(*(Rung(step=at, thumbnail=b"", latent=WHOLE if whole else None) for at, whole in places), of=60)
    possible = sorted({at for at, whole in places if whole and 0 < at < 60})
    assert branchable(one) == tuple(possible)
    assert [stage.step for stage in stages(one)] == sorted({at for at, _ in places})
    if not possible:
        with pytest.raises(Refused):
            nearest(one, step)
        return
    found = nearest(one, step)
    assert found in possible
    below = [at for at in possible if at <= step]
    assert found == (below[-1] if below else possible[0])


def cells(sheet: Image.Image, shades: list[int]) -> list[int]:
    """The place in rows of four at which each shade stands."""
    found = []
    for shade in shades:
        where = np.argwhere(np.abs(np.asarray(sheet, int) - shade).max(2) < 4)
        row, column = np.median(where, axis=0)
        found.append(int(row // (CELL + 27 + GAP)) * 4 + int(column // (CELL + GAP)))
    return found


def test_a_sheet_has_a_labelled_cell_for_each_step() -> None:
    shades = [40 + 16 * place for place in range(7)]
    steps = [100 * (place + 1) for place in range(7)]
    mixed = [one for step, shade in zip(steps, shades, strict=True) for one in (
        rung(step - 50, whole=False, shade=255), rung(step, whole=True, shade=shade))]  # fmt: skip
    made = contact_sheet(ladder(*mixed), "PNG")
    assert made == contact_sheet(ladder(*mixed[::-1]), "PNG")
    shown = opened(made)
    assert shown.size == (4 * (CELL + GAP) - GAP, 2 * (CELL + 27 + GAP) - GAP)
    assert cells(shown, shades) == list(range(7))
    labels = [
        np.asarray(shown.crop((x * (CELL + GAP), CELL + 1, x * (CELL + GAP) + CELL, CELL + 27)).convert("L"))
        for x in range(4)
    ]
    assert all(one.max() > 200 for one in labels), "there is light text under each"
    assert len({one.tobytes() for one in labels}) == 4
    rows = np.flatnonzero((labels[0] > 120).any(1))
    assert rows.max() - rows.min() >= 12, "high enough to be read"


def test_of_many_steps_a_sheet_shows_twelve_from_the_first_to_the_last() -> None:
    shades = {step: 30 + 4 * step for step in range(1, 48)}
    made = contact_sheet(ladder(*(rung(step, whole=True, shade=shade) for step, shade in shades.items())), "PNG")
    assert opened(made).size == (4 * (CELL + GAP) - GAP, 3 * (CELL + 27 + GAP) - GAP)
    middles = [(CELL // 2 + x * (CELL + GAP), CELL // 2 + y * (CELL + 27 + GAP)) for y in range(3) for x in range(4)]
    seen = [opened(made).getpixel(at)[0] for at in middles]  # type: ignore[index]
    assert len(seen) == MOST
    assert (seen[0], seen[-1]) == (shades[1], shades[47])
    assert seen == sorted(set(seen))
    assert len(contact_sheet(ladder(*(rung(step, whole=True) for step in range(1, 48))))) < 100_000


@pytest.mark.parametrize("size", [(128, 64), (16, 1024), (1000, 1000)])
def test_cells_keep_the_shape_of_their_thumbnails(size: tuple[int, int]) -> None:
    shown = opened(contact_sheet(ladder(*(rung(step, whole=True, size=size) for step in (1, 2))), "PNG"))
    height = round(size[1] * CELL / max(size))
    assert shown.height == height + 27
    assert np.abs(np.asarray(shown, int)[height // 2, shown.width // 4 - 1] - 90).max() < 4


def png(size: tuple[int, int], shade: int) -> bytes:
    return saved(Image.new("RGB", size, (shade,) * 3), "PNG")


def test_pictures_are_compared_at_equal_height() -> None:
    pictures = [png((512, 256), 100), png((64, 128), 160), png((300, 300), 220)]
    made = compared(pictures, ["parent", "branch", "other"])
    assert made == compared(pictures, ["parent", "branch", "other"])
    shown = np.asarray(opened(made), int)
    widths = [600, 150, 300]
    assert shown.shape == (300 + 33, sum(widths) + 2 * GAP, 3)
    at = 0
    for width, shade in zip(widths, (100, 160, 220), strict=True):
        assert (shown[:300, at : at + width] == shade).all()
        assert shown[300:, at : at + width].max() > 200
        at += width + GAP


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=2, max_size=4),
    st.lists(st.text(max_size=400), min_size=4, max_size=4),
)
def test_any_pictures_and_labels_fit_a_bounded_sheet(sizes: list[tuple[int, int]], labels: list[str]) -> None:
    made = opened(compared([png(size, 200) for size in sizes], labels[: len(sizes)]))
    assert made.width <= MAX_SHEET
    assert made.height <= HEIGHTS[1] + 33


def test_a_long_label_is_cut_and_a_strange_one_is_no_box() -> None:
    two = [png((256, 256), 100)] * 2
    strips = [opened(compared(two, [text, ""])).crop((0, 256, 256, 289)) for text in ("word " * 60, "word")]
    assert np.asarray(strips[0], int)[:, [0, 1, 254, 255]].max() == max(PAPER), "it ends before the edge"
    assert compared(two, ["élan\n\tvital", "a"]) == compared(two, ["elan vital", "a"])
    assert compared(two, ["🎈", "\ud800"]) == compared(two, ["", ""])


def test_one_five_or_unlabelled_pictures_are_not_compared() -> None:
    one = png((8, 8), 3)
    for pictures, labels in (([one], ["a"]), ([one] * 5, ["a"] * 5), ([one] * 2, ["a"])):
        with pytest.raises(ValueError, match="2 to 4"):
            compared(pictures, labels)
    with pytest.raises(Unreadable):
        compared([one, b"no picture"], ["a", "b"])
