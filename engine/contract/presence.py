"""What a worker announces of itself and its models, what a recipe needs of a model, and what it costs on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from engine.contract.evaluations import (
    count_between,
    count_image_rows,
    find_guided_steps,
    has_skipped_steps,
    is_guided,
    list_evaluated_steps,
    pinned_bucket,
)
from engine.contract.fields import (
    FULL_INTERVAL,
    MAX_INIT_IMAGES,
    MAX_ROWS,
    MAX_STEPS,
    SECOND_ORDER_SAMPLERS,
    ByteCount,
    Dtype,
    Feature,
    Fraction,
    GuidanceKind,
    Milliseconds,
    Name,
    Preprocessor,
    Quantization,
    Sampler,
    Side,
    VersionedValue,
)
from engine.contract.recipe import Branch, ControlImage, ImageToImage, Lora, ModelPart, Recipe, ReferenceImage
from engine.contract.steering import count_ending_images, iterate_segments


class ControlModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A control network or reference adapter of a worker that fits a model."""

    name: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    preprocessor: Preprocessor = "none"  # the usual one
    row_share: Annotated[float, Meta(ge=0, le=4)] | None = None  # of a row's time that it adds; None: not known


class ModelProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """One model that a worker offers, with its calibration on that device."""

    name: Name
    revision: Annotated[str, Meta(max_length=64)]
    dtype: Dtype
    size: Side  # native width and height in pixels
    multiple: Annotated[int, Meta(ge=1, le=256)]  # sides must be multiples of this
    max_pixels: Annotated[int, Meta(ge=256, le=4096 * 4096)]
    tokens: Annotated[int, Meta(ge=1, le=4096)]  # how many the text encoder reads
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)]  # default, by calibration
    sampler: Sampler  # default
    samplers: Annotated[tuple[Sampler, ...], Meta(min_length=1, max_length=32)]
    guidance: Annotated[float, Meta(ge=1, le=30)]  # default
    row_ms: Milliseconds  # milliseconds a row-step at native size, at the calibrated batch limit
    encode_ms: Milliseconds
    decode_ms: Milliseconds  # a finished picture, upscaling included
    upscale_factor: Annotated[int, Meta(ge=1, le=8)] = 1  # of finished pictures
    guidance_kind: GuidanceKind = "rows"
    guidance_start: Fraction = 0.0  # defaults
    guidance_stop: Fraction = 1.0
    loras: Annotated[tuple[Lora, ...], Meta(max_length=256)] = ()  # LoRAs that fit it, each with its usual weight
    loaded: bool = True  # False: the worker loads it when a job needs it
    has_judge: bool = False  # a judge chooses among candidates
    quantization: Quantization = "none"  # how its network's weights are stored in memory
    controls: Annotated[tuple[ControlModel, ...], Meta(max_length=64)] = ()  # control networks that fit it
    preprocessors: Annotated[tuple[Preprocessor, ...], Meta(max_length=8)] = ("none",)  # that this worker can run
    references: Annotated[tuple[ControlModel, ...], Meta(max_length=16)] = ()  # IP-Adapters that fit it
    embeddings: Annotated[tuple[ModelPart, ...], Meta(max_length=256)] = ()  # textual inversions that fit it
    autoencoders: Annotated[tuple[ModelPart, ...], Meta(max_length=32)] = ()  # that may take its own one's place
    max_clip_skip: Annotated[int, Meta(ge=0, le=12)] = 0  # 0: its text encoder skips no layers
    edits: bool = False  # it edits init images by words: at full strength (`ImageToImage`)
    lacks: Annotated[tuple[Feature, ...], Meta(max_length=32)] = ()  # features that its recipes cannot use
    required: Literal["", "mask", "picture"] = ""  # what it cannot draw without: a mask, or a picture that it edits
    max_edit_pictures: Annotated[int, Meta(ge=1, le=MAX_INIT_IMAGES)] = 1  # that one edit sees, if it edits


class Presence(VersionedValue, frozen=True, kw_only=True):
    """What a live worker announces every few seconds."""

    worker: Name
    pools: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]
    models: Annotated[tuple[ModelProfile, ...], Meta(max_length=64)]
    device: Annotated[str, Meta(max_length=128)]
    rows: Annotated[int, Meta(ge=0, le=MAX_ROWS)]  # rows it runs at once
    free: Annotated[int, Meta(ge=0, le=MAX_ROWS)]  # of these, still free
    software_build: Annotated[str, Meta(max_length=128)]
    has_picture_check: bool = False
    upscale_ms: Milliseconds = 0.0  # a megapixel by its super-resolver; 0: none


class ModelProgress(VersionedValue, frozen=True, kw_only=True):
    """What a worker does before it can use a model. The message's subject names worker and pool.

    `model` is None while the worker looks for the model's files. `size` is the model's size in bytes; 0: unknown.
    """

    model: Name | None = None
    phase: Literal["prepare", "load", "measure", "ready"] = "prepare"
    done: Fraction = 0.0
    size: ByteCount = 0


PartKind = Literal[
    "skipped layers", "textual inversion", "control network", "reference adapter", "autoencoder", "preprocessor"
]


class MissingPart(NamedTuple):
    """What a worker lacks; skipped layers have no name."""

    kind: PartKind
    name: str = ""


def find_missing_part(recipe: Recipe, model: ModelProfile) -> MissingPart | None:
    """Return the first part of the recipe that a worker lacks, by what it announces; None: it has all."""
    return next(_list_missing_parts(recipe, model), None)


def _list_missing_parts(recipe: Recipe, model: ModelProfile) -> Iterator[MissingPart]:
    if recipe.clip_skip > model.max_clip_skip:
        yield MissingPart("skipped layers")
    yield from _list_missing("textual inversion", recipe.embeddings, model.embeddings)
    yield from _list_missing("control network", recipe.controls, model.controls)
    yield from _list_missing("reference adapter", recipe.references, model.references)
    yield from _list_missing("autoencoder", (recipe.autoencoder,) if recipe.autoencoder else (), model.autoencoders)
    for control in recipe.controls:
        if control.preprocessor not in ("none", *model.preprocessors):
            yield MissingPart("preprocessor", control.preprocessor)


def _list_missing(
    kind: PartKind,
    needed: Sequence[ModelPart | ControlImage | ReferenceImage],
    offered: Sequence[ModelPart | ControlModel],
) -> Iterator[MissingPart]:
    for part in needed:
        if not any(part.name == other.name and part.revision in ("", other.revision) for other in offered):
            yield MissingPart(kind, part.name)


def find_lacking_feature(recipe: Recipe, model: ModelProfile) -> Feature | None:
    """Return the first feature that the recipe uses and the model lacks; None: it can draw the recipe."""
    return next((feature for feature in _list_used_features(recipe, model) if feature in model.lacks), None)


def _list_used_features(recipe: Recipe, model: ModelProfile) -> Iterator[Feature]:
    """Yield what the recipe uses. Steps and guidance count where they are not the model's usual ones."""
    used: dict[Feature, bool] = {
        "mix": recipe.mixed,
        "walk": recipe.interpolation is not None,
        "weights": [concept.weight for concept in recipe.concepts] != [1.0],
        "negative": bool(recipe.negative),
        "steps": recipe.steps != model.steps,
        "guidance": recipe.guidance not in (1.0, model.guidance) or recipe.chaos > 0,
        "interval": recipe.guidance_interval != FULL_INTERVAL,
        "variation": bool(recipe.lineage),
        "tile": recipe.tile,
        "stop": recipe.stop_at < 1.0,
        "branch": isinstance(recipe.start, Branch),
        "amendments": bool(recipe.amendments),
        "evaluations": has_skipped_steps(recipe),
    }
    for feature, is_used in used.items():
        if is_used:
            yield feature
    if isinstance(recipe.start, ImageToImage):
        yield from _list_start_features(recipe.start)


def _list_start_features(start: ImageToImage) -> Iterator[Feature]:
    """Yield what the init images use. Beside a mask the strength only says how much of its inside may stay."""
    yield "picture"
    if start.mask is not None:
        yield "mask"
    elif not start.has_whole_pictures:
        yield "strength"
    if len(start.pictures) > 1:
        yield "blend"


def is_edit(recipe: Recipe, model: ModelProfile) -> bool:
    """Return whether this model edits the recipe's init images by words, rather than starts from them."""
    start = recipe.start
    if not model.edits or not isinstance(start, ImageToImage):
        return False
    is_possible = start.has_whole_pictures and len(start.pictures) <= model.max_edit_pictures
    return model.required == "picture" or is_possible


TURBO_LORA = "turbo"
TURBO_STEPS = 4
TURBO_GUIDANCE = 1.0
TURBO_SAMPLER: Sampler = "lcm"


def find_turbo(model: ModelProfile) -> Lora | None:
    """Return the model's turbo LoRA; None if it has none, or if its schedule does not suit the sampler."""
    loras = (lora for lora in model.loras if lora.name == TURBO_LORA)
    return next(loras, None) if TURBO_SAMPLER in model.samplers else None


def is_turbo(recipe: Recipe) -> bool:
    """Return whether its images are drawn by the turbo LoRA with its sampler."""
    return recipe.sampler == TURBO_SAMPLER and any(lora.name == TURBO_LORA for lora in recipe.loras)


# Where a worker does not say, of a row's time. A ControlNet is a copy of the network's encoder, about a third of
# its forward (Zhang et al. 2023); an IP-Adapter adds one attention to a picture's few tokens in each block.
CONTROL_SHARE = 1 / 3
REFERENCE_SHARE = 0.1


@lru_cache(maxsize=256)  # each change of a running job asks for the price before it, too
def count_row_steps(recipe: Recipe) -> int:
    """Return the rows of all evaluations of the network that are paid for.

    A pinned batch shape is paid in full, padding included. Samplers of second order evaluate the network twice at each
    step but the last.
    """
    rows = 0
    last_rows = 0
    evaluated_steps = list_evaluated_steps(recipe)
    for segment in iterate_segments(recipe):
        state = segment.recipe
        first_guided_step, end_of_guidance = find_guided_steps(state, segment.first_step, segment.end_step)
        count = count_between(evaluated_steps, segment.first_step, segment.end_step)
        guided_count = count_between(evaluated_steps, first_guided_step, end_of_guidance)
        guided, unguided = (_padded_rows(state, segment.image_count, is_on) for is_on in (True, False))
        rows += guided_count * guided + (count - guided_count) * unguided
        last_rows = guided if is_guided(state, segment.end_step - 1) else unguided
    return 2 * rows - last_rows if recipe.sampler in SECOND_ORDER_SAMPLERS and rows else rows


def _padded_rows(recipe: Recipe, image_count: int, is_guidance_on: bool) -> int:
    row_count = image_count * count_image_rows(recipe, is_guidance_on)
    bucket = pinned_bucket(recipe, is_guidance_on)
    return row_count + (-row_count % bucket if bucket else 0)


def estimate_cost(recipe: Recipe, model: ModelProfile) -> float:
    """Return calibrated device-seconds: rows of all evaluations × time a row at this size + encode + decode.

    Control networks and reference adapters add their share of a row. Encoding an init image takes about as long as
    decoding one, and encoding a reference picture as long as a text. Words are encoded once for each style.
    """
    area = recipe.width * recipe.height / (model.size * model.size)
    step_ms = count_row_steps(recipe) * model.row_ms * area * (1 + _added_share(recipe, model))
    text_ms = (
        (len(recipe.concepts) + len(recipe.amendments)) * max(1, len({*recipe.styles}))
        + 1
        + bool(recipe.interpolation and recipe.interpolation.end_prompt)
        + len(recipe.references)
    ) * model.encode_ms
    init_image_count = len(recipe.start.pictures) if isinstance(recipe.start, ImageToImage) else 0
    picture_count = count_ending_images(recipe)
    return (step_ms + text_ms + (picture_count + init_image_count) * model.decode_ms * area) / 1000.0


def _added_share(recipe: Recipe, model: ModelProfile) -> float:
    """Return what edited pictures, control networks and reference adapters add to a row, over all its steps."""
    controls, references = (_row_shares(parts) for parts in (model.controls, model.references))
    control_share = sum(
        controls.get(each.name, CONTROL_SHARE) * max(0.0, each.stop - each.start) for each in recipe.controls
    )
    return (
        _edit_share(recipe, model)
        + control_share
        + sum(references.get(each.name, REFERENCE_SHARE) for each in recipe.references)
    )


def _edit_share(recipe: Recipe, model: ModelProfile) -> int:
    """A picture that is edited has as many tokens as the new one. Models that only edit are measured with one."""
    if not isinstance(recipe.start, ImageToImage) or not is_edit(recipe, model):
        return 0
    return len(recipe.start.pictures) - (model.required == "picture")


def _row_shares(parts: Iterable[ControlModel]) -> dict[str, float]:
    """Return the announced shares, by name."""
    return {part.name: part.row_share for part in parts if part.row_share is not None}


def estimate_decode_ms(model: ModelProfile, width: int, height: int, count: int) -> float:
    """Return calibrated milliseconds of `count` decodes at this size; the calibrated time includes upscaling."""
    return count * model.decode_ms * width * height / (model.size * model.size)
