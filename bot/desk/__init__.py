"""The services: use cases that all front ends call. They know nothing of Discord, HTTP or the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from bot.desk.administration import RuleAdmin
from bot.desk.deliveries import Deliveries
from bot.desk.describing import ImageToPrompt
from bot.desk.export import DataExport
from bot.desk.forgetting import DataDeletion
from bot.desk.moderation import Moderation
from bot.desk.options import FlagAliases
from bot.desk.preferences import Preferences
from bot.desk.review import PictureReview
from bot.desk.shelf import History
from bot.desk.shortening import PromptShortener
from bot.desk.studio import JobService


@dataclass(frozen=True)
class Services:
    """All services, by subject."""

    jobs: JobService
    deliveries: Deliveries
    preferences: Preferences
    flag_aliases: FlagAliases
    rule_admin: RuleAdmin
    picture_review: PictureReview
    history: History
    moderation: Moderation
    data_deletion: DataDeletion
    data_export: DataExport
    prompt_shortener: PromptShortener
    image_to_prompt: ImageToPrompt
