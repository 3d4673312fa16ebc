"""German translations of the commands' descriptions, options and menus.

Names of slash commands are not translated: people tell them to each other. Menus, which nobody types, are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from discord import Locale, app_commands

from bot.discord.settings.german import GERMAN as SETTINGS

GERMAN: Mapping[str, str] = MappingProxyType(
    {
        # imagine
        "Turn a prompt into pictures while you watch": "Macht vor deinen Augen Bilder aus einem Prompt",
        "What to show. Flags like --ar 3:2 work here too": "Was zu sehen sein soll; auch Schalter wie --ar 3:2",
        "An init image: the picture to start from": "Ein Bild, mit dem es beginnt",
        "How much of that picture is redrawn": "Wie viel von diesem Bild neu gezeichnet wird",
        "A picture of the same shape: its white parts are redrawn": (
            "Ein Bild gleicher Form: was darin weiß ist, wird neu gezeichnet"
        ),
        "Branch off at a keyframe of a job, like JOB/2:400: picture 2, step 400": (
            "Zweigt von einem Auftrag ab, etwa AUFTRAG/2:400: Bild 2, Schritt 400"
        ),
        "More steps, finer and slower": "Mehr Schritte: feiner und langsamer",
        "The same seed gives the same pictures": "Gleicher Startwert, gleiche Bilder",
        "How closely to follow the prompt": "Wie genau es dem Prompt folgt",
        "In which part of the steps guidance holds, like 0.2-0.8": "In welchem Teil der Schritte das gilt, 0.2-0.8",
        "The method that turns noise into a picture": "Wie aus Rauschen ein Bild wird",
        "Which model": "Welches Modell",
        "A LoRA for the model, like name or name:0.8; several with commas": (
            "Ein LoRA zum Modell, etwa name oder name:0.8; mehrere mit Komma"
        ),
        "How many pictures": "Wie viele Bilder",
        "Width to height, like 3:2": "Breite zu Höhe, etwa 3:2",
        "What to steer away from": "Was nicht zu sehen sein soll",
        "Few steps of a quick sampler": "Wenige, schnelle Schritte",
        "Wait longer, and spend nothing of your limit": "Später, dafür ohne dein Kontingent",
        # blend, mix, shorten, describe
        "Blend two to five pictures into new ones": "Mischt zwei bis fünf Bilder zu neuen",
        "The first picture; it sets the aspect ratio": "Das erste Bild; es gibt die Form vor",
        "The second": "Das zweite",
        "A third": "Ein drittes",
        "A fourth": "Ein viertes",
        "A fifth": "Ein fünftes",
        "The weight of each picture, like 2 1; equal by default": (
            "Wie viel jedes zählt, etwa 2 1; alle gleich, wenn du nichts angibst"
        ),
        "What to show besides what the pictures show": ("Was zu sehen sein soll, falls mehr als die Bilder sagen"),
        "How much of the blend is redrawn": "Wie viel der Mischung neu gezeichnet wird",
        "Mix two prompts: pictures of what lies between them": (
            "Zwei Prompts in einem: Bilder von dem, was dazwischen liegt"
        ),
        "What to show": "Was zu sehen sein soll",
        "And what else": "Und was noch",
        "The weight of the first, of 1; half by default": "Wie viel vom ersten, von 1; sonst die Hälfte",
        "Which words of a prompt matter, and shorter versions to imagine": (
            "Welche Worte einen Prompt tragen, und kürzere Fassungen davon"
        ),
        "The prompt; its flags stay as they are": "Der Prompt; seine Schalter bleiben, wie sie sind",
        "Suggest prompts for a picture, each to imagine": ("Schlägt Prompts zu einem Bild vor"),
        "The picture": "Das Bild",
        "Which model scores the words": "Welches Modell die Worte bewertet",
        # walk
        "Interpolate from one prompt to another, picture by picture, with a film": (
            "Bild für Bild von einem Prompt zu einem anderen, mit einem Film"
        ),
        "The first prompt": "Der erste Prompt",
        "The last prompt": "Der letzte Prompt",
        "How many pictures; twelve by default": "Wie viele Bilder; sonst zwölf",
        "interpolation: from prompt to prompt": "Interpolation: von Prompt zu Prompt",
        # fast, relax, turbo, stealth, public
        "From now on your jobs count against your limit, and wait in the usual queue": (
            "Ab jetzt zählen deine Aufträge zu deinem Kontingent und warten in der üblichen Schlange"
        ),
        "From now on your jobs wait longer, and spend nothing of your limit": (
            "Ab jetzt warten deine Aufträge länger, dafür ohne dein Kontingent"
        ),
        "Says why there is no third speed, and what is quicker": (
            "Sagt, warum es kein drittes Tempo gibt, und was schneller ist"
        ),
        "From now on only you see your results, where the server's rules allow it": (
            "Ab jetzt siehst nur du deine Ergebnisse, wo die Regeln des Servers es erlauben"
        ),
        "From now on everybody in the channel sees your results": "Ab jetzt sehen alle im Kanal deine Ergebnisse",
        # queue, cancel
        "Who is before you, and why": "Wer vor dir dran ist, und warum",
        "Cancel one of your jobs, or all of them": "Bricht einen deiner Aufträge ab, oder alle",
        "Choose one, or all; a link, an id or a seed works too": "Einen oder alle; auch Link, Nummer oder Startwert",
        # mine
        "Your own pictures and jobs, from every server; only you see them": (
            "Deine Bilder und Aufträge von allen Servern; nur du siehst sie"
        ),
        "Which jobs; all by default": "Welche Aufträge; sonst alle",
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
        "Your preferences: pings, speed, a suffix, flag aliases, …": (
            "Was du lieber hast: Pings, Tempo, einen Zusatz, eigene Schalter, …"
        ),
        "All your preferences": "Alles, was du eingestellt hast",
        "Change one: pings, direct messages, speed, private results, a suffix, …": (
            "Stellt eines um: Pings, Direktnachrichten, Tempo, private Bilder, einen Zusatz, …"
        ),
        "Which one": "Welche Einstellung",
        "What it should be; without it, its default": "Was sie sein soll; ohne gilt der Vorgabewert",
        "Words and flags that are added to every prompt of yours; without any, none are": (
            "Worte und Schalter, die an jeden Prompt von dir angehängt werden; ohne Angabe keine"
        ),
        "What is added, like soft light --ar 3:2": "Was angehängt wird, etwa soft light --ar 3:2",
        "Whether V and 🔄 ask for another prompt first: switches it on, or off again": (
            "Ob V und 🔄 erst nach anderen Worten fragen: schaltet es ein oder wieder aus"
        ),
        "Whether finished pictures also come as direct messages: switches it on, or off again": (
            "Ob fertige Bilder auch als Direktnachricht kommen: schaltet es ein oder wieder aus"
        ),
        "Flag aliases, which stand for what you often type": "Eigene Schalter für das, was du oft eingibst",
        "Set what a flag alias stands for; without a value it is deleted": (
            "Merkt sich, wofür ein eigener Schalter steht; ohne Angabe wird er gelöscht"
        ),
        "Its name: mine is typed as --mine": "Sein Name: mine wird als --mine eingegeben",
        "Words and flags, like soft light --ar 3:2": "Worte und Schalter, etwa soft light --ar 3:2",
        "Your flag aliases, and what they stand for": "Deine eigenen Schalter, und wofür sie stehen",
        # reproduce, film, help
        "Make a picture again: same prompt, same seed, same pixels": (
            "Macht ein Bild noch einmal: gleicher Prompt, gleicher Startwert, gleiche Bildpunkte"
        ),
        "Choose one; a link to its message, its id or its seed works too": (
            "Einen Auftrag; auch Link, Nummer oder Startwert"
        ),
        "Show how a picture came out of the noise, as an animation": "Zeigt, wie ein Bild aus dem Rauschen kam",
        "The file format": "Das Dateiformat",
        "What the film shows": "Was der Film zeigt",
        "Which of its pictures, for a film of one picture": "Welches seiner Bilder, wenn der Film von einem handelt",
        "developing: out of the noise": "entwickeln: aus dem Rauschen",
        "dissolving: into the noise": "auflösen: ins Rauschen",
        "there and back": "hin und zurück",
        # my-data, forget-me
        "A copy of your stored data: jobs, settings and pictures": (
            "Eine Kopie von allem, was von dir gespeichert ist: Aufträge, Einstellungen, Bilder"
        ),
        "Delete all your data for good; asks for confirmation": (
            "Löscht alles von dir für immer; fragt vorher noch einmal"
        ),
        "What this bot does, and how to ask for it": "Was dieser Bot kann, und wie man ihn bittet",
        # menus
        "Reproduce": "Noch einmal machen",
        "Use as prompt": "Als Prompt nehmen",
        "Details": "Einzelheiten",
        "Report": "Melden",
    }
)


class CommandTranslator(app_commands.Translator):
    """The translator that discord.py asks for every name and description, in every language."""

    async def translate(
        self, string: app_commands.locale_str, locale: Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        if locale is not Locale.german:
            return None
        return GERMAN.get(string.message) or SETTINGS.get(string.message)
