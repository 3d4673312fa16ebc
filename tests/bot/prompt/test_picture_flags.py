"""Control and reference pictures, further autoencoders, embeddings and clip skip in a prompt and in a recipe."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import msgspec
import pytest

from bot.domain.errors import UserError
from bot.jobs.beginnings import (
    BranchEdit,
    branch_recipe,
    unused_start_notes,
    unused_strength_note,
    with_followed_pictures,
    with_init_images,
    with_input_aspect,
)
from bot.jobs.init_images import LoadedInitImages, combine_init_images
from bot.jobs.model_catalog import DEFAULT_POOL, CatalogEntry
from bot.jobs.recipe import remix_recipe, renew_recipe, vary_recipe, without_controls
from bot.pictures.uploads.upload_decoder import DecodedImage
from bot.prompt import build_recipe, make_remarks, parse
from bot.prompt.capability_check import check_capabilities, check_start
from bot.prompt.part_flags import RequestedControl, RequestedReference
from engine.contract import (
    Branch,
    ControlModel,
    ImageToImage,
    ModelPart,
    ModelProfile,
    Recipe,
    decode,
    encode,
    make_part_fields,
)
from shared.picture_files import make_png

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
    guidance=4.0,
    row_ms=3.0,
    encode_ms=5.0,
    decode_ms=5.0,
    quantization="int8",
    samplers=("ddim", "heun"),
    controls=(
        ControlModel("sd15_canny", "c1", "canny"),
        ControlModel("sd15_depth", "d1", "depth"),
        ControlModel("tile", "t1"),
    ),
    preprocessors=("none", "canny"),
    references=(ControlModel("ip-plus", "r1"), ControlModel("ip-face", "r2")),
    embeddings=(ModelPart("EasyNegative", "e1"), ModelPart("moebius", "m1")),
    autoencoders=(ModelPart("mse-840000", "v1"),),
    max_clip_skip=2,
)
PLAIN = msgspec.structs.replace(
    MODEL,
    name="plain",
    controls=(),
    references=(),
    embeddings=(),
    autoencoders=(),
    max_clip_skip=0,
    quantization="none",
)


def make_decoded_image(width: int, height: int, shade: int = 128) -> DecodedImage:
    png = make_png(width, height, shade)
    return DecodedImage(png, width, height, hashlib.sha256(png).hexdigest())


def load_pictures(init_images: int = 0, controls: int = 0, references: int = 0) -> LoadedInitImages:
    pictures = [make_decoded_image(64, 32, level) for level in range(init_images)]
    control_pictures = [make_decoded_image(32, 64, 100 + level) for level in range(controls)]
    reference_pictures = [make_decoded_image(32, 32, 200 + level) for level in range(references)]
    return combine_init_images(pictures, None, (), control_pictures, reference_pictures)


def make_recipe(
    text: str, loaded: LoadedInitImages | None = None, model: ModelProfile = MODEL, **options: Any
) -> Recipe:
    """The recipe as the job service makes it, which survives the wire."""
    (parsed,) = parse(text, model, options=options).prompts
    recipe = with_init_images(build_recipe(with_input_aspect(parsed, loaded), model, 7), parsed, loaded, model)
    recipe = with_followed_pictures(recipe, parsed, loaded, model)
    check_capabilities(recipe, model)
    assert decode(encode(recipe), Recipe) == recipe
    return recipe


def refusal(text: str, loaded: LoadedInitImages | None = None, model: ModelProfile = MODEL, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        make_recipe(text, loaded, model, **options)
    assert len(error.value.sentence) <= 500
    return error.value.sentence


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("canny", RequestedControl("canny")),
        ("canny:0.8", RequestedControl("canny", 0.8)),
        ("canny:0.8:0-0.6", RequestedControl("canny", 0.8, 0.0, 0.6)),
        ("canny:.2–.6:none:2", RequestedControl("canny", 2.0, 0.2, 0.6, "none")),
        ("control_v11p.sd15:DEPTH", RequestedControl("control_v11p.sd15", preprocessor="depth")),
    ],
)
def test_a_control_has_scale_interval_and_preprocessor_in_any_order(value: str, expected: RequestedControl) -> None:
    assert parse(f"a cat --control {value} sitting", None).prompts[0].controls == (expected,)
    assert parse("a cat", None, options={"control": value}).prompts[0].controls == (expected,)
    assert parse(f"a cat --controlnet {value}", None).prompts[0].words == "a cat"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ip-face", RequestedReference("ip-face")),
        ("0.5", RequestedReference("", 0.5)),
        ("ip-face:0.5", RequestedReference("ip-face", 0.5)),
    ],
)
def test_a_reference_has_a_name_a_scale_or_both(value: str, expected: RequestedReference) -> None:
    assert parse(f"a cat --reference {value}", None).prompts[0].references == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "--control",
        "--control canny:3",
        "--control canny:0.6-0.2",
        "--control canny:often",
        "--control -1",
        "--control canny:1:1:1:1",
        "--reference",
        "--reference face:",
        "--reference face:9",
        "--vae",
        "--vae a/b",
        "--clip-skip 0",
        "--clip-skip 13",
        "--clip-skip two",
        "--control a --control b --control c --control d",
    ],
)
def test_a_wrong_value_is_refused_with_what_the_flag_takes(text: str) -> None:
    flag = text.split(" ")[0]
    sentence = refusal(f"a cat {text}", load_pictures(controls=1))
    assert sentence.startswith(flag)


def test_pictures_are_paired_with_their_flags() -> None:
    loaded = load_pictures(controls=2, references=2)
    recipe = make_recipe("a cat --control sd15_canny:0.8:0-0.6 --control TILE --reference ip-face:0.5", loaded)
    canny, tile = recipe.controls
    assert (canny.name, canny.revision, canny.preprocessor, canny.scale) == ("sd15_canny", "c1", "canny", 0.8)
    assert (canny.start, canny.stop, tile.name, tile.preprocessor, tile.scale) == (0.0, 0.6, "tile", "none", 1.0)
    assert (canny.picture, tile.picture) == loaded.control_pictures
    assert [each.picture for each in recipe.references] == list(loaded.reference_pictures)
    assert {(each.name, each.revision, each.scale) for each in recipe.references} == {("ip-face", "r2", 0.5)}
    assert (recipe.width, recipe.height) == (48, 96), "without an init image a control picture gives the shape"


def test_one_picture_serves_several_controls_and_an_init_image_serves_where_none_is_given() -> None:
    loaded = load_pictures(controls=1)
    both = make_recipe("a cat --control canny --control tile", loaded)
    assert [each.picture for each in both.controls] == 2 * list(loaded.control_pictures)
    begun = load_pictures(init_images=1)
    recipe = make_recipe("a cat --control canny", begun)
    assert recipe.controls[0].picture == begun.inputs[0].sha256 == recipe.required_blobs[0]
    assert recipe.controls[0].name == "sd15_canny", "a kind of picture names the network that usually takes it"


def test_a_reference_needs_no_flag_and_takes_the_first_adapter() -> None:
    (reference,) = make_recipe("a cat", load_pictures(references=1)).references
    assert (reference.name, reference.revision, reference.scale) == ("ip-plus", "r1", 0.6)
    (reference,) = make_recipe("a cat --reference 0.9", load_pictures(references=1)).references
    assert (reference.name, reference.scale) == ("ip-plus", 0.9)


@pytest.mark.parametrize(
    ("text", "counts", "words"),
    [
        ("--control canny", {}, "--control is for a picture beside the prompt, and there is none"),
        ("--reference ip-face", {}, "--reference is for a picture beside the prompt"),
        ("", {"controls": 1}, "as --control NAME: sd15_canny, sd15_depth, tile."),
        (
            "--control cany",
            {"controls": 1},
            "no control cany for large; --control takes: sd15_canny, sd15_depth, tile.",
        ),
        ("--control canny --control tile", {"controls": 3}, "3 pictures for 2 × --control"),
        ("--control sd15_depth", {"controls": 1}, "can make a depth picture of yours: add one that is made already"),
        (
            "--reference face",
            {"references": 1},
            "no reference adapter face for large; --reference takes: ip-plus, ip-fa",
        ),
        ("--control canny --sampler heun", {"controls": 1}, "cannot do --control"),
        ("--vae mse", {}, "no autoencoder mse for large; --vae takes: mse-840000."),
        ("--clip-skip 4", {}, "large takes --clip-skip 1 to 3."),
    ],
)
def test_what_a_model_lacks_is_refused_with_what_it_has(text: str, counts: dict[str, int], words: str) -> None:
    loaded = load_pictures(**counts) if counts else None
    assert words in refusal(f"a cat {text}", loaded)


@pytest.mark.parametrize(
    ("text", "counts", "words"),
    [
        (
            "--control canny",
            {"controls": 1},
            "no controls for plain: this bot's operator can put them into controlnets/",
        ),
        ("", {"references": 1}, "no reference adapters for plain"),
        ("--vae x", {}, "no further autoencoders for plain"),
        ("--clip-skip 2", {}, "plain always reads all layers"),
    ],
)
def test_a_model_without_parts_says_who_can_add_them(text: str, counts: dict[str, int], words: str) -> None:
    assert words in refusal(f"a cat {text}", load_pictures(**counts) if counts else None, PLAIN)


def test_embeddings_autoencoder_clip_skip_and_stored_weights_are_part_of_the_recipe() -> None:
    recipe = make_recipe("a cat by <moebius> --no easynegative --vae MSE-840000.safetensors --clip-skip 2")
    assert recipe.embeddings == (ModelPart("EasyNegative", "e1"), ModelPart("moebius", "m1"))
    assert (recipe.autoencoder, recipe.clip_skip, recipe.quantization) == (ModelPart("mse-840000", "v1"), 1, "int8")
    own = make_recipe("a cat --vae none --clip-skip 1")
    assert (own.embeddings, own.autoencoder, own.clip_skip) == ((), None, 0)


def test_an_unknown_name_in_brackets_is_noted() -> None:
    (parsed,) = parse("a cat by <mobius> and <3", MODEL).prompts
    assert make_remarks(parsed, MODEL)[-1:] == ("large has no textual inversion mobius: <mobius> is read as words.",)


def test_a_remix_keeps_its_pictures_unless_its_flags_say_otherwise() -> None:
    base = make_recipe(
        "a cat --control canny:0.5 --vae mse-840000 --clip-skip 2 --no easynegative",
        load_pictures(controls=1, references=1),
    )

    def remix(text: str) -> Recipe:
        return remix_recipe(base, parse(text, None).prompts[0], MODEL)

    kept = remix("a dog --no easynegative")
    parts = ("controls", "references", "embeddings", "autoencoder", "clip_skip", "quantization")
    assert all(getattr(kept, name) == getattr(base, name) for name in parts)
    changed = remix("a dog by moebius --control tile:2 --reference none --vae none --clip-skip 1")
    assert [(each.name, each.scale, each.picture) for each in changed.controls] == [
        ("tile", 2, base.controls[0].picture)
    ]
    assert (changed.references, changed.autoencoder, changed.clip_skip) == ((), None, 0)
    assert [part.name for part in changed.embeddings] == ["moebius"]
    assert remix("a dog --control none").controls == ()
    varied = vary_recipe(base, 0, 0.2, 9)
    assert (varied.controls, varied.references) == (base.controls, base.references)
    assert (without_controls(base).controls, without_controls(base).references) == ((), base.references)


def test_an_old_recipe_takes_the_present_parts_and_says_so() -> None:
    loaded = load_pictures(controls=1, references=1)
    old = make_recipe("a cat by moebius --control canny --vae mse-840000 --clip-skip 3", loaded)
    entry = CatalogEntry(MODEL, DEFAULT_POOL, True)
    assert renew_recipe(old, entry) == (old, ())
    now = msgspec.structs.replace(
        MODEL,
        controls=(ControlModel("sd15_canny", "c2", "canny"),),
        embeddings=(ModelPart("moebius", "m2"),),
        autoencoders=(ModelPart("mse-840000", "v2"),),
        references=(ControlModel("ip-plus", "r9"),),
        quantization="none",
    )
    new, notes = renew_recipe(old, CatalogEntry(now, DEFAULT_POOL, True))
    assert (new.controls[0].revision, new.embeddings[0].revision, new.quantization) == ("c2", "m2", "none")
    assert notes == (
        "Made with int8 weights of large, and now drawn with whole weights: it will differ.",
        "Made with another version of the control sd15_canny: it will differ.",
        "Made with another version of the reference adapter ip-plus: it will differ.",
        "Made with another version of the textual inversion moebius: it will differ.",
        "Made with another version of the autoencoder mse-840000: it will differ.",
    )
    for name, value in (("controls", ()), ("references", ()), ("embeddings", ()), ("autoencoders", ())):
        changed = msgspec.structs.replace(MODEL, **{name: value})
        with pytest.raises(UserError):
            renew_recipe(old, CatalogEntry(changed, DEFAULT_POOL, True))


def test_an_inpainting_model_needs_a_mask_and_an_editing_one_a_picture() -> None:
    editing = msgspec.structs.replace(MODEL, required="picture")
    with pytest.raises(UserError, match="large only changes a picture: add one"):
        check_start(make_recipe("a cat", load_pictures(controls=1), control="canny"), editing)
    check_start(make_recipe("a cat", load_pictures(init_images=1), editing), editing)
    inpainting = msgspec.structs.replace(MODEL, required="mask")
    with pytest.raises(UserError, match="large only redraws a part of a picture: add a picture and a mask"):
        check_start(make_recipe("a cat", load_pictures(init_images=1)), inpainting)
    masked = combine_init_images([make_decoded_image(64, 32)], make_decoded_image(64, 32, 255))
    check_start(make_recipe("a cat", masked), inpainting)
    check_start(make_recipe("a cat"), MODEL)


EDITING = msgspec.structs.replace(MODEL, edits=True)
KONTEXT = msgspec.structs.replace(EDITING, required="picture")


def test_an_edit_has_no_tile_and_no_strength() -> None:
    one = load_pictures(init_images=1)
    for text, model in (("red --tile --edit", EDITING), ("red --tile", KONTEXT)):
        with pytest.raises(UserError, match="does not tile: leave out --tile"):
            check_start(make_recipe(text, one, model), model)
    check_start(make_recipe("red --tile", one, EDITING), EDITING)
    weak = make_recipe("red --strength 0.5", one, EDITING)
    with pytest.raises(UserError, match="leave out the strength"):
        check_start(weak, KONTEXT)


def test_an_edit_takes_as_many_pictures_as_its_model_sees_at_once() -> None:
    two = load_pictures(init_images=2)
    several = msgspec.structs.replace(EDITING, max_edit_pictures=5)
    recipe = make_recipe("red --edit", two, several)
    check_start(recipe, several)
    start = cast(ImageToImage, recipe.start)
    assert (start.strength, len(start.pictures)) == (1.0, 2)
    assert "large changes one picture at a time, and these are 2." in refusal("red --edit", two, EDITING)
    with pytest.raises(UserError, match="large changes one picture at a time, and these are 2"):
        check_start(make_recipe("red", two, KONTEXT), KONTEXT)


@pytest.mark.parametrize(
    ("text", "model", "has_note"),
    [
        ("red --strength 0.5", KONTEXT, True),
        ("red --strength 0.5 --edit", EDITING, True),
        ("red --strength 0.5", EDITING, False),
        ("red --edit", EDITING, False),
    ],
)
def test_a_strength_that_an_edit_does_not_use_has_a_note(text: str, model: ModelProfile, has_note: bool) -> None:
    (parsed,) = parse(text, model).prompts
    notes = unused_strength_note(parsed, load_pictures(init_images=1), model)
    assert [note for note in notes if "an edit sees the picture" in note] == list(notes)
    assert bool(notes) == has_note


def test_a_derived_recipe_that_is_no_edit_has_a_note_on_the_flag() -> None:
    (parsed,) = parse("red --edit", EDITING).prompts
    one = load_pictures(init_images=1)
    assert unused_start_notes(parsed, make_recipe("red --edit", one, EDITING), EDITING) == ()
    (note,) = unused_start_notes(parsed, make_recipe("red", one, EDITING), EDITING)
    assert note.startswith("--edit is for a new prompt beside a picture")


@pytest.mark.parametrize("flag", ["--strength 0.4", "--iw 2"])
def test_a_strength_that_a_remix_does_not_use_has_a_note(flag: str) -> None:
    (parsed,) = parse(f"red {flag}", MODEL).prompts
    for images in (load_pictures(init_images=1), None):
        base = make_recipe("red --strength 0.7", images)
        (note,) = unused_start_notes(parsed, base, MODEL)
        assert note.startswith("--strength and --iw change nothing in a remix")
        assert remix_recipe(base, parsed, MODEL).start == base.start


def test_a_branch_refuses_a_strength() -> None:
    base = make_recipe("red", load_pictures(init_images=1))
    with pytest.raises(UserError, match="its strength cannot be changed"):
        branch_recipe(base, "a" * 64, 4, BranchEdit("red", "blue --strength 0.4", {}), MODEL)


@pytest.mark.parametrize(
    ("text", "model"),
    [("red --edit", EDITING), ("red", KONTEXT), ("red", msgspec.structs.replace(MODEL, required="mask"))],
)
def test_a_picture_drawn_with_another_in_sight_has_no_branch(text: str, model: ModelProfile) -> None:
    base = make_recipe(text, load_pictures(init_images=1), model)
    with pytest.raises(UserError, match="a branch does not keep that picture: remix it instead"):
        branch_recipe(base, "a" * 64, 4, BranchEdit("red", None, {}), model)
    plain = make_recipe("red", load_pictures(init_images=1), EDITING)
    branched = branch_recipe(plain, "a" * 64, 4, BranchEdit("red", None, {}), EDITING)
    assert isinstance(branched.start, Branch)


def test_the_parts_are_written_as_other_programs_write_them() -> None:
    loaded = load_pictures(controls=1, references=1)
    recipe = make_recipe("a cat by moebius --control canny:0.8:0-0.5 --vae mse-840000 --clip-skip 2", loaded)
    control = recipe.controls[0].picture[:10]
    reference = recipe.references[0].picture[:10]
    assert make_part_fields(recipe) == {
        "ControlNet 0": (
            f'"Module: canny, Model: sd15_canny [c1], Weight: 0.8, Guidance Start: 0, Guidance End: 0.5, '
            f'Picture: {control}"'
        ),
        "ControlNet 1": f'"Module: ip-adapter, Model: ip-plus [r1], Weight: 0.6, Picture: {reference}"',
        "VAE": "mse-840000",
        "VAE hash": "v1",
        "Clip skip": "2",
        "TI hashes": '"moebius: m1"',
        "Diffusion in Low Bits": "int8",
    }
    assert make_part_fields(make_recipe("a cat", model=PLAIN)) == {}
