"""The services: use cases that all front ends call. They know nothing of Discord, HTTP or the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from bot.domain.events import Feed
from bot.jobs.attended_requests import AttendedRequests
from bot.jobs.control import JobControl
from bot.jobs.drawing import JobService
from bot.jobs.edits import EditService
from bot.jobs.history import History
from bot.jobs.init_images import InitImageLoader, PageAddresses
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.preferences import Preferences
from bot.jobs.steering import SteeringService
from bot.jobs.variations import UploadUpscaler, VariationService
from bot.jobs.views import Deliveries, JobViews
from bot.jobs.word_filter import WordFilter
from bot.pictures.gallery import Gallery
from bot.pictures.uploads.upload_decoder import UploadDecoder
from bot.services.api_keys import ApiKeys
from bot.services.data_deletion import DataDeletion
from bot.services.front_end_actions import FrontEndActions
from bot.services.model_choices import ModelChoices
from bot.services.moderation.moderation import Moderation
from bot.services.moderation.picture_review import PictureReview
from bot.services.rule_admin import RuleAdmin
from bot.services.sessions import Sessions
from engine.contract import Presence

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """All services, by subject."""

    jobs: JobService
    job_control: JobControl
    variations: VariationService
    edits: EditService
    steering: SteeringService
    attended_requests: AttendedRequests
    upload_upscaler: UploadUpscaler
    init_image_loader: InitImageLoader
    job_views: JobViews
    gallery: Gallery
    catalog: ModelCatalog
    feed: Feed
    live_workers: Callable[[], Mapping[str, Presence]]  # by name
    startup_notice: Callable[[], str]  # about a worker that starts up; empty if none does
    page_addresses: PageAddresses
    front_end: FrontEndActions
    deliveries: Deliveries
    preferences: Preferences
    model_choices: ModelChoices
    rule_admin: RuleAdmin
    word_filter: WordFilter
    picture_review: PictureReview
    history: History
    moderation: Moderation
    data_deletion: DataDeletion
    worker_decoder: UploadDecoder  # decodes pictures of workers, before anything else does
    sessions: Sessions
    api_keys: ApiKeys
    added: Mapping[type, object] = field(default_factory=dict[type, object])  # of features, by their class

    def get(self, kind: type[T]) -> T:
        """Return a feature's service. Raises KeyError if no feature adds it."""
        return cast("T", self.added[kind])

    def list_all(self, kind: type[T]) -> list[T]:
        """Return the features' services of a class of the core, such as `bot.domain.feature.SideWork`."""
        return [service for service in self.added.values() if isinstance(service, kind)]
