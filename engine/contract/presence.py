"""What workers announce: their models, their free rows, and how far a model is."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engine.contract.fields import (
    MAX_INIT_IMAGES,
    MAX_ROWS,
    MAX_STEPS,
    ByteCount,
    Dtype,
    Feature,
    Fraction,
    GuidanceKind,
    Milliseconds,
    Name,
    Preprocessor,
    Quantization,
    Side,
    VersionedValue,
)
from engine.contract.recipe import Lora, ModelPart
from engine.contract.samplers import Sampler


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
