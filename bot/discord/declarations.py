"""Commands, buttons and menus are declared where they are handled; the lists of all of them are derived.

A command of discord.py carries its row (`extras=declare(…)`). The core's are in `MODULES`, those of a feature in its
`discord` module. That may also have `PREFERENCES`, `BUTTONS` under jobs and `REACTIONS` by their emoji. Its
`extend_progress` and `extend_final` change the cards of jobs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import discord
from discord import app_commands, ui

from bot.domain.feature import load_parts, merge_rows
from bot.domain.permission import Action

AnyCommand = app_commands.Command[Any, ..., Any] | app_commands.ContextMenu | app_commands.Group
# What has commands, or items that outlive a restart, in the sequence of `/help`.
MODULES = (
    "bot.discord.commands.imagine",
    "bot.discord.commands.mine",
    "bot.discord.commands.queue",
    "bot.discord.commands.preferences",
    "bot.discord.commands.context_menus",
    "bot.discord.film",
    "bot.discord.commands.pictures",
    "bot.discord.commands.help",
    "bot.discord.components.buttons",
    "bot.discord.components.branches",
    "bot.discord.components.steering",
    "bot.discord.settings.commands",
    "bot.discord.settings.moderation",
)


@dataclass(frozen=True)
class Declaration:
    """What Darkroom adds to a command of discord.py.

    `action`: its row in the table of permissions; None: the command checks it itself. `rate`: what it is charged for,
    if that is another action. `help`: a few words for `/help`; it may name other commands as `{name}`.
    """

    action: Action | None
    help: str
    rate: Action | None


def declare(action: Action | None = None, *, help: str = "", rate: Action | None = None) -> dict[Any, Any]:
    """Return the `extras` of a command."""
    return {Declaration: Declaration(action, help, rate)}


@cache
def list_commands() -> Mapping[AnyCommand, Declaration]:
    """Return every command and menu with what it declares: the core's, then those of features."""
    found = {command: command.extras[Declaration] for command in _list_values() if _is_declared(command)}
    return dict(sorted(found.items(), key=lambda each: isinstance(each[0], app_commands.ContextMenu)))


@cache
def list_dynamic_items() -> tuple[type[ui.DynamicItem[Any]], ...]:
    """Return the buttons and menus that outlive a restart."""
    classes = (each for each in _list_values() if isinstance(each, type))
    return tuple(cast(Any, each) for each in classes if issubclass(each, ui.DynamicItem))


def list_command_actions() -> dict[str, Action]:
    """Return each command's and menu's action in the table, but for those that check theirs themselves."""
    return {command.name: row.action for command, row in list_commands().items() if row.action}


def list_command_rates() -> dict[str, Action]:
    """Return the action that each command or menu is charged for."""
    return {command.name: row.rate or row.action or "settings" for command, row in list_commands().items()}


def list_help() -> dict[str, str]:
    """Return what `/help` says of commands, by their full names: of a group, its first command."""
    return {_name_first(command): row.help for command, row in list_commands().items() if row.help}


def list_preference_commands() -> dict[str, str]:
    """Return the subcommands of `/prefer` that features add (`PREFERENCES`), each with what it has, in a few words."""
    return merge_rows({}, *(getattr(module, "PREFERENCES", {}) for module in load_parts("discord").values()))


def _list_values() -> Iterator[Any]:
    """Yield what the modules with commands define, but for what they import."""
    modules = [*map(import_module, MODULES), *load_parts("discord").values()]
    for module in modules:
        for value in vars(module).values():
            if module.__name__ in (getattr(value, "module", None), getattr(value, "__module__", None)):
                yield value


def _is_declared(value: object) -> bool:
    is_command = isinstance(value, app_commands.Command | app_commands.ContextMenu | app_commands.Group)
    return is_command and Declaration in value.extras


def _name_first(command: AnyCommand) -> str:
    return command.commands[0].qualified_name if isinstance(command, app_commands.Group) else command.qualified_name


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
class ButtonDeclaration:
    """A button under a job. `kind`: letters, the beginning of its id.

    `action`: its row in the table of permissions, asked about the job. `submit`: takes the form that is named as the
    button. Both functions raise `UserError`.
    """

    kind: str
    action: Action
    press: Callable[[Any, Button, Any], Awaitable[None]]
    submit: Callable[[Any, FormSubmission, JobView], Awaitable[None]] | None = None
    style: discord.ButtonStyle = discord.ButtonStyle.secondary


@cache
def load_feature_buttons() -> Mapping[str, ButtonDeclaration]:
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
