"""A recipe's further parts as fields of A1111's parameters, for bot and engine. Pure.

The names are those of AUTOMATIC1111's web UI (`Clip skip`, `VAE`, `TI hashes`), of its ControlNet extension
(`ControlNet 0`, reference adapters too) and of Forge (`Diffusion in Low Bits`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from engine.contract.fields import Preprocessor
from engine.contract.recipe import ControlImage, Recipe, ReferenceImage

REFERENCE_MODULE = "ip-adapter"
MODULES: Mapping[Preprocessor, str] = MappingProxyType(
    {"none": "none", "canny": "canny", "depth": "depth", "pose": "openpose", "lineart": "lineart"}
)


def make_part_fields(recipe: Recipe) -> dict[str, str]:
    """Return the fields of a recipe's parts, in order; none for a recipe without them. Pictures are named by their
    SHA-256.
    """
    units = (*map(_control_unit, recipe.controls), *map(_reference_unit, recipe.references))
    fields = {f"ControlNet {index}": f'"{unit}"' for index, unit in enumerate(units)}
    if recipe.autoencoder is not None:
        fields["VAE"] = recipe.autoencoder.name
        fields |= {"VAE hash": recipe.autoencoder.revision[:10]} if recipe.autoencoder.revision else {}
    if recipe.clip_skip:
        fields["Clip skip"] = str(recipe.clip_skip + 1)
    if recipe.embeddings:
        hashes = ", ".join(f"{part.name}: {part.revision[:12]}" for part in recipe.embeddings)
        fields["TI hashes"] = f'"{hashes}"'
    if recipe.quantization != "none":
        fields["Diffusion in Low Bits"] = recipe.quantization
    return fields


def _control_unit(control: ControlImage) -> str:
    return (
        f"{_describe_network(MODULES[control.preprocessor], control)}, Guidance Start: {control.start:g}, "
        f"Guidance End: {control.stop:g}, Picture: {control.picture[:10]}"
    )


def _reference_unit(reference: ReferenceImage) -> str:
    return f"{_describe_network(REFERENCE_MODULE, reference)}, Picture: {reference.picture[:10]}"


def _describe_network(module: str, image: ControlImage | ReferenceImage) -> str:
    revision = f" [{image.revision[:8]}]" if image.revision else ""
    return f"Module: {module}, Model: {image.name}{revision}, Weight: {image.scale:g}"
