"""What features add to Discord, in their `discord` modules.

Each may have `COMMANDS`; `DYNAMIC_ITEMS`, buttons and menus that outlive a restart; `BUTTONS` under jobs;
`REACTIONS`, by their emoji; and `PREFERENCES`, subcommands of `/prefer`. Its `extend_progress` and `extend_final`
change the cards of jobs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from discord import ui

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
class FeatureCommand:
    """A command of discord.py, or a group.

    `action`: its row in the table of permissions. `rate`: what it is charged for, if that is another action. `help`: a
    few words for `/help`, where `{name}` stands for a command; empty if those of another command name this one.
    """

    command: Any  # discord.py types each command by its own parameters
    action: Action
    help: str
    rate: Action | None = None


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
def list_feature_commands() -> tuple[FeatureCommand, ...]:
    """Return the commands of all features."""
    return _collect("COMMANDS")


@cache
def list_feature_items() -> tuple[type[ui.DynamicItem[Any]], ...]:
    """Return the buttons and menus of all features that outlive a restart."""
    return _collect("DYNAMIC_ITEMS")


def list_preference_commands() -> dict[str, str]:
    """Return the subcommands of `/prefer` that features add, each with what it has, in a few words."""
    return merge_rows({}, *_list_attributes("PREFERENCES"))


@cache
def load_feature_buttons() -> Mapping[str, FeatureButton]:
    """Return the buttons of all features by their kind."""
    return merge_rows({}, *({button.kind: button} for button in _collect("BUTTONS")))


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


def _collect(name: str) -> tuple[Any, ...]:
    return tuple(row for rows in _list_attributes(name) for row in rows)


def _list_attributes(name: str) -> list[Any]:
    """Return what is called so in the features' `discord` modules."""
    return [getattr(module, name) for module in load_parts("discord").values() if hasattr(module, name)]
