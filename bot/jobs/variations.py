"""Jobs from finished jobs: variation, reroll, remix, reproduction, upscale, interpolation; upscales of uploads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec
from ulid import ULID

from bot.domain.dto import AcceptedJob, Destination, JobAction, Member
from bot.domain.errors import UserError
from bot.jobs.admission import build_job, draw_seed
from bot.jobs.beginnings import remix_base, unused_start_notes
from bot.jobs.costs import (
    MAX_SIDE,
    SUPER_RESOLVER_MS_PER_MP,
    UPSCALE_FACTORS,
    largest_upscale,
    upscale_cost,
    upscale_notes,
)
from bot.jobs.derived_jobs import DerivedJobs
from bot.jobs.init_images import InitImages, LoadedInitImages
from bot.jobs.model_catalog import DEFAULT_POOL, CatalogEntry
from bot.jobs.preferences import VariationStrength
from bot.jobs.recipe import (
    can_interpolate,
    has_seed_overflow,
    interpolate_images,
    pin_batch_shape,
    remix_recipe,
    renew_recipe,
    reroll_recipe,
    vary_recipe,
)
from bot.prompt import ParsedPrompt, ParseResult, make_remarks, parse
from bot.prompt.capability_check import check_start
from bot.prompt.change_texts import final_prompt
from bot.store import JobRecord, NewJob
from engine.contract import (
    Amendment,
    Branch,
    Recipe,
    SplitImage,
    UpscaleMethod,
    UpscaleTask,
    estimate_cost,
    find_next_evaluation,
    has_skipped_steps,
    recipe_at_end,
)

# How much of its parent's noise a variation exchanges: at 0 none, at 1 all. The pixels of the embedded model differed
# by 4 to 9 of 255 on average at 0.2, by 10 to 20 at 0.6, by 16 to 34 at 1.
VARIATION_STRENGTHS: Mapping[VariationStrength, float] = MappingProxyType({"subtle": 0.2, "strong": 0.6})
NOT_INTERPOLABLE = (
    "An interpolation needs several finished pictures of one job, none of which is a variation of another one, was "
    "steered, or draws several parts in several styles."
)
NO_DRAFT = "Each of its steps had an evaluation, so it is as fine as it can be."
SEED_OVERFLOW = "A walk needs a seed for each picture, and one here would be above 4294967295: reroll, then walk."
NOISE_DIFFERS = "These pictures do not share their noise: only the first keeps the noise of the interpolation."
NOT_REMIXABLE = "No worker has ever offered {}: it cannot be remixed."
NOT_EXACT = "The original ran beside other jobs, so its last bits may differ. From now on it is the same bytes."


class VariationService(DerivedJobs):
    """Jobs with the recipe of a finished one, and upscales."""

    async def vary(
        self,
        job: str,
        index: int,
        member: Member,
        destination: Destination,
        *,
        key: str | None = None,
        strength: float = VARIATION_STRENGTHS["subtle"],
    ) -> AcceptedJob:
        """Make variations of one finished image; for an upscaled image, of its original."""
        record, recipe, index = await self._find_picture("vary", job, index, member)
        variation = vary_recipe(recipe, index, _check_strength(strength), draw_seed())
        return await self._admit_derived("vary", record, index, variation, member, destination, key)

    async def reroll(
        self, job: str, member: Member, destination: Destination, *, key: str | None = None
    ) -> AcceptedJob:
        """Run the same recipe with another seed."""
        record = await self.job_views.load_record(job)
        if not isinstance(record.task, Recipe):
            raise UserError("An upscaled picture cannot be rerolled: use its original.")
        return await self._admit_derived(
            "reroll", record, 0, reroll_recipe(recipe_at_end(record.task), draw_seed()), member, destination, key
        )

    async def finish(
        self, job: str, member: Member, destination: Destination, *, key: str | None = None
    ) -> AcceptedJob:
        """Run the recipe of a draft with an evaluation at every step: the same noise, nearly always the same picture.

        What was changed while it developed is changed again (`finish_recipe`).
        """
        record = await self.job_views.load_record(job)
        if not isinstance(record.task, Recipe) or not has_skipped_steps(record.task):
            raise UserError(NO_DRAFT)
        return await self._admit_derived("finish", record, 0, finish_recipe(record.task), member, destination, key)

    async def interpolate_pictures(
        self, job: str, member: Member, destination: Destination, *, key: str | None = None
    ) -> list[AcceptedJob]:
        """Interpolate from each picture of a finished job to the next, as several jobs. Refused if one is held."""
        record = await self.job_views.load_record(job)
        if not isinstance(record.task, Recipe) or not can_interpolate(record.task) or record.state != "finished":
            raise UserError(
                SEED_OVERFLOW
                if isinstance(record.task, Recipe) and has_seed_overflow(record.task)
                else NOT_INTERPOLABLE
            )
        for index in range(record.task.count):
            await self.gallery.find_visible(job, index)
        base_recipe, notes, entry = self._renew(record.task)
        inputs = await self.init_image_loader.inputs_of(record)
        recipes = [
            pin_batch_shape(recipe) if base_recipe.bucket else recipe for recipe in interpolate_images(base_recipe)
        ]
        new_jobs = [
            build_job(
                "walk",
                record.prompt,
                recipe,
                entry,
                member,
                destination,
                notes=notes,
                parent=(record.id, 0),
                inputs=inputs,
            )
            for recipe in recipes
        ]
        return await self.admission.admit(new_jobs, key or f"walk:{job}:{draw_seed()}")

    async def reproduce(
        self, job: str, member: Member, destination: Destination, *, key: str | None = None
    ) -> AcceptedJob:
        """Run the same recipe and seed with a pinned batch shape: the same pixels as any other exact run.

        What was changed while it developed is changed again, at the same steps.
        """
        record = await self.job_views.load_record(job)
        if not isinstance(record.task, Recipe):
            raise UserError("An enlarged picture cannot be reproduced: reproduce its original.")
        notes = () if record.task.bucket else (NOT_EXACT,)
        return await self._admit_derived(
            "reproduce", record, 0, pin_batch_shape(record.task), member, destination, key, notes
        )

    async def remix(
        self,
        job: str,
        index: int | None,
        text: str,
        member: Member,
        destination: Destination,
        *,
        key: str | None = None,
        strength: float | None = None,
        negative: str | None = None,
    ) -> list[AcceptedJob]:
        """Run a finished job with another prompt; `text` may have flags, and braces make several jobs.

        It keeps the noise. With a `strength` it makes variations of image `index`; without an index, a `strength` of 1
        is a reroll. Pictures of an interpolation have their own noise: with an index, only that one is made. `negative`
        is the negative prompt; None keeps the old one, "" removes it.
        """
        record, recipe, index = await self._find_original("remix", job, index, member)
        if strength is not None:
            seed = draw_seed()
            rerolled_recipe = reroll_recipe(msgspec.structs.replace(recipe, interpolation=None), seed)
            recipe = rerolled_recipe if index is None else vary_recipe(recipe, index, _check_strength(strength), seed)
        elif isinstance(record.task, Recipe):
            recipe = remix_base(record.task, index)
        recipe = await self._reset_mixed(record, recipe)
        new_negative = recipe.negative if negative is None else negative
        aliases = await self.load_aliases(member.id, text)
        recipe, notes, entry = self._renew(recipe, NOT_REMIXABLE)
        parsed = parse(
            text, None, models=self.catalog.model_names(), options={"negative": new_negative}, aliases=aliases
        )
        inputs = await self.init_image_loader.inputs_of(record)
        new_jobs = [
            build_job(
                "remix",
                " ".join(prompt.text.split()),
                new_recipe,
                entry,
                member,
                destination,
                notes=remix_notes,
                parent=(record.id, index or 0),
                relaxed=prompt.relaxed,
                inputs=inputs,
            )
            for prompt, new_recipe, remix_notes in _remix_recipes(recipe, parsed, entry, notes)
        ]
        return await self.admission.admit(new_jobs, key)

    async def upscale(
        self, job: str, index: int, member: Member, destination: Destination, *, key: str | None = None
    ) -> AcceptedJob:
        """Upscale one finished image."""
        record = await self.job_views.load_record(job)
        source = await self.gallery.find_visible(job, index)
        size = (source.width, source.height)
        pool = self.catalog.choose_live_pool(record.pool)
        task = largest_upscale(source.sha256, *size, self._choose_method(pool, "gan"))
        notes = upscale_notes(task, *size)
        return await self._admit_upscale(
            task, size, pool, member, destination, key, prompt=record.prompt, notes=notes, parent=(job, index)
        )

    async def upscale_upload(
        self,
        content: bytes,
        find_factor: Callable[[int, int], float],
        method: UpscaleMethod,
        member: Member,
        destination: Destination,
    ) -> AcceptedJob:
        """Upscale an uploaded picture. `find_factor`: how much at least, from its width and height in pixels.

        The smallest factor of the upscaler that suffices is taken. Raises `UserError`, also if the picture would become
        too large.
        """
        await self.admission.check_before_content("upscale", member, None, "")
        async with self.init_image_loader.open_init_images(member, InitImages((content,))) as loaded_images:
            source = loaded_images.inputs[0]
            size = (source.width, source.height)
            factor = _choose_factor(find_factor(*size))
            _check_side(*size, factor)
            pool = self.catalog.choose_live_pool(DEFAULT_POOL)
            task = UpscaleTask(source=source.sha256, factor=factor, method=self._choose_method(pool, method))
            return await self._admit_upscale(
                task, size, pool, member, destination, notes=loaded_images.notes, loaded_images=loaded_images
            )

    def _choose_method(self, pool: str, method: UpscaleMethod) -> UpscaleMethod:
        return "lanczos" if self.catalog.upscale_ms(pool) == 0 else method

    async def _admit_upscale(
        self,
        task: UpscaleTask,
        size: tuple[int, int],
        pool: str,
        member: Member,
        destination: Destination,
        key: str | None = None,
        *,
        notes: tuple[str, ...],
        prompt: str = "",
        parent: tuple[str, int] | None = None,
        loaded_images: LoadedInitImages | None = None,
    ) -> AcceptedJob:
        new_job = NewJob(
            id=str(ULID()),
            action="upscale",
            prompt=prompt,
            notes=notes,
            task=task,
            member=member,
            destination=destination,
            pool=pool,
            model="",
            cost=upscale_cost(task, *size, self.catalog.upscale_ms(pool) or SUPER_RESOLVER_MS_PER_MP),
            parent=parent,
            inputs=loaded_images.inputs if loaded_images else (),
        )
        return await self._admit(new_job, key, loaded_images.new_contents if loaded_images else None)

    async def _admit_derived(
        self,
        action: JobAction,
        record: JobRecord,
        index: int,
        new_recipe: Recipe,
        member: Member,
        destination: Destination,
        key: str | None,
        notes: tuple[str, ...] = (),
    ) -> AcceptedJob:
        """Admit a job with a recipe derived from another job's, on the pool that has its model now."""
        entry = self._find_entry(new_recipe)
        if entry is not None:
            new_recipe, change_notes = renew_recipe(new_recipe, entry)
            notes = (*notes, *change_notes)
        pool = entry.pool_for(new_recipe) if entry else record.pool
        inputs = await self.init_image_loader.inputs_of(record)
        prompt = record.prompt if new_recipe.amendments else final_prompt(record.prompt, record.task)
        new_job = NewJob(
            id=str(ULID()),
            action=action,
            prompt=prompt,
            notes=notes,
            task=new_recipe,
            member=member,
            destination=destination,
            pool=pool,
            model=new_recipe.model,
            cost=estimate_cost(new_recipe, entry.profile) if entry else record.cost,
            parent=(record.id, index),
            inputs=inputs,
        )
        return await self._admit(new_job, key)


def _remix_recipes(
    base: Recipe, parsed: ParseResult, entry: CatalogEntry, change_notes: tuple[str, ...]
) -> Iterator[tuple[ParsedPrompt, Recipe, tuple[str, ...]]]:
    """Yield each permutation of another prompt for `base`, with its recipe and its notes."""
    model_profile = msgspec.structs.replace(entry.profile, sampler=base.sampler)
    warnings = (
        note
        for prompt in parsed.prompts
        for note in make_remarks(replace(prompt, steps=prompt.steps or base.steps), model_profile)
    )
    notes = tuple(dict.fromkeys((*parsed.notes, *warnings, *change_notes)))
    for prompt in parsed.prompts:
        new_recipe = remix_recipe(base, prompt, entry.profile)
        check_start(new_recipe, entry.profile)
        has_other_noise = base.interpolation is not None and new_recipe.count > 1 and prompt.seed is None
        noise_note = (NOISE_DIFFERS,) if has_other_noise else ()
        yield prompt, new_recipe, (*notes, *noise_note, *unused_start_notes(prompt, new_recipe, entry.profile))


def _check_strength(strength: float) -> float:
    if not 0 < strength <= 1:
        raise UserError("A variation's strength is above 0 and at most 1.")
    return strength


def finish_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with an evaluation at every step. Its splits stay where they were in the draft.

    There they began at the next evaluation, and what follows them keeps its order. A branch begins without the history
    of the draft's last evaluation.
    """
    amendments = list[Amendment]()
    least_step = 0
    for amendment in recipe.amendments:
        is_split = isinstance(amendment.change, SplitImage)
        step = find_next_evaluation(recipe, amendment.step) - 1 if is_split else amendment.step
        least_step = max(step, least_step)
        amendments.append(msgspec.structs.replace(amendment, step=least_step))
    start = recipe.start
    if isinstance(start, Branch) and start.ladder_step is None:
        start = msgspec.structs.replace(start, ladder_step=start.step)
    return msgspec.structs.replace(recipe, evaluations=0, amendments=tuple(amendments), start=start, v=1)


def _choose_factor(factor: float) -> int:
    fitting_factors = [whole_factor for whole_factor in UPSCALE_FACTORS if whole_factor >= factor]
    if factor <= 1 or not fitting_factors:
        raise UserError(
            f"A picture is made up to {max(UPSCALE_FACTORS)} times as large, and this would be {factor:.3g}."
        )
    return min(fitting_factors)


def _check_side(width: int, height: int, factor: int) -> None:
    if max(width, height) * factor > MAX_SIDE:
        raise UserError(
            f"×{factor} of {width} × {height} pixels is too large: the longer side may have {MAX_SIDE} pixels at most."
        )
