"""Builds the services over the queue, the store and the picture store."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Executor

from bot.app.queue_wiring import Core, Queue
from bot.domain.texts import format_startup
from bot.images.film_cache import FILMS, FilmCache
from bot.images.gallery import Gallery
from bot.images.uploads.image_links import FetchFile
from bot.images.uploads.upload_decoder import UploadDecoder
from bot.jobs.admission import Admission, JobMaker
from bot.jobs.attended_requests import AttendedRequests
from bot.jobs.costs import LoadCosts
from bot.jobs.drawing import JobService
from bot.jobs.edits import EditService
from bot.jobs.history import History
from bot.jobs.init_images import InitImageLoader, PageAddresses
from bot.jobs.preferences import Preferences
from bot.jobs.steering import SteeringService
from bot.jobs.variations import UploadUpscaler, VariationService
from bot.jobs.views import Deliveries, JobViews
from bot.jobs.word_filter import WordFilter
from bot.services import Services
from bot.services.api_keys import ApiKeys
from bot.services.data_deletion import DataDeletion
from bot.services.front_end_actions import FrontEndActions
from bot.services.ladder_decoder import LadderDecoder
from bot.services.model_choices import ModelChoices
from bot.services.moderation.moderation import Moderation
from bot.services.moderation.picture_review import PictureReview
from bot.services.rule_admin import RuleAdmin
from bot.services.sessions import Sessions


def wire_services(
    core: Core, queue: Queue, filter_thread: Executor, upload_decoder: UploadDecoder, fetch_upload: FetchFile
) -> Services:
    """Build the services."""
    store = core.store
    bus = core.bus
    clock = core.clock
    catalog = queue.catalog
    limits = core.settings.limits
    job_views = JobViews(store, queue.active_jobs, queue.forecast, limits=limits, clock=clock)
    ladder_decoder = LadderDecoder(bus.decode, core.live_workers, core.worker_decoder)
    gallery = Gallery(store, core.picture_store, ladder_decoder.decode, films := FilmCache(core.settings.data / FILMS))
    loader = InitImageLoader(store, core.picture_store, gallery, job_views, upload_decoder, fetch_upload)
    preferences = Preferences(store)
    page_addresses = PageAddresses()
    word_filter = WordFilter(store, filter_thread, limits=limits, clock=clock)
    admission = _wire_admission(core, queue, job_views, word_filter)
    job_maker = JobMaker(catalog, job_views, gallery, admission, loader)
    rule_admin = RuleAdmin(store, queue.canceller.cancel, limits=limits, clock=clock)
    jobs = JobService(
        store=store,
        catalog=catalog,
        job_views=job_views,
        gallery=gallery,
        admission=admission,
        job_maker=job_maker,
        init_image_loader=loader,
        load_aliases=preferences.load_flag_aliases,
        page_addresses=page_addresses,
        canceller=queue.canceller,
        job_control=queue.control,
        workers=core.live_workers,
        effective_rules=rule_admin.effective_rules,
        style_guides=core.style_guides,
        clock=clock,
    )
    front_end, moderation, data_deletion = _wire_deletion(core, queue, rule_admin, films)
    return Services(
        jobs=jobs,
        variations=VariationService(catalog, job_views, gallery, loader, preferences.load_flag_aliases, job_maker),
        edits=EditService(catalog, gallery, admission, loader, preferences.load_flag_aliases, job_maker),
        init_image_loader=loader,
        upload_upscaler=UploadUpscaler(catalog, admission, loader, job_maker),
        model_choices=ModelChoices(store),
        job_views=job_views,
        gallery=gallery,
        catalog=catalog,
        feed=core.feed,
        live_workers=core.live_workers,
        startup_notice=lambda: format_startup(bus.get_startup_progress()),
        page_addresses=page_addresses,
        attended_requests=AttendedRequests(jobs, job_views, gallery, core.feed),
        preferences=preferences,
        front_end=front_end,
        deliveries=Deliveries(store, job_views, clock=clock),
        rule_admin=rule_admin,
        word_filter=word_filter,
        worker_decoder=core.worker_decoder,
        picture_review=PictureReview(store, job_views, gallery, clock=clock),
        history=History(store, job_views),
        moderation=moderation,
        data_deletion=data_deletion,
        sessions=Sessions(store, clock=clock),
        steering=_wire_steering(core, queue, job_views, word_filter),
        api_keys=ApiKeys(store, clock=clock),
    )


def _wire_admission(core: Core, queue: Queue, job_views: JobViews, word_filter: WordFilter) -> Admission:
    settings = core.settings
    return Admission(
        core.store,
        job_views,
        word_filter,
        core.live_workers,
        LoadCosts(queue.forecast.estimate_load),
        limits=settings.limits,
        max_age=settings.max_job_age,
        on_admitted=queue.dispatcher.wake,
        clock=core.clock,
    )


def _wire_steering(core: Core, queue: Queue, job_views: JobViews, word_filter: WordFilter) -> SteeringService:
    return SteeringService(
        core.store,
        job_views,
        word_filter,
        queue.catalog,
        queue.active_jobs,
        queue.amendment_sender,
        limits=core.settings.limits,
        clock=core.clock,
    )


def _wire_deletion(
    core: Core, queue: Queue, rule_admin: RuleAdmin, films: FilmCache
) -> tuple[FrontEndActions, Moderation, DataDeletion]:
    """Build what deletes pictures and posts reports, and the actions that it asks of a front end."""
    front_end = FrontEndActions()

    async def drop_copies(hashes: Collection[str]) -> None:
        await films.forget(hashes)
        await queue.blobs.drop(hashes)

    moderation = Moderation(
        core.store,
        core.picture_store,
        queue.canceller,
        core.feed,
        rule_admin.effective_rules,
        front_end,
        drop_copies=drop_copies,
        clock=core.clock,
    )
    data_deletion = DataDeletion(
        core.store,
        queue.canceller.cancel,
        moderation.remove_files,
        core.feed,
        front_end,
        waits_for_discord=core.settings.discord_token is not None,
        clock=core.clock,
    )
    return front_end, moderation, data_deletion
