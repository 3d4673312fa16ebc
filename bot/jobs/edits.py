"""Jobs from a finished picture: edit a part of it, zoom and pan beyond its edges, branch at a keyframe."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial

import msgspec

from bot.domain.dto import AcceptedJob, Destination, JobAction, Member
from bot.domain.errors import UserError
from bot.jobs.admission import build_job, draw_seed
from bot.jobs.beginnings import BranchEdit, branch_base, branch_recipe, expand_aliases, nearest_step_note, parse_one
from bot.jobs.derived_jobs import DerivedJobs
from bot.jobs.init_images import InitImages, JobImageRef, LoadedInitImages, RemoteFile, combine_init_images
from bot.jobs.recipe import (
    keep_conditioning,
    pin_batch_shape,
    remix_recipe,
    replace_start,
    reroll_recipe,
    without_controls,
    without_start,
)
from bot.pictures import ladder_keyframes, outpaint_canvas
from bot.pictures.image_codec import png_size
from bot.pictures.uploads.upload_decoder import DecodedImage
from bot.prompt import ParsedPrompt
from bot.prompt.capability_check import check_capabilities, check_start
from bot.prompt.change_texts import final_prompt, prompt_at_step
from bot.prompt.parsed_prompt import fit_size
from bot.prompt.remarks import make_turbo_remarks
from bot.store import JobRecord
from engine.contract import Recipe

ZOOM_FACTORS = (1.5, 2.0)
NO_EARLIER_KEYFRAME = "Nothing that could be continued was kept before step {}: /reproduce draws the picture anew."


class EditService(DerivedJobs):
    """Begins with a finished picture or one of its keyframes."""

    async def edit(
        self,
        job: str,
        index: int,
        mask: bytes | RemoteFile,
        member: Member,
        destination: Destination,
        *,
        text: str | None = None,
        strength: float | None = None,
        key: str | None = None,
    ) -> AcceptedJob:
        """Inpaint what is white in `mask` (an image file), with another prompt if `text` is given."""
        record, recipe, index = await self._find_picture("edit", job, index, member)
        text, notes = (None, ()) if text is None else await self._expand_aliases(text, member)
        new_prompt = (
            None if text is None else parse_one(text, {"negative": recipe.negative}, self.catalog.model_names(), "job")
        )
        if existing_jobs := await self.admission.check_before_content(
            "edit", member, key, final_prompt(record.prompt, record.task) if text is None else text
        ):
            return existing_jobs[0]
        init_images = InitImages((JobImageRef(record.id, index),), mask)
        async with self.init_image_loader.open_init_images(member, init_images) as loaded_images:
            parent = (record, recipe, index)
            return await self._admit_with_init_images(
                "edit", parent, loaded_images, member, destination, key, new_prompt, strength, notes
            )

    async def zoom(
        self, job: str, index: int, factor: float, member: Member, destination: Destination, *, key: str | None = None
    ) -> AcceptedJob:
        """Shrink the picture and outpaint around it."""
        if factor not in ZOOM_FACTORS:
            raise UserError(f"Zoom out by {ZOOM_FACTORS[0]:g} or {ZOOM_FACTORS[1]:g}.")
        return await self._outpaint(
            "zoom", job, index, partial(outpaint_canvas.zoom_out, factor=factor), member, destination, key
        )

    async def zoom_to_square(
        self, job: str, index: int, member: Member, destination: Destination, *, key: str | None = None
    ) -> AcceptedJob:
        """Put the picture into the middle of a square and outpaint around it."""
        _, recipe, _ = await self._find_picture("zoom", job, index, member)
        if recipe.width == recipe.height:
            raise UserError("This picture is a square already.")
        return await self._outpaint(
            "zoom", job, index, outpaint_canvas.extend_to_square, member, destination, key, aspect=(1, 1)
        )

    async def pan(
        self,
        job: str,
        index: int,
        direction: outpaint_canvas.Direction,
        member: Member,
        destination: Destination,
        *,
        key: str | None = None,
    ) -> AcceptedJob:
        """Keep half of the picture and outpaint beyond its edge in one direction."""
        return await self._outpaint(
            "pan", job, index, partial(outpaint_canvas.pan, direction=direction), member, destination, key
        )

    async def _outpaint(
        self,
        action: JobAction,
        job: str,
        index: int,
        draw_canvas: Callable[[bytes], tuple[bytes, bytes]],
        member: Member,
        destination: Destination,
        key: str | None,
        aspect: tuple[int, int] | None = None,
    ) -> AcceptedJob:
        """Outpaint a larger canvas around the picture; one at a time for each member."""
        record, recipe, index = await self._find_picture(action, job, index, member)
        if existing_jobs := await self.admission.check_before_content(
            action, member, key, final_prompt(record.prompt, record.task)
        ):
            return existing_jobs[0]
        async with self.init_image_loader.reserve_turn(member):
            canvas_and_mask = await asyncio.to_thread(draw_canvas, await self.gallery.read_picture(record.id, index))
            decoded_images, decoded_mask = map(_wrap_png, canvas_and_mask)
            loaded_images = combine_init_images([decoded_images], decoded_mask)
            return await self._admit_with_init_images(
                action, (record, recipe, index), loaded_images, member, destination, key, aspect=aspect
            )

    async def list_branch_steps(self, job: str, index: int, member: Member) -> tuple[int, ...]:
        """Return the steps at which a branch may begin. Raises `UserError` (404)."""
        record, _, index = await self._find_picture("branch", job, index, member)
        return await self.gallery.branch_steps(record.id, index)

    async def branch(
        self,
        job: str,
        index: int,
        step: int,
        member: Member,
        destination: Destination,
        *,
        text: str | None = None,
        exact: bool = False,
        is_undo: bool = False,
        key: str | None = None,
        **options: object,
    ) -> AcceptedJob:
        """Branch at a keyframe: the nearest that keeps its latents, at or before `step` if there is one.

        A steered picture goes on as it was at that keyframe. `is_undo`: as it was before step `step`, with what was
        changed until then.

        `text`: another prompt, with flags; `options` as in `JobService.imagine`. Without either it gives the same
        picture, run to its last step if it was stopped. A seed, or several pictures, also draw the noise at that
        keyframe anew; `list_branch_steps` counts the whole schedule. `exact` pins the batch shape.
        """
        record, _, index = await self._find_picture("branch", job, index, member)
        assert isinstance(record.task, Recipe), "only such a job has keyframes"
        old_prompt = prompt_at_step(record.prompt, record.task, max(0, step - 1) if is_undo else step)
        if existing_jobs := await self.admission.check_before_content(
            "branch", member, key, old_prompt if text is None else text
        ):
            return existing_jobs[0]
        ladder = await self.init_image_loader.load_ladder(record.id, index)
        nearest_step = ladder_keyframes.closest_step(await self.gallery.branch_steps(record.id, index), step)
        if is_undo and nearest_step > step:
            raise UserError(NO_EARLIER_KEYFRAME.format(step))
        source = branch_base(record.task, index, nearest_step, step if is_undo else None)
        base_recipe, change_notes, entry = self._renew(source)
        text, alias_notes = (None, ()) if text is None else await self._expand_aliases(text, member)
        base_recipe = base_recipe if text is None else await self._reset_mixed(record, base_recipe)
        edit = BranchEdit(old_prompt, text, options)
        new_recipe = branch_recipe(
            base_recipe, ladder.sha256, nearest_step, edit, entry.profile, self.catalog.model_names(), record.task
        )
        new_recipe = pin_batch_shape(new_recipe) if exact and not new_recipe.bucket else new_recipe
        notes = (*alias_notes, *nearest_step_note(nearest_step, step), *change_notes)
        new_job = build_job(
            "branch",
            edit.shown_prompt,
            new_recipe,
            entry,
            member,
            destination,
            notes=notes,
            parent=(record.id, index),
            inputs=(ladder, *await self.init_image_loader.followed_pictures_of(record, new_recipe)),
        )
        return await self._admit(new_job, key)

    async def _expand_aliases(self, text: str, member: Member) -> tuple[str, tuple[str, ...]]:
        return expand_aliases(text, await self.load_aliases(member.id, text))

    async def _admit_with_init_images(
        self,
        action: JobAction,
        parent: tuple[JobRecord, Recipe, int],
        loaded_images: LoadedInitImages,
        member: Member,
        destination: Destination,
        key: str | None,
        prompt: ParsedPrompt | None = None,
        strength: float | None = None,
        notes: tuple[str, ...] = (),
        aspect: tuple[int, int] | None = None,
    ) -> AcceptedJob:
        """Admit a job with init images in its parent's place. `aspect`: width to height."""
        record, recipe, index = parent
        recipe = recipe if action == "edit" else without_controls(recipe)
        new_recipe, change_notes, entry = self._renew(
            without_start(reroll_recipe(keep_conditioning(recipe, index), draw_seed()))
        )
        if aspect is not None:
            width, height = fit_size(aspect, entry.profile)
            new_recipe = msgspec.structs.replace(new_recipe, width=width, height=height)
        shown_prompt = final_prompt(record.prompt, record.task)
        has_own_steps = False
        if prompt is not None:
            new_recipe = await self._reset_mixed(record, new_recipe)
            new_recipe = remix_recipe(new_recipe, prompt, entry.profile)
            shown_prompt = " ".join(prompt.text.split())
            strength = prompt.strength if strength is None else strength
            has_own_steps = prompt.steps is not None
            change_notes = (*change_notes, *make_turbo_remarks(prompt, entry.profile))
        start = loaded_images.recipe_part(strength)
        assert start is not None  # an edit begins with its parent's picture
        turbo_steps = None if has_own_steps else new_recipe.steps
        edit_recipe = replace_start(msgspec.structs.replace(new_recipe, lineage=()), start, turbo_steps)
        check_capabilities(edit_recipe, entry.profile)
        check_start(edit_recipe, entry.profile)
        followed_pictures = await self.init_image_loader.followed_pictures_of(record, edit_recipe)
        new_job = build_job(
            action,
            shown_prompt,
            edit_recipe,
            entry,
            member,
            destination,
            notes=(*notes, *change_notes),
            parent=(record.id, index),
            inputs=(*loaded_images.inputs, *followed_pictures),
        )
        return await self._admit(new_job, key, loaded_images.new_contents)


def _wrap_png(png: bytes) -> DecodedImage:
    """Return a PNG that this process made from a finished picture, so it needs no upload decoder."""
    width, height = png_size(png) or (0, 0)  # it has a header
    return DecodedImage(png, width, height, hashlib.sha256(png).hexdigest(), ())
