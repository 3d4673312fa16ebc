"""The services: use cases that all front ends call. They know nothing of Discord, HTTP or the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from bot.services.flag_aliases import FlagAliases
from bot.services.job_views.deliveries import Deliveries
from bot.services.job_views.history import History
from bot.services.jobs.job_service import JobService
from bot.services.moderation.moderation import Moderation
from bot.services.moderation.picture_review import PictureReview
from bot.services.preferences import Preferences
from bot.services.privacy.data_deletion import DataDeletion
from bot.services.privacy.data_export import DataExport
from bot.services.prompt_tools.image_to_prompt import ImageToPrompt
from bot.services.prompt_tools.prompt_shortening import PromptShortener
from bot.services.rule_admin import RuleAdmin


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
