"""What follows from a recipe: recipe and noise of each image, names in its texts, steps and rows of its network."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

import msgspec

from engine.contract.fields import MAX_TEXT, PIPELINE_SAMPLERS, Preprocessor, Sampler
from engine.contract.recipe import (
    Concept,
    ControlImage,
    ImageToImage,
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


MIN_EVALUATIONS = 5
DRAFT_EVALUATIONS = 25
USUAL_EVALUATIONS = 100
# How densely DDPM's evaluations lie, as measured on the embedded model (decision 78). Where guidance begins midway, x0
# moves at first nine times as fast as later. Before that, a small error may lead to another drawing. Toward the end,
# nothing makes up for an error any more.
EARLY_DENSITY = 1.6
ONSET_DENSITY = 8.0
ONSET_SHARE = 0.06
LEAST_DENSITY = 0.3


def count_usual_evaluations(sampler: Sampler, steps: int) -> int:
    """Return at how many steps the network is evaluated unless somebody says otherwise; 0: at all."""
    return USUAL_EVALUATIONS if sampler not in PIPELINE_SAMPLERS and steps > USUAL_EVALUATIONS else 0


def list_evaluated_steps(recipe: Recipe) -> Sequence[int]:
    """Return the steps of the whole chain at which the network is evaluated, in order.

    Always among them are the first and the last step, those that the recipe begins and ends at, and its borders
    (`find_borders`). Guidance counts as the recipe has it at first: an amendment moves no evaluation.
    """
    if not has_skipped_steps(recipe):
        return range(recipe.steps)
    guided_steps = find_guided_steps(recipe, 0, recipe.steps)
    needed_steps = (*find_borders(recipe), recipe.first_step, recipe.end_step - 1, recipe.end_step)
    return _list_steps(recipe.sampler, recipe.steps, recipe.evaluations, guided_steps, needed_steps)


def find_borders(recipe: Recipe) -> tuple[int, ...]:
    """Return the steps from which on the network is asked for something else: guidance or a control begins or ends."""
    first_step = recipe.first_step if isinstance(recipe.start, ImageToImage) else 0
    count = recipe.steps - first_step  # controls count from an init image on, as diffusers' pipelines do
    begins = (bisect_left(range(count), each.start, key=lambda step: step / count) for each in recipe.controls)
    ends = (bisect_right(range(count), each.stop, key=lambda step: (step + 1) / count) for each in recipe.controls)
    control_borders = (first_step + step for step in (*begins, *ends) if 0 < step < count)
    return tuple(sorted({*find_guidance_borders(recipe), *control_borders}))


def has_skipped_steps(recipe: Recipe) -> bool:
    """Return whether the network is evaluated at some steps only."""
    return 0 < recipe.evaluations < recipe.steps


def count_requested_evaluations(recipe: Recipe) -> int:
    """Return at how many steps the network is evaluated, as the recipe's flag says it: all, where none is skipped."""
    return recipe.evaluations or recipe.steps


def is_draft(recipe: Recipe) -> bool:
    """Return whether it has so few evaluations that somebody may want to finish it."""
    return has_skipped_steps(recipe) and recipe.evaluations <= DRAFT_EVALUATIONS


def find_next_evaluation(recipe: Recipe, step: int) -> int:
    """Return the first step after `step` at which the network is evaluated; the number of steps if there is none."""
    steps = list_evaluated_steps(recipe)
    position = bisect_right(steps, step)
    return steps[position] if position < len(steps) else recipe.steps


def find_last_evaluation(recipe: Recipe, step: int) -> int:
    """Return the last step before `step` at which the network is evaluated; -1 if there is none."""
    steps = list_evaluated_steps(recipe)
    position = bisect_left(steps, step)
    return steps[position - 1] if position else -1


def count_evaluations(recipe: Recipe, first_step: int | None = None, end_step: int | None = None) -> int:
    """Return how often the network is evaluated from one step to before another; by default while the recipe runs."""
    first_step = recipe.first_step if first_step is None else first_step
    end_step = recipe.end_step if end_step is None else end_step
    return count_between(list_evaluated_steps(recipe), first_step, end_step)


def count_between(steps: Sequence[int], first_step: int, end_step: int) -> int:
    """Return how many of the evaluated `steps` lie from one step to before another."""
    return max(0, bisect_left(steps, end_step) - bisect_left(steps, first_step))


def find_done_share(recipe: Recipe, step: int) -> float:
    """Return the share of a recipe's evaluations that come before a step."""
    total = count_evaluations(recipe)
    return min(1.0, count_evaluations(recipe, end_step=step) / total) if total else 1.0


@lru_cache(maxsize=256)
def _list_steps(
    sampler: Sampler, steps: int, count: int, guided_steps: tuple[int, int], needed_steps: tuple[int, ...]
) -> tuple[int, ...]:
    """Return `count` steps, and perhaps some of `needed_steps` besides; else the nearest steps give way to these."""
    densities = [_find_density(sampler, step, steps, guided_steps) for step in range(steps)]
    chosen = {*_spread(densities, count)}
    needed = {0, steps - 1, *(step for step in needed_steps if step < steps)}
    for step in sorted(needed - chosen):
        if others := chosen - needed:
            chosen.remove(min(others, key=lambda other: (abs(other - step), other)))
        chosen.add(step)
    return tuple(sorted(chosen))


def _find_density(sampler: Sampler, step: int, steps: int, guided_steps: tuple[int, int]) -> float:
    """Return how densely the evaluations lie at a step, on any scale. Samplers but DDPM have them evenly."""
    if sampler != "ddpm":
        return 1.0
    first_guided_step, end_of_guidance = guided_steps
    share = step / steps
    density = LEAST_DENSITY + share * share * share * share
    if step < first_guided_step:
        return density * EARLY_DENSITY
    if step >= end_of_guidance or first_guided_step == 0:
        return density
    return density * (1.0 + ONSET_DENSITY / (1.0 + (step - first_guided_step) / (ONSET_SHARE * steps)) ** 2)


def _spread(densities: Sequence[float], count: int) -> Iterator[int]:
    """Yield `count` steps, the first and the last among them, that lie as densely as this says."""
    *starts, total = accumulate(densities, initial=0.0)
    last = -1
    for number in range(count - 1):
        nearest = bisect_left(starts, total * number / (count - 1))
        last = min(max(last + 1, nearest), len(starts) - count + number)  # as many steps must remain as are missing
        yield last
    yield len(starts) - 1


def is_guided(recipe: Recipe, step: int) -> bool:
    """Return whether guidance holds at this step."""
    return is_in_interval(recipe.guidance_interval, step, recipe.steps)


def find_guided_steps(recipe: Recipe, first_step: int, end_step: int) -> tuple[int, int]:
    """Return between which of the steps from `first_step` to before `end_step` guidance holds: from, to before."""
    first_guided_step, end_of_guidance = _interval_steps(recipe.guidance_interval, recipe.steps)
    return max(first_guided_step, first_step), min(end_of_guidance, end_step)


def is_in_interval(interval: tuple[float, float], step: int, steps: int) -> bool:
    """Return whether this step of `steps` lies between these fractions, counted as diffusers' guiders do."""
    first_step, end_step = _interval_steps(interval, steps)
    return first_step <= step < end_step


def find_guidance_borders(recipe: Recipe) -> tuple[int, ...]:
    """Return the steps at which guidance begins and ends, but for the first and the end of all steps."""
    if recipe.guidance_kind == "network":
        return ()
    return tuple(step for step in _interval_steps(recipe.guidance_interval, recipe.steps) if 0 < step < recipe.steps)


def _interval_steps(interval: tuple[float, float], steps: int) -> tuple[int, int]:
    return int(interval[0] * steps), int(interval[1] * steps)


def needs_unconditional_row(recipe: Recipe, is_guidance_on: bool = True) -> bool:
    """Return whether the empty or negative text u needs a row.

    The prediction u + guidance·Σ wᵢ(cᵢ - u) lacks u where guidance·Σ wᵢ = 1. Where guidance is off, its scale is
    1/Σ wᵢ, so that u cancels. If a concept has a weight of 0 or less, the scale is 1 and u stays: a sum near 0 would
    blow everything up.
    """
    if recipe.guidance_kind == "network":
        return False
    if not is_guidance_on:
        return has_negative_weight(recipe)
    return recipe.guidance * (1.0 if recipe.mixed else sum(concept.weight for concept in recipe.concepts)) != 1.0


def has_negative_weight(recipe: Recipe) -> bool:
    """Return whether a concept has a weight of 0 or less."""
    return any(concept.weight <= 0.0 for concept in recipe.concepts)


def count_rows(recipe: Recipe, is_guidance_on: bool = True) -> int:
    """Return network rows a step of all images."""
    return recipe.drawn_count * count_image_rows(recipe, is_guidance_on)


def count_image_rows(recipe: Recipe, is_guidance_on: bool = True) -> int:
    """Return an image's rows a step: one for each concept, plus the empty or negative text unless it cancels."""
    return (1 if recipe.mixed else len(recipe.concepts)) + needs_unconditional_row(recipe, is_guidance_on)


def pinned_bucket(recipe: Recipe, is_guidance_on: bool = True) -> int | None:
    """Return the pinned batch shape; without guidance it shrinks with the rows of an image."""
    return recipe.bucket and max(1, recipe.bucket * count_rows(recipe, is_guidance_on) // count_rows(recipe))
