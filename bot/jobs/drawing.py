"""Makes jobs from prompts. Front ends are adapters over it; every refusal is a `UserError` with one sentence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from ulid import ULID

from bot.domain.dto import AcceptedJob, Destination, JobAction, Member
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.jobs.admission import Admission, build_job, draw_seed
from bot.jobs.beginnings import (
    AliasLoader,
    is_edit_requested,
    unused_strength_note,
    with_followed_pictures,
    with_init_images,
    with_input_aspect,
)
from bot.jobs.init_images import InitImageLoader, InitImages, LoadedInitImages, PageAddresses, split_leading_urls
from bot.jobs.model_catalog import CatalogEntry, ModelCatalog
from bot.jobs.recipe import interpolation_recipes, offline_note, pin_batch_shape
from bot.policy.rules import EffectiveRules
from bot.prompt import ParsedPrompt, ParseResult, build_recipe, make_remarks, parse
from bot.prompt.capability_check import check_capabilities, check_start
from bot.prompt.flag_aliases import add_end_prompt_suffix, add_suffix
from bot.store import NewJob
from engine.contract import Recipe
from engine.prompt.style_guide import StyleGuide

NO_EDITOR = "No worker has a model that edits pictures by words, such as FLUX.2, FLUX.1 Kontext or Qwen-Image-Edit."
SUFFIX_ADDED = "Your suffix was added: “{}”."


@dataclass(eq=False)
class JobService:
    """Jobs from prompts; `style_guides` are by model. Jobs from pictures: `VariationService` and `EditService`."""

    catalog: ModelCatalog
    admission: Admission
    init_image_loader: InitImageLoader
    load_aliases: AliasLoader
    effective_rules: Callable[[Member], Awaitable[EffectiveRules]]
    page_addresses: PageAddresses
    style_guides: Mapping[str, StyleGuide]

    async def imagine(
        self,
        text: str,
        member: Member,
        destination: Destination,
        *,
        key: str | None = None,
        is_exact: bool = False,
        suffix: str = "",
        init_images: InitImages | None = None,
        action: JobAction = "imagine",
        **options: object,
    ) -> list[AcceptedJob]:
        """Admit a prompt as jobs, one for each permutation; all of them or none. Raises `UserError`.

        `options` override the flags in the text: steps, seed, guidance, interval, sampler, model, count, ar, fast,
        turbo, evaluations, draft, best, negative, strength, edit, stop, tile, mix, chaos, raw, repeat, quality,
        walk, frames, control, reference, vae, clip_skip; `lora` adds to them. An interpolation (`walk`) makes as
        many jobs as its pictures need. An `edit` takes a model that edits, unless one is named.

        With `init_images` the prompt may be empty, and without --ar they give the aspect ratio, as a control picture
        does. URLs at the beginning of the text are init images too, from Discord or our page.

        `suffix` goes behind the prompt, with a note, as on each flag alias. `is_exact` pins the batch shape, so that
        load cannot change the last bits. The same `key` again returns the same jobs.
        """
        text, init_images = split_leading_urls(text, init_images, self.page_addresses)
        full_text = add_suffix(text, suffix if text else "")
        parsed = await self._parse(
            text, full_text, suffix, member, options, allow_empty=bool(init_images and init_images.pictures)
        )
        if key is None and any(parsed_prompt.end_prompt for parsed_prompt in parsed.prompts):
            key = f"walk:{ULID()}"  # links the jobs of an interpolation
        parsed = await self._choose_editors(parsed, member, len(init_images.pictures) if init_images else 0)
        if init_images is None:
            new_jobs = self._build_jobs(parsed, action, member, destination, None, is_exact=is_exact)
            return await self.admission.admit(new_jobs, key)
        actions = self._list_actions(parsed, action, len(init_images.pictures))
        count = len(parsed.prompts)
        relaxed = any(parsed_prompt.relaxed for parsed_prompt in parsed.prompts)
        for checked_action in actions:
            if existing_jobs := await self.admission.check_before_content(
                checked_action, member, key, full_text, count=count, relaxed=relaxed
            ):
                return existing_jobs
        async with self.init_image_loader.open_init_images(member, init_images) as loaded_images:
            new_jobs = self._build_jobs(parsed, actions[-1], member, destination, loaded_images, is_exact=is_exact)
            return await self.admission.admit(new_jobs, key, loaded_images.new_contents)

    async def _parse(
        self,
        text: str,
        full_text: str,
        suffix: str,
        member: Member,
        options: Mapping[str, object],
        *,
        allow_empty: bool,
    ) -> ParseResult:
        """Parse a prompt with the member's flag aliases. `full_text`: the text with its suffix."""
        aliases = await self.load_aliases(member.id, full_text)
        parsed = parse(
            full_text,
            self.catalog.find_entry(None).profile,
            models=self.catalog.model_names(),
            options=options,
            allow_empty=allow_empty,
            aliases=aliases,
        )
        suffix_notes = (SUFFIX_ADDED.format(shorten(suffix, 100)),) if full_text != text else ()
        parsed_prompts = tuple(
            replace(parsed_prompt, end_prompt=add_end_prompt_suffix(parsed_prompt.end_prompt, suffix, aliases))
            if parsed_prompt.end_prompt
            else parsed_prompt
            for parsed_prompt in parsed.prompts
        )
        return ParseResult(parsed_prompts, (*suffix_notes, *parsed.notes))

    def _build_jobs(
        self,
        parsed: ParseResult,
        action: JobAction,
        member: Member,
        destination: Destination,
        loaded_images: LoadedInitImages | None,
        *,
        is_exact: bool,
    ) -> list[NewJob]:
        """Return the jobs of all permutations. Raises `UserError` if a model cannot draw one."""
        default_entry = self.catalog.find_entry(None)
        new_jobs = list[NewJob]()
        inputs, input_notes = (loaded_images.inputs, loaded_images.notes) if loaded_images else ((), ())
        for parsed_prompt in parsed.prompts:
            entry = self.catalog.find_entry(parsed_prompt.model) if parsed_prompt.model else default_entry
            style_guide = self.style_guides.get(entry.profile.name)
            recipes = _build_recipes(parsed_prompt, entry, draw_seed(), loaded_images, style_guide, is_exact=is_exact)
            is_default = entry.profile.name == default_entry.profile.name
            model_notes = () if is_default else make_remarks(parsed_prompt, entry.profile)
            strength_notes = unused_strength_note(parsed_prompt, loaded_images, entry.profile)
            notes = tuple(dict.fromkeys((*input_notes, *parsed.notes, *model_notes, *strength_notes)))
            notes = notes if entry.is_live else (*notes, offline_note(entry, self.catalog.has_workers))
            shown_prompt = " ".join(parsed_prompt.text.split())
            new_jobs += [
                build_job(
                    action,
                    shown_prompt,
                    recipe,
                    entry,
                    member,
                    destination,
                    notes=notes,
                    relaxed=parsed_prompt.relaxed,
                    inputs=inputs,
                )
                for recipe in recipes
            ]
        return new_jobs

    async def _choose_editors(self, parsed: ParseResult, member: Member, pictures: int) -> ParseResult:
        """Return the prompts; an edit without a model gets one for so many pictures, if possible one that is allowed.

        Raises `UserError` if there is none.
        """
        if not any(prompt.edit and not prompt.model for prompt in parsed.prompts):
            return parsed
        rules = await self.effective_rules(member)
        if (editor := self.catalog.find_editor(partial(rules.allows, "models"), pictures)) is None:
            raise UserError(NO_EDITOR)
        prompts = (
            replace(prompt, model=editor.profile.name) if prompt.edit and not prompt.model else prompt
            for prompt in parsed.prompts
        )
        return replace(parsed, prompts=tuple(prompts))

    def _list_actions(self, parsed: ParseResult, action: JobAction, pictures: int) -> tuple[JobAction, ...]:
        """Return what the member must be allowed, last what the jobs are called. Editing by words is editing, too."""
        profiles = [self.catalog.find_entry(prompt.model).profile for prompt in parsed.prompts]
        if any(map(is_edit_requested, parsed.prompts, profiles)):
            return "edit", action
        return ("blend",) if pictures > 1 else (action,)


def _build_recipes(
    parsed_prompt: ParsedPrompt,
    entry: CatalogEntry,
    seed: int,
    loaded_images: LoadedInitImages | None,
    style_guide: StyleGuide | None,
    *,
    is_exact: bool,
) -> list[Recipe]:
    """Return the recipe of a prompt, or those of its interpolation. Raises `UserError` if the model cannot draw it."""
    base_recipe = build_recipe(
        with_input_aspect(parsed_prompt, loaded_images), entry.profile, seed, style_guide=style_guide
    )
    base_recipe = with_init_images(base_recipe, parsed_prompt, loaded_images, entry.profile)
    base_recipe = with_followed_pictures(base_recipe, parsed_prompt, loaded_images, entry.profile)
    recipes = (
        interpolation_recipes(base_recipe, parsed_prompt.end_prompt, parsed_prompt.frames)
        if parsed_prompt.end_prompt
        else [base_recipe]
    )
    check_capabilities(recipes[0], entry.profile)
    check_start(recipes[0], entry.profile)
    return [pin_batch_shape(recipe) if is_exact else recipe for recipe in recipes]
