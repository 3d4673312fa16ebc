"""The main service: makes, cancels and shows jobs. Front ends are adapters over it.

Every refusal is a `UserError` with one sentence for the member.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bot.domain.dto import AcceptedJob, Destination, JobAction, JobView, Member, PictureRef
from bot.domain.errors import UserError
from bot.domain.events import Feed
from bot.domain.texts import format_startup, shorten
from bot.images.films.animation import MAX_FILM_BYTES
from bot.images.films.formats import FilmFormat
from bot.images.gallery import Gallery
from bot.policy.permissions import JobRef, forbidden_reason
from bot.prompt import ParseResult, build_recipe, make_remarks, parse
from bot.prompt.capability_check import check_capabilities
from bot.prompt.suffix import add_suffix, add_walk_suffix
from bot.queue.cancellation import JobCanceller
from bot.queue.job_request import JobRequest, offline_note
from bot.queue.model_catalog import ModelCatalog
from bot.queue.pause_priority import JobControl
from bot.services.admission.admission import Admission
from bot.services.flag_aliases import FlagAliases
from bot.services.init_images.loaded import LoadedInitImages
from bot.services.init_images.loader import InitImageLoader
from bot.services.init_images.request import InitImages, split_leading_urls
from bot.services.job_views.job_views import JobViews
from bot.services.jobs.derived_recipes import interpolation_recipes, pin_batch_shape
from bot.services.jobs.edits import EditService
from bot.services.jobs.recipe_init import unused_strength_note, with_init_images, with_input_aspect
from bot.store import JobRecord, Store
from bot.store.members import preferences
from engine.contract import MAX_COUNT, ModelProfile, ModelProgress, Presence, estimate_cost

__all__ = ["AcceptedJob", "Destination", "JobAction", "JobService", "JobView", "Member", "PictureRef"]

SUFFIX_ADDED = "Your suffix was added: “{}”."
SEED_COUNT = 2**32 - MAX_COUNT  # image i draws from seed + i


class JobService(EditService):
    """The use cases. `draw_seed` draws a seed. Jobs from finished pictures: `VariationService` and `EditService`."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        catalog: ModelCatalog,
        job_views: JobViews,
        gallery: Gallery,
        admission: Admission,
        init_image_loader: InitImageLoader,
        flag_aliases: FlagAliases,
        cancelling: JobCanceller,
        job_control: JobControl,
        workers: Callable[[], Mapping[str, Presence]],
        *,
        startup_progress: Callable[[], ModelProgress | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEED_COUNT),
    ) -> None:
        super().__init__(catalog, job_views, gallery, admission, init_image_loader, flag_aliases, draw_seed)
        self.feed = feed
        self.page_addresses: tuple[str, ...] = ()  # of the page, which sets them once it knows them
        self._store, self._cancelling, self._job_control = store, cancelling, job_control
        self._workers, self._startup_progress, self._clock = workers, startup_progress, clock

    # Making

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
        negative, strength, stop, tile, mix, chaos, repeat, quality, walk, frames; `lora` adds to them. An interpolation
        (`walk`) makes as many jobs as its pictures need.

        `init_images`: init images; with them the prompt may be empty, and without --ar they give the aspect ratio. URLs
        at the beginning of the text are init images too, from Discord or our page.

        `suffix` goes behind the prompt, with a note, as on each flag alias. `is_exact` pins the batch shape, so that
        load cannot change the last bits. The same `key` again returns the same jobs.
        """
        text, init_images = split_leading_urls(text, init_images, self.page_addresses)
        full_text = add_suffix(text, suffix if text else "")
        aliases, model_names = await self._flag_aliases.aliases_for(member.id, full_text), self._catalog.model_names()
        default_model = self._catalog.find_entry(None).profile
        parsed = parse(
            full_text,
            default_model,
            models=model_names,
            options=options,
            allow_empty=init_images is not None,
            aliases=aliases,
        )
        suffix_notes = (SUFFIX_ADDED.format(shorten(suffix, 100)),) if full_text != text else ()
        parsed_prompts = tuple(
            replace(parsed_prompt, walk=add_walk_suffix(parsed_prompt.walk, suffix, aliases))
            if parsed_prompt.walk
            else parsed_prompt
            for parsed_prompt in parsed.prompts
        )
        parsed = ParseResult(parsed_prompts, (*suffix_notes, *parsed.notes))
        if key is None and any(parsed_prompt.walk for parsed_prompt in parsed_prompts):
            key = f"walk:{self._clock()}:{self._draw_seed()}"  # links the jobs of an interpolation
        if init_images is None:
            return await self._admit(
                self._build_requests(parsed, action, None, is_exact=is_exact), member, destination, key
            )
        action = "blend" if len(init_images.pictures) > 1 else action
        relaxed = any(request.relaxed for request in parsed.prompts)
        if existing_jobs := await self._check_early(
            action, member, key, full_text, count=len(parsed.prompts), relaxed=relaxed
        ):
            return existing_jobs
        async with self._init_image_loader.open_init_images(member, init_images) as loaded_images:
            return await self._admit(
                self._build_requests(parsed, action, loaded_images, is_exact=is_exact),
                member,
                destination,
                key,
                loaded_images,
            )

    def _build_requests(
        self, parsed: ParseResult, action: JobAction, loaded_images: LoadedInitImages | None, *, is_exact: bool
    ) -> list[JobRequest]:
        """Return the job requests. Raises `UserError` if a model cannot draw one."""
        default_entry, requests = self._catalog.find_entry(None), list[JobRequest]()
        for parsed_prompt in parsed.prompts:
            entry = self._catalog.find_entry(parsed_prompt.model) if parsed_prompt.model else default_entry
            base_recipe = with_init_images(
                build_recipe(with_input_aspect(parsed_prompt, loaded_images), entry.profile, self._draw_seed()),
                parsed_prompt,
                loaded_images,
            )
            recipes = (
                interpolation_recipes(base_recipe, parsed_prompt.walk, parsed_prompt.frames)
                if parsed_prompt.walk
                else [base_recipe]
            )
            check_capabilities(recipes[0], entry.profile)
            recipes = [pin_batch_shape(single_recipe) if is_exact else single_recipe for single_recipe in recipes]
            model_notes = (
                () if entry.profile.name == default_entry.profile.name else make_remarks(parsed_prompt, entry.profile)
            )
            all_notes = (
                *(loaded_images.notes if loaded_images else ()),
                *parsed.notes,
                *model_notes,
                *unused_strength_note(parsed_prompt, loaded_images),
            )
            notes = tuple(dict.fromkeys(all_notes))
            notes = notes if entry.is_live else (*notes, offline_note(entry, bool(self._workers())))
            requests += [
                JobRequest(
                    action,
                    " ".join(parsed_prompt.text.split()),
                    notes,
                    single_recipe,
                    entry.pool,
                    estimate_cost(single_recipe, entry.profile),
                    relaxed=parsed_prompt.relaxed,
                    inputs=loaded_images.inputs if loaded_images else (),
                )
                for single_recipe in recipes
            ]
        return requests

    async def cancel(self, job: str, member: Member) -> str:
        """Cancel the member's own job, or as a moderator one of their guild; say what happened. Raises `UserError`."""
        record = await self._job_views.load_record(job)
        if reason := forbidden_reason("cancel", member, _job_ref(record)):
            raise UserError(reason, 403)
        return await self._cancelling.cancel(job)

    async def pause(self, job: str, member: Member, *, is_paused: bool = True) -> str:
        """Pause a running job, for a quarter of an hour at most, or with `is_paused` False resume it.

        It needs the permission to cancel. Nothing stores it: a job that moves to another worker runs on. Raises
        `UserError`.
        """
        record = await self._job_views.load_record(job)
        if reason := forbidden_reason("pause", member, _job_ref(record)):
            raise UserError(reason, 403)
        return await (self._job_control.pause if is_paused else self._job_control.resume)(record)

    async def set_priority(self, job: str, weight: float) -> str:
        """Set a running job's share of its author's rows. For the operator. Nothing stores it. Raises `UserError`."""
        return await self._job_control.prioritise(await self._job_views.load_record(job), weight)

    async def toggle_favourite(self, job: str, index: int, member: Member) -> bool:
        """Toggle a finished image as a favourite of the member's; return whether it is one now. Raises `UserError`."""
        await self._gallery.find_visible(job, index)
        return await self._store.write(preferences.toggle_favourite, member.id, job, index, self._clock())

    # Looking

    async def load_view(self, job: str) -> JobView:
        """Return a job's view. Raises `UserError` (404)."""
        return (await self._job_views.build_views([await self._job_views.load_record(job)]))[0]

    async def load_queue(self, guild: str | None = None) -> list[JobView]:
        """Return active jobs, then waiting ones in fair order."""
        return await self._job_views.load_queue(guild)

    async def load_recent(self, guild: str | None = None, limit: int = 50) -> list[JobView]:
        """Return the newest jobs first."""
        return await self._job_views.load_recent(guild, limit)

    async def load_picture(self, job: str, index: int) -> bytes:
        """Return a finished image as PNG. Raises `UserError` (404)."""
        return await self._gallery.read_picture(job, index)

    async def load_shown_picture(self, job: str, index: int) -> bytes:
        """Return a finished image as everybody may see it: blurred while it is held. Raises `UserError` (404)."""
        return await self._gallery.read_for_members(job, index)

    async def load_shown_pictures(self, job: str) -> list[bytes]:
        """Return every finished image of a job as everybody may see it. Raises `UserError` (404)."""
        return await self._gallery.read_all_for_members(job)

    async def render_comparison(self, pictures: Sequence[tuple[str, int]], labels: Sequence[str]) -> bytes:
        """Return two to four finished images by job and index, side by side with labels, as PNG. Raises `UserError`."""
        return await self._gallery.render_comparison(pictures, labels)

    async def render_film(self, job: str, limit: int = MAX_FILM_BYTES, kind: FilmFormat = "webp") -> bytes:
        """Return the film of a job's images, at most `limit` bytes. Raises `UserError`."""
        return await self._gallery.render_film(job, limit, kind)

    async def render_interpolation(self, job: str, limit: int = MAX_FILM_BYTES, kind: FilmFormat = "webp") -> bytes:
        """Return the film of an interpolation over all its jobs, there and back, at most `limit` bytes. Raises
        `UserError`.
        """
        return await self._gallery.render_walk(job, limit, kind)

    async def render_noising_film(
        self, job: str, index: int, kind: FilmFormat = "webp", limit: int = MAX_FILM_BYTES
    ) -> bytes:
        """Return an animation of one image turning into noise, at most `limit` bytes. Raises `UserError`."""
        return await self._gallery.render_dissolve(job, index, kind, limit)

    async def render_noising_round_trip(
        self, job: str, index: int, kind: FilmFormat = "webp", limit: int = MAX_FILM_BYTES
    ) -> bytes:
        """Return an animation of one image turning into noise and back, at most `limit` bytes. Raises `UserError`."""
        return await self._gallery.render_dissolve_and_back(job, index, kind, limit)

    async def render_contact_sheet(self, job: str, index: int) -> bytes:
        """Return the keyframes at which a branch may begin as a labelled contact sheet, as WebP. Raises `UserError`."""
        return await self._gallery.render_contact_sheet(job, index)

    async def list_keyframe_steps(self, job: str) -> list[int]:
        """Return the step of each keyframe of a job's film. Raises `UserError` (404)."""
        return await self._gallery.keyframe_steps(job)

    async def render_keyframe_grid(self, job: str, keyframe: int) -> bytes:
        """Return the grid at keyframe `keyframe`, counted from 0, as WebP. Raises `UserError` (404)."""
        return await self._gallery.render_keyframe_grid(job, keyframe)

    def live_workers(self) -> Mapping[str, Presence]:
        """Return the live workers by name."""
        return self._workers()

    def startup_notice(self) -> str:
        """Return the sentence about a worker that is starting up; empty if none is."""
        return format_startup(self._startup_progress())

    def list_models(self) -> list[ModelProfile]:
        """Return the models that can be requested, those of live workers first."""
        return [entry.profile for entry in self._catalog.entries()]

    def find_model(self, name: str | None) -> ModelProfile | None:
        """Return a model by name, None if there is none; without a name, the default one."""
        try:
            return self._catalog.find_entry(name or None).profile
        except KeyError:
            return None


def _job_ref(record: JobRecord) -> JobRef:
    return JobRef(record.member, record.member_name, record.guild, record.private)
