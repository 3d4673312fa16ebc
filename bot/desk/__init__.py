"""The services: use cases that all front ends call. They know nothing of Discord, HTTP or the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from bot.desk.administration import Administration
from bot.desk.deliveries import Deliveries
from bot.desk.describing import Describing
from bot.desk.export import Export
from bot.desk.forgetting import Forgetting
from bot.desk.moderation import Moderation
from bot.desk.options import Options
from bot.desk.preferences import Preferences
from bot.desk.review import Review
from bot.desk.shelf import Shelf
from bot.desk.shortening import Shortening
from bot.desk.studio import Studio


@dataclass(frozen=True)
class Desk:
    """All services, by subject."""

    studio: Studio
    deliveries: Deliveries
    preferences: Preferences
    options: Options
    administration: Administration
    review: Review
    shelf: Shelf
    moderation: Moderation
    forgetting: Forgetting
    export: Export
    shortening: Shortening
    describing: Describing
