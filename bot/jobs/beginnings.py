"""Recipes that begin with an init image or at a keyframe instead of noise, or follow pictures. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from bot.domain.errors import UserError
from bot.jobs.init_images import LoadedInitImages
from bot.jobs.recipe import check_choice, interpolation_frame, remix_recipe, replace_start
from bot.prompt import ParsedPrompt, parse
from bot.prompt.capability_check import check_edit_pictures
from bot.prompt.concepts import clean_prompt
from bot.prompt.flag_aliases import expand_flag_aliases
from bot.prompt.flags import split_flags
from bot.prompt.model_parts import CONTROL, list_names, resolve_controls, resolve_references
from bot.prompt.parsed_prompt import MAX_RATIO
from bot.prompt.permutations import escape_braces, expand_braces
from engine.contract import (
    Amendment,
    Branch,
    DropImages,
    ModelProfile,
    Recipe,
    SetGuidance,
    SplitImage,
    find_ancestor,
    find_last_evaluation,
    find_life,
    is_edit,
    iterate_states,
    keep_style,
    list_final_images,
    map_step,
    noise_seed,
    recipe_at_end,
    recipe_at_step,
    recipe_for_image,
    settle_amendments,
)

AliasLoader = Callable[[str, str], Awaitable[Mapping[str, str]]]  # of a member and a text: the flag aliases in it
FIXED_SETTING = "A branch continues the sampling of its parent: its {} cannot be changed."
WHICH_CONTROL = "Say what of the control picture is followed, as --control NAME: {}."
FIXED_FIELDS = ("sampler", "width", "height", "model", "eta")
NO_EDITOR = "{} edits no pictures by words: name a model that does, or leave out --edit."
NO_STEPS_LEFT = "Of {} steps none remains after step {} of {}: use more --steps or an earlier step."


def with_input_aspect(parsed: ParsedPrompt, loaded_images: LoadedInitImages | None) -> ParsedPrompt:
    """Return the prompt with the aspect ratio of the init image, else of the control picture, unless it has its own."""
    if loaded_images is None or loaded_images.size is None or parsed.ar:
        return parsed
    width, height = loaded_images.size
    max_side = MAX_RATIO * min(width, height)
    return replace(parsed, ar=(min(width, max_side), min(height, max_side)))


def is_edit_requested(parsed: ParsedPrompt, model_profile: ModelProfile) -> bool:
    """Return whether the prompt says how its picture is changed, rather than what to draw from it."""
    return parsed.edit or model_profile.required == "picture"


def with_init_images(
    recipe: Recipe, parsed: ParsedPrompt, loaded_images: LoadedInitImages | None, model_profile: ModelProfile
) -> Recipe:
    """Return the recipe with its init images. Raises `UserError` for an edit that cannot be one.

    An edit is at full strength: the pictures are conditions, and the new one starts from noise.
    """
    strength = 1.0 if is_edit_requested(parsed, model_profile) else parsed.strength
    start = None if loaded_images is None else loaded_images.recipe_part(strength)
    if parsed.edit and not model_profile.edits:
        raise UserError(NO_EDITOR.format(model_profile.name))
    if parsed.edit and (start is None or start.mask is not None):
        raise UserError("An edit changes a picture by words: add that picture, and no mask.")
    if parsed.edit and start is not None:
        check_edit_pictures(start, model_profile)
    if start is None:
        return recipe
    recipe = msgspec.structs.replace(recipe, styles=(), v=1)  # the picture has a style
    return replace_start(recipe, start, None if parsed.steps is not None else recipe.steps)


def with_followed_pictures(
    recipe: Recipe, parsed: ParsedPrompt, loaded_images: LoadedInitImages | None, model_profile: ModelProfile
) -> Recipe:
    """Return the recipe with its control and reference images. Raises `UserError` for pictures without their network.

    Without a control picture, control follows the init image. A reference picture needs no flag.
    """
    control_pictures = loaded_images.control_pictures if loaded_images else ()
    reference_pictures = loaded_images.reference_pictures if loaded_images else ()
    if loaded_images is not None and loaded_images.has_control_pictures and not parsed.controls:
        raise UserError(WHICH_CONTROL.format(list_names(CONTROL, model_profile.controls)))
    controls = resolve_controls(parsed.controls, control_pictures, model_profile) if parsed.controls else ()
    references = (
        resolve_references(parsed.references or (), reference_pictures, model_profile)
        if parsed.references or reference_pictures
        else ()
    )
    styles = () if references else recipe.styles
    return msgspec.structs.replace(recipe, controls=controls, references=references, styles=styles, v=1)


def unused_strength_note(
    parsed: ParsedPrompt, loaded_images: LoadedInitImages | None, model_profile: ModelProfile
) -> tuple[str, ...]:
    """Return a note if a strength is given without an init image, or for an edit."""
    if parsed.strength is None:
        return ()
    if loaded_images is None or loaded_images.recipe_part(parsed.strength) is None:
        return ("--strength and --iw are for a picture to begin with, and there is none.",)
    if is_edit_requested(parsed, model_profile):
        return ("--strength and --iw change nothing here: an edit sees the picture beside the words.",)
    return ()


def unused_start_notes(parsed: ParsedPrompt, recipe: Recipe, model_profile: ModelProfile) -> tuple[str, ...]:
    """Return a note on each flag for an init image that a remix does not use: it begins as its parent did."""
    notes: list[str] = []
    if parsed.edit and not is_edit(recipe, model_profile):
        notes.append("--edit is for a new prompt beside a picture: this keeps what the job began with.")
    if parsed.strength is not None:
        notes.append("--strength and --iw change nothing in a remix: it keeps what the job began with.")
    return tuple(notes)


def single_image(recipe: Recipe, image: int) -> Recipe:
    """Return the recipe of one image alone, run to its last step: the same noise stream, guidance and style.

    Raises `UserError` if the judge has not chosen yet.
    """
    check_choice(recipe)
    styles = () if recipe.interpolation else keep_style(recipe, image).styles
    image_recipe = recipe_for_image(msgspec.structs.replace(recipe, styles=()) if styles else recipe, image)
    amendments = tuple(_amend_one(recipe, amendment, image) for amendment in recipe.amendments)
    return msgspec.structs.replace(
        image_recipe,
        amendments=amendments,
        seed=noise_seed(image_recipe, image),
        count=1,
        chaos=0.0,
        stop_at=1.0,
        interpolation=None,
        candidate_count=0,
        chosen_candidates=(),
        styles=styles,
    )


def _amend_one(recipe: Recipe, amendment: Amendment, image: int) -> Amendment:
    """Return an amendment for one image alone: with chaos, each image has guidance of its own."""
    change = amendment.change
    if not recipe.chaos or not isinstance(change, SetGuidance):
        return amendment
    own_recipe = recipe_for_image(msgspec.structs.replace(recipe, guidance=change.guidance), image)
    return msgspec.structs.replace(amendment, change=msgspec.structs.replace(change, guidance=own_recipe.guidance))


def remix_base(recipe: Recipe, image: int | None) -> Recipe:
    """Return what a remix goes on from: the words that the pictures ended with, and their noise.

    It is one image alone in an interpolation, if steering left one, and if a split gave it noise of its own.
    """
    images = list_final_images(recipe)
    if recipe.amendments and image is None and len(images) == 1:
        image = images[0]
    life = None if image is None else find_life(recipe, image)
    if image is None or life is None:
        return recipe_at_end(recipe)
    if recipe.amendments and (len(images) == 1 or life.seed is not None):
        return msgspec.structs.replace(single_image(settle_amendments(recipe, image), image), stop_at=recipe.stop_at)
    return interpolation_frame(recipe_at_end(recipe), image)


def branch_base(recipe: Recipe, image: int, step: int, end: int | None = None) -> Recipe:
    """Return what a branch of one image at a keyframe of step `step` goes on from, alone.

    Its noise is that of the image at that step, which a split may have left since. What was changed before step `end`
    holds, also where that is after the keyframe. None: what was changed up to the keyframe.
    """
    life = find_ancestor(recipe, image, step)
    if not recipe.amendments or life is None:
        return single_image(recipe, image)
    end = step + 1 if end is None else end
    known = msgspec.structs.replace(
        recipe, amendments=tuple(amendment for amendment in recipe.amendments if amendment.step < end)
    )
    settled = settle_amendments(known, life.image, step)
    first_state = recipe_at_step(known, step)
    if all(state == first_state for _, state in iterate_states(known, step, recipe.steps)):
        return single_image(settled, life.image)
    words = tuple(each for each in known.amendments if not isinstance(each.change, DropImages | SplitImage))
    branched = msgspec.structs.replace(
        known, seed=settled.seed, lineage=settled.lineage, styles=settled.styles, amendments=words
    )
    return single_image(branched, life.image)


@dataclass(frozen=True)
class BranchEdit:
    """What changes from a keyframe on: a new prompt (with flags) in place of `old_prompt`, or flags alone.

    `options` as in `bot.prompt.parse`.
    """

    old_prompt: str
    new_prompt: str | None
    options: Mapping[str, object]

    @property
    def shown_prompt(self) -> str:
        """The prompt to show with the new job."""
        return self.old_prompt if self.new_prompt is None else " ".join(self.new_prompt.split())


def expand_aliases(text: str, aliases: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Expand flag aliases in a text for one job, with a note on each. Raises `UserError` for several permutations."""
    if not aliases:
        return text, ()
    first, *further = expand_braces(clean_prompt(text))
    if further:
        raise UserError("One job at a time: leave out the braces.")
    expanded_text, notes = expand_flag_aliases(first, aliases)
    return escape_braces(expanded_text), notes


def branch_recipe(
    base: Recipe,
    ladder: str,
    step: int,
    edit: BranchEdit,
    model_profile: ModelProfile,
    models: Sequence[str] = (),
    parent: Recipe | None = None,
) -> Recipe:
    """Return `base` as a branch from `step` of a ladder (by SHA-256), which `parent` made; None: `base` itself did.

    Raises `UserError` for changes that sampling does not allow.

    Without changes it gives the same picture. A seed, or several pictures, also draw the noise at that keyframe anew.
    Another number of steps means the whole schedule: the branch runs its share of them.
    """
    _refuse_lost_picture(base, model_profile)
    branch = base
    has_new_noise = False
    if edit.new_prompt is not None or edit.options:
        branch = base = settle_amendments(base, 0, step)
        parsed = _parse_edit(edit, base, models)
        if parsed.strength is not None:
            raise UserError(FIXED_SETTING.format("strength"))
        branch = remix_recipe(base, parsed, model_profile)
        has_new_noise = parsed.seed is not None
        if edit.new_prompt is None:  # a frame of an interpolation has a prompt that nobody typed
            styles = () if parsed.raw else base.styles
            branch = msgspec.structs.replace(branch, concepts=base.concepts, mixed=base.mixed, styles=styles)
    for name in FIXED_FIELDS:
        if getattr(branch, name) != getattr(base, name):
            raise UserError(FIXED_SETTING.format({"width": "shape", "height": "shape"}.get(name, name)))
    keyframe = Branch(ladder=ladder, step=step, has_new_noise=has_new_noise or branch.drawn_count > 1)
    branch_point = _move_branch_point(step, parent or base, branch, keyframe)
    return msgspec.structs.replace(branch, start=branch_point, lineage=() if has_new_noise else base.lineage)


def _refuse_lost_picture(base: Recipe, model_profile: ModelProfile) -> None:
    """Raise `UserError` for a picture that is drawn with another one in sight, which a branch does not keep."""
    if model_profile.required or is_edit(base, model_profile):
        raise UserError(
            f"{model_profile.name} drew this with the picture that it changes in sight, and a branch does not keep "
            "that picture: remix it instead."
        )


def _move_branch_point(step: int, parent: Recipe, branch: Recipe, branch_point: Branch) -> Branch:
    """Move the branch point into the branch's schedule, where its last evaluation differs: an x0 from there corrects
    nothing. Raises `UserError` if no step remains after it.
    """
    unmoved = msgspec.structs.replace(branch, start=branch_point)
    if branch.steps == parent.steps and find_last_evaluation(parent, step) == find_last_evaluation(unmoved, step):
        return branch_point
    moved_step = map_step(step, parent.steps, branch.steps)
    if moved_step >= branch.steps:
        raise UserError(NO_STEPS_LEFT.format(branch.steps, step, parent.steps))
    return msgspec.structs.replace(branch_point, step=moved_step, ladder_step=step)


def _parse_edit(edit: BranchEdit, base: Recipe, models: Sequence[str]) -> ParsedPrompt:
    """Parse one request; flags in the old prompt no longer count."""
    text = escape_braces(split_flags(edit.old_prompt)[0]) if edit.new_prompt is None else edit.new_prompt
    return parse_one(
        text, {"negative": base.negative, **edit.options}, models, "branch", allow_empty=edit.new_prompt is None
    )


def parse_one(
    text: str, options: Mapping[str, object], models: Sequence[str], noun: str, *, allow_empty: bool = False
) -> ParsedPrompt:
    """Parse a text for one job. Raises `UserError` for several."""
    first, *further = parse(text, None, models=models, options=options, allow_empty=allow_empty).prompts
    if further:
        raise UserError(f"One {noun} at a time: leave out the braces and --repeat.")
    return first


def nearest_step_note(actual: int, requested: int) -> tuple[str, ...]:
    """Return a note if the branch point is not the requested step."""
    note = f"Branched at step {actual}: the nearest to {requested} that keeps its latents."
    return (note,) if actual != requested else ()
