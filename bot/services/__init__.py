"""The services: use cases that all front ends call. They know nothing of Discord, HTTP or the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from bot.domain.events import Feed
from bot.jobs.control import JobControl
from bot.jobs.drawing import JobService
from bot.jobs.edits import EditService
from bot.jobs.history import History
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.preferences import Preferences
from bot.jobs.steering import SteeringService
from bot.jobs.variations import VariationService
from bot.jobs.views import Deliveries, JobViews
from bot.pictures.gallery import Gallery
from bot.services.moderation.moderation import Moderation
from bot.services.rule_admin import RuleAdmin
from engine.contract import Presence

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What every front end uses, by subject. What one front end or feature needs, it gets by its class."""

    jobs: JobService
    job_control: JobControl
    variations: VariationService
    edits: EditService
    steering: SteeringService
    job_views: JobViews
    gallery: Gallery
    catalog: ModelCatalog
    feed: Feed
    live_workers: Callable[[], Mapping[str, Presence]]  # by name
    deliveries: Deliveries
    preferences: Preferences
    rule_admin: RuleAdmin
    history: History
    moderation: Moderation
    by_class: Mapping[type, object] = field(default_factory=dict[type, object])

    def get(self, kind: type[T]) -> T:
        """Return a service by its class, the core's or a feature's. Raises KeyError if nobody adds it."""
        return cast("T", self.by_class[kind])

    def list_all(self, kind: type[T]) -> list[T]:
        """Return the features' services of a class of the core, such as `bot.domain.feature.SideWork`."""
        return [service for service in self.by_class.values() if isinstance(service, kind)]
