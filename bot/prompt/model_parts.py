"""What a recipe takes of a model's further parts, with their revisions: control networks, reference adapters, another
autoencoder, textual inversions. Pure.

Each refusal names what the model has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.part_flags import DEFAULT_CONTROL_SCALE, DEFAULT_REFERENCE_SCALE, RequestedControl, RequestedReference
from engine.contract import (
    MAX_CONTROLS,
    MAX_EMBEDDINGS,
    MAX_REFERENCES,
    ControlImage,
    ControlModel,
    ModelPart,
    ReferenceImage,
    find_embeddings,
)

if TYPE_CHECKING:
    from engine.contract import ModelProfile, Preprocessor

Part = TypeVar("Part", ControlModel, ModelPart)

OWN_AUTOENCODER = "none"  # `--vae none`: the model's own
_BRACKETED = re.compile(r"<([A-Za-z][A-Za-z0-9._-]{0,63})>")


@dataclass(frozen=True)
class PartKind:
    """How sentences name a kind of part: in one, in several, its flag, and its folder in a worker's data folder."""

    noun: str
    plural: str
    flag: str
    folder: str


CONTROL = PartKind("control", "controls", "--control", "controlnets")
REFERENCE = PartKind("reference adapter", "reference adapters", "--reference", "ip-adapters")
AUTOENCODER = PartKind("autoencoder", "further autoencoders", "--vae", "vaes")


def find_part(parts: Sequence[Part], name: str) -> Part | None:
    """Return the part of that name, whatever its case; None if there is none."""
    return next((part for part in parts if part.name.lower() == name.lower()), None)


def resolve_controls(
    requested: Sequence[RequestedControl], pictures: Sequence[str], model_profile: ModelProfile
) -> tuple[ControlImage, ...]:
    """Return the control images: each network with its picture (SHA-256). Raises `UserError`.

    A single picture serves all networks; else there is one for each.
    """
    paired_pictures = _pair("--control", len(requested), pictures)
    controls = tuple(
        _resolve_control(control, picture, model_profile)
        for control, picture in zip(requested, paired_pictures, strict=True)
    )
    if len(controls) > MAX_CONTROLS:
        raise UserError(f"At most {MAX_CONTROLS} controls may be used at once; these are {len(controls)}.")
    return controls


def _resolve_control(control: RequestedControl, picture: str, model_profile: ModelProfile) -> ControlImage:
    network = find_control(control.name, model_profile)
    return ControlImage(
        name=network.name,
        picture=picture,
        preprocessor=_choose_preprocessor(control.preprocessor, network, model_profile),
        scale=DEFAULT_CONTROL_SCALE if control.scale is None else control.scale,
        start=control.start,
        stop=control.stop,
        revision=network.revision,
    )


def find_control(name: str, model_profile: ModelProfile) -> ControlModel:
    """Return the model's control network of that name, else the first that usually takes such a picture: `canny`.

    Raises `UserError`.
    """
    by_name = (network for network in model_profile.controls if network.name.lower() == name.lower())
    by_kind = (network for network in model_profile.controls if network.preprocessor == name.lower() != "none")
    if (network := next(chain(by_name, by_kind), None)) is None:
        raise UserError(missing_text(CONTROL, name, model_profile.name, model_profile.controls))
    return network


def _choose_preprocessor(
    requested: Preprocessor | None, network: ControlModel, model_profile: ModelProfile
) -> Preprocessor:
    """Return the requested preprocessor, else the usual one. Raises `UserError` if no worker can run it."""
    preprocessor = network.preprocessor if requested is None else requested
    if preprocessor != "none" and preprocessor not in model_profile.preprocessors:
        raise UserError(
            f"No worker can make a {preprocessor} picture of yours: add one that is made already, as "
            f"{network.name}:none."
        )
    return preprocessor


def resolve_references(
    requested: Sequence[RequestedReference], pictures: Sequence[str], model_profile: ModelProfile
) -> tuple[ReferenceImage, ...]:
    """Return the reference images: each picture (SHA-256) with its adapter. Raises `UserError`.

    A single request holds for all pictures, and none means the model's first adapter.
    """
    requests = tuple(requested) or (RequestedReference(),)
    if len(requests) == 1 and pictures:
        requests *= len(pictures)
    paired_pictures = _pair("--reference", len(requests), pictures)
    if len(requests) > MAX_REFERENCES:
        raise UserError(f"At most {MAX_REFERENCES} reference pictures may be used; these are {len(requests)}.")
    return tuple(
        _resolve_reference(reference, picture, model_profile)
        for reference, picture in zip(requests, paired_pictures, strict=True)
    )


def _resolve_reference(reference: RequestedReference, picture: str, model_profile: ModelProfile) -> ReferenceImage:
    adapters = model_profile.references
    adapter = find_part(adapters, reference.name) if reference.name else next(iter(adapters), None)
    if adapter is None:
        raise UserError(missing_text(REFERENCE, reference.name, model_profile.name, adapters))
    scale = DEFAULT_REFERENCE_SCALE if reference.scale is None else reference.scale
    return ReferenceImage(adapter.name, picture, scale, adapter.revision)


def _pair(flag: str, count: int, pictures: Sequence[str]) -> Sequence[str]:
    """Return a picture for each of `count` requests. Raises `UserError` if their numbers do not fit."""
    if len(pictures) == 1:
        return tuple(pictures) * count
    if not pictures:
        raise UserError(f"{flag} is for a picture beside the prompt, and there is none: add one, or leave it out.")
    if len(pictures) != count:
        raise UserError(f"These are {len(pictures)} pictures for {count} × {flag}: give one picture for each.")
    return pictures


def resolve_autoencoder(name: str | None, model_profile: ModelProfile) -> ModelPart | None:
    """Return the autoencoder of that name; None for the model's own. Raises `UserError`."""
    if name is None or name.lower() == OWN_AUTOENCODER:
        return None
    part = find_part(model_profile.autoencoders, name.removesuffix(".safetensors"))
    if part is None:
        raise UserError(missing_text(AUTOENCODER, name, model_profile.name, model_profile.autoencoders))
    return ModelPart(part.name, part.revision)


def missing_text(kind: PartKind, name: str, model: str, parts: Sequence[ControlModel] | Sequence[ModelPart]) -> str:
    """Say that a model lacks a part, and which it has."""
    if not parts:
        return (
            f"There are no {kind.plural} for {model}: this bot's operator can put them into {kind.folder}/ in the "
            "worker's data folder."
        )
    names = shorten(", ".join(part.name for part in parts), 200)
    return f"There is no {kind.noun} {shorten(name, 40)} for {model}; {kind.flag} takes: {names}."


def list_names(kind: PartKind, parts: Sequence[ControlModel] | Sequence[ModelPart]) -> str:
    """Return the names that a flag takes, or that there are none."""
    return shorten(", ".join(part.name for part in parts), 200) if parts else f"there are no {kind.plural} here"


def choose_embeddings(texts: Iterable[str], model_profile: ModelProfile) -> tuple[ModelPart, ...]:
    """Return the textual inversions whose names occur in the texts. Raises `UserError` for too many."""
    embeddings = find_embeddings(texts, model_profile.embeddings)
    if len(embeddings) > MAX_EMBEDDINGS:
        names = shorten(", ".join(part.name for part in embeddings), 200)
        raise UserError(f"A prompt may name {MAX_EMBEDDINGS} textual inversions; these are {len(embeddings)}: {names}.")
    return embeddings


def list_unknown_embeddings(texts: Iterable[str], model_profile: ModelProfile) -> tuple[str, ...]:
    """Return the names in angle brackets that are no textual inversion of the model."""
    names = (match[1] for text in texts for match in _BRACKETED.finditer(text))
    return tuple(dict.fromkeys(name for name in names if find_part(model_profile.embeddings, name) is None))


def renew_controls(controls: Iterable[ControlImage], model_profile: ModelProfile) -> tuple[ControlImage, ...]:
    """Return control images with the revisions of the model's networks. Raises `UserError` if one is gone."""
    return tuple(
        _resolve_control(
            RequestedControl(control.name, control.scale, control.start, control.stop, control.preprocessor),
            control.picture,
            model_profile,
        )
        for control in controls
    )


def renew_references(references: Iterable[ReferenceImage], model_profile: ModelProfile) -> tuple[ReferenceImage, ...]:
    """Return reference images with the revisions of the model's adapters. Raises `UserError` if one is gone."""
    return tuple(
        _resolve_reference(RequestedReference(reference.name, reference.scale), reference.picture, model_profile)
        for reference in references
    )


def renew_embeddings(embeddings: Iterable[ModelPart], model_profile: ModelProfile) -> tuple[ModelPart, ...]:
    """Return textual inversions with their present revisions. Raises `UserError` if one is gone."""
    renewed: list[ModelPart] = []
    for embedding in embeddings:
        if (part := find_part(model_profile.embeddings, embedding.name)) is None:
            raise UserError(f"{model_profile.name} no longer has the textual inversion {embedding.name}.")
        renewed.append(ModelPart(part.name, part.revision))
    return tuple(renewed)
