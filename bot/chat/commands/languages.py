"""What the commands say of themselves in other languages than English.

The names of slash commands stay as they are: people tell each other. Menus, which nobody types, are translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from discord import Locale, app_commands

from bot.chat.settings.german import GERMAN as SETTINGS

GERMAN: Mapping[str, str] = MappingProxyType(
    {
        # imagine
        "Turn words into pictures while you watch": "Macht vor deinen Augen Bilder aus Worten",
        "What to show. Flags like --ar 3:2 work here too": "Was zu sehen sein soll; auch Schalter wie --ar 3:2",
        "More steps, finer and slower": "Mehr Schritte: feiner und langsamer",
        "The same seed gives the same pictures": "Gleicher Startwert, gleiche Bilder",
        "How closely to follow the words": "Wie genau es den Worten folgt",
        "In which part of the steps guidance holds, like 0.2-0.8": "In welchem Teil der Schritte das gilt, 0.2-0.8",
        "How noise becomes a picture": "Wie aus Rauschen ein Bild wird",
        "Which model": "Welches Modell",
        "An addition to the model, like name or name:0.8; several with commas": (
            "Ein Zusatz zum Modell, etwa name oder name:0.8; mehrere mit Komma"
        ),
        "How many pictures": "Wie viele Bilder",
        "Width to height, like 3:2": "Breite zu Höhe, etwa 3:2",
        "What to steer away from": "Was nicht zu sehen sein soll",
        "Few steps of a quick sampler": "Wenige, schnelle Schritte",
        "Wait longer, and spend nothing of your limit": "Später, dafür ohne dein Kontingent",
        # queue, cancel
        "Who is before you, and why": "Wer vor dir dran ist, und warum",
        "Take back a job of yours, or all of them": "Bricht einen deiner Aufträge ab, oder alle",
        "Choose one, or all; a link, an id or a seed works too": "Einen oder alle; auch Link, Nummer oder Startwert",
        # mine
        "Your own pictures and jobs, from every server; only you see them": (
            "Deine Bilder und Aufträge von allen Servern; nur du siehst sie"
        ),
        "All of them, if you don't say": "Alle, wenn du nichts angibst",
        "Which page, five jobs each; the newest first": "Welche Seite, je fünf Aufträge; die neuesten zuerst",
        "All": "Alle",
        "Favourites": "Lieblinge",
        "Waiting": "Wartend",
        "Not shown": "Nicht gezeigt",
        # info, prefer
        "Your limits and what is left of them, the queue and the workers; or one job": (
            "Deine Grenzen und was davon frei ist, Warteschlange und Rechner; oder ein Auftrag"
        ),
        "All about this one; a link, an id or a seed works too": "Alles über diesen; auch Link, Nummer oder Startwert",
        "What you prefer: pings, direct messages, speed, private results, a suffix, …": (
            "Was du lieber hast: Pings, Direktnachrichten, Tempo, private Bilder, einen Zusatz, …"
        ),
        "Which one; without it you see them all": "Welche Einstellung; ohne siehst du alle",
        "What it should be; without it, its default": "Was sie sein soll; ohne gilt der Vorgabewert",
        # reproduce, film, help
        "Make a picture once more: same words, same seed, same pixels": (
            "Macht ein Bild noch einmal: gleiche Worte, gleicher Startwert, gleiche Bildpunkte"
        ),
        "Choose one; a link to its message, its id or its seed works too": (
            "Einen Auftrag; auch Link, Nummer oder Startwert"
        ),
        "Show how a picture came out of the noise, as an animation": "Zeigt, wie ein Bild aus dem Rauschen kam",
        "What this bot does, and how to ask for it": "Was dieser Bot kann, und wie man ihn bittet",
        # menus
        "Reproduce": "Noch einmal machen",
        "Use as prompt": "Als Prompt nehmen",
        "Details": "Einzelheiten",
        "Report": "Melden",
    }
)


class Languages(app_commands.Translator):
    """Asked by discord.py for every name and description, in every language."""

    async def translate(
        self, string: app_commands.locale_str, locale: Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        if locale is not Locale.german:
            return None
        return GERMAN.get(string.message) or SETTINGS.get(string.message)
