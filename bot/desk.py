"""The desk: the use cases that a front end stands behind. A frozen bundle, made by `bot.house`; it does nothing."""

from __future__ import annotations

from dataclasses import dataclass

from bot.administration import Administration
from bot.deliveries import Deliveries
from bot.moderation import Moderation
from bot.preferences import Preferences
from bot.review import Review
from bot.shelf import Shelf
from bot.studio import Studio


@dataclass(frozen=True)
class Desk:
    """What members, moderators and admins may do, by subject."""

    studio: Studio
    deliveries: Deliveries
    preferences: Preferences
    administration: Administration
    review: Review
    shelf: Shelf
    moderation: Moderation
