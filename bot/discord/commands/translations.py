"""Translates the commands' texts by catalogues, one PO file for each language: in `bot/discord/locale/` and in the
folder `locale` of each feature.

A file is named after its language, as Discord writes it: `de.po`, `es-ES.po`; `es.po` serves each Spanish. A `msgctxt`
is the name of a `TranslationContextLocation`, where one English text needs several translations.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from discord import Locale, app_commands

from bot.domain.feature import load_parts

log = logging.getLogger(__name__)

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
