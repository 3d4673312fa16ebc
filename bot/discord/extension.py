"""What features add to Discord besides commands (`bot.discord.declarations`), in their `discord` modules.

Each may have `BUTTONS` under jobs, and `REACTIONS` by their emoji. Its `extend_progress` and `extend_final` change the
cards of jobs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from bot.domain.feature import load_parts, merge_rows
from bot.domain.permission import Action

if TYPE_CHECKING:
    from bot.discord.cards.button_layout import Button
    from bot.discord.cards.job_cards import Card
    from bot.discord.cards.pictures import PictureFile
    from bot.discord.components.forms import FormSubmission
    from bot.domain.dto import JobView, Member
    from bot.services import Services

    Check = Callable[[Action], Awaitable[None]]  # raises `UserError` if the member may not act on the job
    Reaction = Callable[[Services, JobView, Member, Check], Awaitable[None]]


@dataclass(frozen=True)
class FeatureButton:
    """A button under a job. `kind`: letters, the beginning of its id.

    `action`: its row in the table of permissions, asked about the job. `submit`: takes the form that is named as the
    button. Both functions raise `UserError`.
    """

    kind: str
    action: Action
    press: Callable[[Any, Button, JobView], Awaitable[None]]
    submit: Callable[[Any, FormSubmission, JobView], Awaitable[None]] | None = None


@cache
def load_feature_buttons() -> Mapping[str, FeatureButton]:
    """Return the buttons of all features by their kind."""
    return merge_rows({}, *({button.kind: button} for buttons in _list_attributes("BUTTONS") for button in buttons))


@cache
def load_feature_reactions() -> Mapping[str, Reaction]:
    """Return what features do with reactions to a job's message, by their emoji."""
    return merge_rows({}, *_list_attributes("REACTIONS"))


async def extend_progress(services: Services, view: JobView, card: Card, now: float) -> Card:
    """Return the card of a developing picture with what features add to it."""
    for extend in _list_attributes("extend_progress"):
        card = await extend(services, view, card, now)
    return card


async def extend_final(
    services: Services, view: JobView, card: Card, limit: int
) -> tuple[Card, tuple[PictureFile, ...]]:
    """Return the card of finished pictures with what features add to it, and their files of at most `limit` bytes."""
    files: tuple[PictureFile, ...] = ()
    for extend in _list_attributes("extend_final"):
        card, added = await extend(services, view, card, limit)
        files += added
    return card, files


def _list_attributes(name: str) -> list[Any]:
    """Return what is called so in the features' `discord` modules."""
    return [getattr(module, name) for module in load_parts("discord").values() if hasattr(module, name)]
