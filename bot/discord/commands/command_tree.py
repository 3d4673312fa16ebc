"""The command tree: its permission check, its error handler, and its registration with Discord.

It is registered only after a change: in a crash loop, a registration at each start would use up the day's quota. The
command ids that Discord assigns are stored beside the tree's hash, so that a message can mention a command.

Translates the commands' texts by catalogues, one PO file for each language: in `bot/discord/locale/` and in the
folder `locale` of each feature.

A file is named after its language, as Discord writes it: `de.po`, `es-ES.po`; `es.po` serves each Spanish. A `msgctxt`
is the name of a `TranslationContextLocation`, where one English text needs several translations.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import discord
from discord import Locale, app_commands

from bot.discord.declarations import list_command_actions, list_command_rates, list_commands
from bot.discord.responses import check_rate, report_errors, require_permission, send_error
from bot.domain.feature import load_parts

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient, Interaction

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredCommands:
    """What Discord has: the hash of the tree, and the id of each command."""

    mark: str = ""
    ids: dict[str, int] = field(default_factory=dict)


class DarkroomCommandTree(app_commands.CommandTree["DarkroomClient"]):
    """The commands. An unexpected error is logged, and the member is told."""

    def __init__(self, client: DarkroomClient) -> None:
        super().__init__(  # servers and direct messages with the bot; no user installs, no private channels
            client,
            allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
            allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False),
        )
        self.command_ids: Mapping[str, int] = {}

    async def interaction_check(self, interaction: Interaction, /) -> bool:
        """Return whether they may use this command at all, so soon; the command itself checks the job."""
        name = str((interaction.data or {}).get("name", ""))
        if interaction.type is discord.InteractionType.autocomplete:
            if wait_seconds := interaction.client.token_buckets.take(f"discord:{interaction.user.id}", "suggest"):
                await interaction.response.autocomplete([])  # without an answer Discord shows an error
            return not wait_seconds
        async with report_errors(interaction, log, "the permission check of a command failed"):
            check_rate(interaction, list_command_rates().get(name, "settings"))
            if action := list_command_actions().get(name):
                await require_permission(interaction, action)
            return True
        return False

    async def on_error(self, interaction: Interaction, error: app_commands.AppCommandError, /) -> None:
        name = interaction.command.name if interaction.command else "a command"
        log.error("%s failed", name, exc_info=error)
        if interaction.type is discord.InteractionType.application_command:
            await send_error(interaction)

    async def build_payload(self) -> list[dict[str, Any]]:
        """Return the tree as Discord gets it."""
        translator = self.translator
        commands = self.get_commands()
        if translator is None:
            return [dict(command.to_dict(self)) for command in commands]
        return [await command.get_translated_payload(self, translator) for command in commands]

    async def sync_if_changed(self, state_file: Path) -> None:
        """Register the tree if Discord has another one; `state_file` stores what Discord has."""
        payload = json.dumps([self.client.application_id, await self.build_payload()], sort_keys=True)
        tree_hash = hashlib.sha256(payload.encode()).hexdigest()
        state = await asyncio.to_thread(_read_state, state_file)
        if state.mark != tree_hash:
            commands = await self._sync_or_stay_english()
            state = RegisteredCommands(tree_hash, {command.name: command.id for command in commands})
            await asyncio.to_thread(state_file.write_text, json.dumps(asdict(state)))
        self.command_ids = state.ids

    async def _sync_or_stay_english(self) -> list[app_commands.AppCommand]:
        """Register the tree; without its translations if Discord refuses it with them."""
        try:
            return await self.sync()
        except app_commands.CommandSyncFailure as error:
            log.error("The commands are registered in English only, since Discord refuses them translated: %s", error)
            await self.set_translator(None)
            return await self.sync()

    def mention(self, name: str) -> str:
        """Return a command's name, clickable if its id is known: "queue", "settings show"."""
        command_id = self.command_ids.get(name.partition(" ")[0])
        return f"</{name}:{command_id}>" if command_id else f"`/{name}`"


def _read_state(state_file: Path) -> RegisteredCommands:
    try:
        data = json.loads(state_file.read_text())
        return RegisteredCommands(
            str(data["mark"]), {str(name): int(command_id) for name, command_id in data["ids"].items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no file yet, or not one of ours
        return RegisteredCommands()


async def build_payload() -> list[dict[str, Any]]:
    """Return the payload that Discord gets; needs no connection."""
    tree = DarkroomCommandTree(cast(Any, discord.Client(intents=discord.Intents(guilds=True))))
    await tree.set_translator(CommandTranslator())
    for command in list_commands():
        tree.add_command(command)
    return await tree.build_payload()


LOCALE_FOLDER = Path(__file__).resolve().parents[1] / "locale"
PO_LINE = re.compile(r'(#.*|((msgctxt|msgid|msgid_plural|msgstr(\[\d+\])?) +)?"([^"\\]|\\.)*")?')
Translations = Mapping[tuple[str | None, str], str]  # by context and English text


class CatalogueError(ValueError):
    """A catalogue that cannot be used; the message names its file and line."""


class CommandTranslator(app_commands.Translator):
    """The translator that discord.py asks for every name and description, in every language."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders or list_locale_folders()
        self._catalogues: Mapping[Locale, list[Translations]] = {}

    async def load(self) -> None:
        folders = [await asyncio.to_thread(load_catalogues, folder) for folder in self._folders]
        self._catalogues = {
            locale: [each[name] for name in _file_names_of(locale) for each in folders if name in each]
            for locale in Locale
        }

    async def translate(
        self, string: app_commands.locale_str, locale: Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        """Return the translation; None if there is none, or if it equals the English text."""
        for catalogue in self._catalogues.get(locale, ()):
            for key in ((context.location.name, string.message), (None, string.message)):
                if key in catalogue:
                    return catalogue[key] if catalogue[key] != string.message else None
        return None


def list_locale_folders() -> tuple[Path, ...]:
    """Return the folders of catalogues: the core's, and those of features."""
    modules = load_parts("discord").values()
    return (LOCALE_FOLDER, *(Path(module.__file__ or "").with_name("locale") for module in modules))


def load_catalogues(folder: Path) -> dict[str, Translations]:
    """Return each language's translations by its file's name. A file that cannot be used is logged and left out."""
    catalogues: dict[str, Translations] = {}
    for path in sorted(folder.glob("*.po")):
        try:
            catalogues[path.stem] = read_catalogue(path)
        except CatalogueError as error:
            log.error("%s. Members who speak it see English", error)
    return catalogues


def read_catalogue(path: Path) -> Translations:
    """Return the translations of a PO file in UTF-8; fuzzy and empty ones count as missing.

    Raises:
        CatalogueError: Discord has no such language, or the file is malformed.
    """
    languages = sorted({name for locale in Locale for name in _file_names_of(locale)})
    if path.stem not in languages:
        raise CatalogueError(f"{path}: Discord has no language {path.stem}, only {', '.join(languages)}")
    line_number = 0

    def read_lines() -> Iterator[str]:
        nonlocal line_number
        for line in path.read_bytes().splitlines():
            line_number += 1
            text = line.decode("utf-8-sig").strip()
            if not PO_LINE.fullmatch(text):
                raise ValueError("expected a comment, or a keyword with a text in double quotes")
            yield text

    try:
        from babel.messages.pofile import read_po

        messages = list(read_po(read_lines(), ignore_obsolete=True, abort_invalid=True))
    except Exception as error:  # Babel raises errors of many kinds
        index = getattr(error, "lineno", line_number - 1)  # Babel counts from 0
        raise CatalogueError(f"{path}, line {index + 1}: {str(error).removesuffix(f' on {index}')}") from error
    return {
        (message.context, message.id): message.string
        for message in messages
        if isinstance(message.id, str) and isinstance(message.string, str)
        if message.id and message.string.strip() and not message.fuzzy
    }


def _file_names_of(locale: Locale) -> tuple[str, str]:
    """Return the names of the files that serve a language: "es-ES", then "es"."""
    return locale.value, locale.value.partition("-")[0]
