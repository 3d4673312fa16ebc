"""What the commands are called in other languages than English. Names stay as they are: people tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from discord import Locale, app_commands

GERMAN: Mapping[str, str] = MappingProxyType({})


class Languages(app_commands.Translator):
    """Asked by discord.py for every name and description, in every language."""

    async def translate(
        self, string: app_commands.locale_str, locale: Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        return GERMAN.get(string.message) if locale is Locale.german else None
