"""What follows from a recipe: recipe and noise of each image, names in its texts, added parts by their fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import msgspec

from engine.contract.fields import MAX_TEXT, Preprocessor
from engine.contract.recipe import (
    Concept,
    ControlImage,
    Interpolation,
    ModelPart,
    NoiseAncestor,
    Recipe,
    ReferenceImage,
)


def recipe_for_image(recipe: Recipe, image: int) -> Recipe:
    """Return the recipe of one of its images.

    With chaos, each image has its own guidance scale, evenly spaced in octaves. At a chaos of 1 they go from half the
    recipe's (measured from 1, where guidance begins) to twice that; images that splits add have the last one's. In an
    interpolation, each image has its own mix of both prompts, or its own noise between two seeds. The first and last
    frame, and a frame that falls on a given seed, have that prompt or seed alone. With styles, each image has the texts
    of one style.
    """
    if recipe.interpolation is not None:
        return _interpolated_recipe(recipe, recipe.interpolation, image)
    return _give_style(_guided_recipe(recipe, image), choose_style(recipe, image))


def _guided_recipe(recipe: Recipe, image: int) -> Recipe:
    last_candidate = max(recipe.count, recipe.candidate_count) - 1
    if not recipe.chaos or last_candidate == 0:
        return recipe
    position = min(candidate_index(recipe, image), last_candidate)
    octaves = recipe.chaos * (2 * position / last_candidate - 1)
    guidance = min(30.0, 1.0 + (recipe.guidance - 1.0) * 2.0**octaves)
    return msgspec.structs.replace(recipe, guidance=guidance)


def _interpolated_recipe(recipe: Recipe, interpolation: Interpolation, image: int) -> Recipe:
    recipe, styles = msgspec.structs.replace(recipe, styles=()), recipe.styles
    last_frame = interpolation.total_frames - 1
    frame = min(interpolation.first + image, last_frame)
    if interpolation.end_prompt is not None:
        end_concepts = (
            Concept(recipe.concepts[0].text, 1.0 - frame / last_frame),
            Concept(interpolation.end_prompt, frame / last_frame),
        )
        concepts = tuple(concept for concept in end_concepts if concept.weight)
        recipe = msgspec.structs.replace(recipe, concepts=concepts, mixed=len(concepts) > 1)
    if not interpolation.noises:
        return _give_style(recipe, find_style(styles, recipe.seed))
    segment, offset = divmod(frame * (len(interpolation.noises) - 1), last_frame)
    start_seed = interpolation.noises[segment]
    start = _give_style(msgspec.structs.replace(recipe, seed=start_seed, lineage=()), find_style(styles, start_seed))
    if not offset:
        return start
    end_seed = interpolation.noises[segment + 1]
    share = offset / last_frame
    end = _give_style(recipe, find_style(styles, end_seed))
    return msgspec.structs.replace(
        _mix_texts(start, end, share), seed=end_seed, lineage=(NoiseAncestor(seed=start_seed, index=0, strength=share),)
    )


def _mix_texts(start: Recipe, end: Recipe, share: float) -> Recipe:
    """Return the recipe with a text between those of two styles. Several concepts are never interpolated so."""
    if start.concepts == end.concepts:
        return start
    concepts = Concept(start.concepts[0].text, 1.0 - share), Concept(end.concepts[0].text, share)
    return msgspec.structs.replace(start, concepts=concepts, mixed=True)


def choose_style(recipe: Recipe, image: int) -> str:
    """Return the style of one image, "" without styles: neighbouring seeds take them in turn."""
    return find_style(recipe.styles, noise_seed(recipe, image))


def keep_style(recipe: Recipe, image: int) -> Recipe:
    """Return the recipe with the style of one image for all of its images, whatever their noise becomes."""
    style = choose_style(recipe, image)
    return msgspec.structs.replace(recipe, styles=(style,) if style else ())


def find_style(styles: Sequence[str], seed: int) -> str:
    """Return the style of this noise; "" without styles."""
    return styles[seed % len(styles)] if styles else ""


def _give_style(recipe: Recipe, style: str) -> Recipe:
    """Return the recipe with a style behind each text that it draws; a text that is steered away from has none.

    If somebody names a style, at the start or while the picture develops, no text gets another one. Nor does it if the
    style is to be avoided: it might be the one that the text would get.
    """
    if not style:
        return recipe
    if any(map(has_style, (recipe.negative, *(concept.text for concept in recipe.concepts)))):
        return msgspec.structs.replace(recipe, styles=())
    concepts = tuple(
        Concept(add_style(concept.text, style), concept.weight) if concept.weight > 0 else concept
        for concept in recipe.concepts
    )
    return msgspec.structs.replace(recipe, concepts=concepts, styles=())


def add_style(text: str, style: str) -> str:
    """Return a text with a style behind it.

    An empty text, which asks for anything, a very long one, and one that names a style stay alone.
    """
    styled_text = f"{text.rstrip(' ,.;')}, {style}"
    return styled_text if text and style and len(styled_text) <= MAX_TEXT and not has_style(text) else text


def noise_seed(recipe: Recipe, image: int) -> int:
    """Return the seed of an image's noise, from its own recipe (`recipe_for_image`)."""
    return recipe.seed if recipe.interpolation is not None else recipe.seed + candidate_index(recipe, image)


def candidate_index(recipe: Recipe, image: int) -> int:
    """Return the candidate that an image is: the chosen one, or without a choice the one of the same number."""
    return recipe.chosen_candidates[image] if recipe.chosen_candidates else image


def map_step(keyframe_step: int, keyframe_steps: int, steps: int) -> int:
    """Return the step at the same fraction of `steps`, rounded up; `steps` where none is left.

    Schedules spread their noise levels by the fraction of the steps. `InitLatents.at_noise_level` makes up for the
    remaining difference.
    """
    return -(-keyframe_step * steps // keyframe_steps)


# What people write for a style, whatever the model. Some are things as well, such as *pencil*: where a text has one of
# them, its pictures only have one style. Words that are nearly always something else (*flat*, *soft*) are left out.
_STYLE_WORDS = re.compile(
    r"\b(?:(?:style|render|photo|photograph|painting|watercolou?r|sketch|drawing|doodle|engraving|woodcut|mosaic|"
    r"cartoon|illustration|comic|icon|sticker|logo|pencil|crayon|voxel|pastel|vector|silhouette|blueprint|caricature|"
    r"fresco|lithograph)(?:s|es)?|styled|[23] ?d|8 ?bit|rendering|flat design|soft shading|(?:cel|toon) shad(?:ing|ed)|"
    r"(?:photo|hyper|sur)? ?real(?:ism|istic)|photography|monochrome|gr[ae]y ?scale|sepia|black (?:and|&) white|"
    r"(?:impression|expression|cub|minimal|pointill)is(?:m|t|tic)|painted|engraved|sketched|sketchy|illustrated|"
    r"hand drawn|cartoon(?:y|ish)|oil on canvas|in (?:oil|ink)s?|ink wash|gouache|charcoal|chalk|stained glass|anime|"
    r"manga|(?:pixel|clip|line|digital|concept|pop) ?art|art (?:deco|nouveau)|low poly|isometric|graffiti|claymation|"
    r"origami|paper ?cut|ukiyo e)\b",
    re.IGNORECASE,
)


def has_style(text: str) -> bool:
    """Return whether the text names a style; a hyphen counts as a space."""
    return _STYLE_WORDS.search(text.replace("-", " ")) is not None


@lru_cache(maxsize=64)
def compile_embedding_names(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of these names: a match is the name with its brackets, group 1 or 2 the name alone.

    Longer names win. Without names it matches nothing.
    """
    if not names:
        return re.compile(r"(?!)()()")
    choices = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    # Only ASCII letters have two cases here: names have no others, and `ſ` is no `s`.
    return re.compile(rf"<((?ai:{choices}))>|(?<![\w<-])((?ai:{choices}))(?![\w>-])")


def find_embeddings(texts: Iterable[str], embeddings: Sequence[ModelPart]) -> tuple[ModelPart, ...]:
    """Return those whose names occur in the texts, in their own order."""
    pattern = compile_embedding_names(tuple(part.name for part in embeddings))
    written_names = {(match[1] or match[2]).lower() for text in texts for match in pattern.finditer(text)}
    return tuple(part for part in embeddings if part.name.lower() in written_names)


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
