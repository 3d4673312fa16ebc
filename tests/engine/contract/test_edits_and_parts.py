"""What the contract says of edits, of the parts that a worker offers, and of names of textual inversions."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from engine.contract import (
    ControlImage,
    ControlModel,
    ImageToImage,
    InitImage,
    MissingPart,
    ModelPart,
    ModelProfile,
    Preprocessor,
    Recipe,
    compile_embedding_names,
    estimate_cost,
    find_embeddings,
    find_missing_part,
    is_edit,
)
from shared.stored_jobs import RECIPE

MODEL = ModelProfile(
    name="large",
    revision="1",
    dtype="bfloat16",
    size=64,
    multiple=8,
    max_pixels=128 * 128,
    tokens=77,
    steps=40,
    sampler="ddim",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=4.0,
    row_ms=1000.0,
    encode_ms=0.0,
    decode_ms=0.0,
    edits=True,
)
PICTURE = InitImage("a" * 64)
WHOLE = ImageToImage((PICTURE,), 1.0)
OTHER_STARTS = (
    ImageToImage((PICTURE,), 0.5),
    ImageToImage((PICTURE,) * 2, 1.0),
    ImageToImage((PICTURE,), 1.0, "b" * 64),
)


def start_from(start: ImageToImage | None) -> Recipe:
    return replace(RECIPE, start=start, steps=40)


@pytest.mark.parametrize("start", OTHER_STARTS)
def test_only_an_edit_is_charged_for_the_picture_beside_it(start: ImageToImage) -> None:
    plain = estimate_cost(start_from(None), MODEL)
    assert estimate_cost(start_from(WHOLE), MODEL) == pytest.approx(2 * plain)
    assert estimate_cost(start_from(start), MODEL) <= plain
    assert is_edit(start_from(WHOLE), MODEL)
    assert not is_edit(start_from(start), MODEL)
    assert is_edit(start_from(start), replace(MODEL, required="picture"))
    assert not is_edit(start_from(WHOLE), replace(MODEL, edits=False))


def test_each_further_picture_of_an_edit_is_charged() -> None:
    recipe = start_from(OTHER_STARTS[1])
    several = replace(MODEL, max_edit_pictures=2)
    assert is_edit(recipe, several)
    plain = estimate_cost(start_from(None), several)
    assert estimate_cost(recipe, several) == pytest.approx(3 * plain)
    assert estimate_cost(recipe, replace(several, required="picture")) == pytest.approx(2 * plain), "measured with one"
    assert not is_edit(start_from(replace(OTHER_STARTS[1], pictures=(PICTURE,) * 3)), several)


def test_a_part_without_a_revision_is_any_of_that_name() -> None:
    model = replace(MODEL, controls=(ControlModel("canny", "c1", "canny"),), preprocessors=("canny",))
    cases: tuple[tuple[str, Preprocessor, MissingPart | None], ...] = (
        ("", "none", None),
        ("c1", "canny", None),
        ("c2", "canny", MissingPart("control network", "canny")),
        ("c1", "depth", MissingPart("preprocessor", "depth")),
    )
    for revision, preprocessor, missing in cases:
        control = ControlImage(name="canny", picture="a" * 64, preprocessor=preprocessor, revision=revision)
        assert find_missing_part(replace(RECIPE, controls=(control,)), model) == missing
    assert find_missing_part(replace(RECIPE, clip_skip=1), model) == MissingPart("skipped layers")
    assert find_missing_part(replace(RECIPE, autoencoder=ModelPart("mse")), model) == MissingPart("autoencoder", "mse")


def test_only_ascii_letters_of_an_embeddings_name_have_two_cases() -> None:
    style = ModelPart("style")
    kind = ModelPart("kind")
    assert find_embeddings(("a STYLE", "<Kind>"), (style, kind)) == (style, kind)
    for text in ("a \u017ftyle", "<\u017ftyle>", "a \u212aind"):  # long s, kelvin sign
        assert find_embeddings((text,), (style, kind)) == ()
        assert compile_embedding_names(("style", "kind")).search(text) is None
    assert find_embeddings(("gr\u00fcnstyle",), (style,)) == (), "words still end at letters of any script"
