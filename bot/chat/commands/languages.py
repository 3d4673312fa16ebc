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
        "A picture to begin with": "Ein Bild, mit dem es beginnt",
        "How much of that picture is drawn anew": "Wie viel von diesem Bild neu gezeichnet wird",
        "A picture of the same shape: what is white in it is drawn anew": (
            "Ein Bild gleicher Form: was darin weiß ist, wird neu gezeichnet"
        ),
        "Go on from a rung of a job, like JOB/2:400: picture 2, step 400": (
            "Zweigt von einem Auftrag ab, etwa AUFTRAG/2:400: Bild 2, Schritt 400"
        ),
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
        # blend, mix, shorten, describe
        "Blend two to five pictures into new ones": "Mischt zwei bis fünf Bilder zu neuen",
        "The first picture; it gives the shape": "Das erste Bild; es gibt die Form vor",
        "The second": "Das zweite",
        "A third": "Ein drittes",
        "A fourth": "Ein viertes",
        "A fifth": "Ein fünftes",
        "How much each of them counts, like 2 1; equally, if you don't say": (
            "Wie viel jedes zählt, etwa 2 1; alle gleich, wenn du nichts angibst"
        ),
        "What to show, if it shall be more than the pictures say": (
            "Was zu sehen sein soll, falls mehr als die Bilder sagen"
        ),
        "How much of the blend is drawn anew": "Wie viel der Mischung neu gezeichnet wird",
        "Two prompts in one: pictures of what lies between them": (
            "Zwei Prompts in einem: Bilder von dem, was dazwischen liegt"
        ),
        "What to show": "Was zu sehen sein soll",
        "And what else": "Und was noch",
        "How much of the first, of 1; half, if you don't say": "Wie viel vom ersten, von 1; sonst die Hälfte",
        "Which words of a prompt carry it, and shorter versions to imagine": (
            "Welche Worte einen Prompt tragen, und kürzere Fassungen davon"
        ),
        "The prompt; its flags stay as they are": "Der Prompt; seine Schalter bleiben, wie sie sind",
        "Words that fit a picture, of those that a model knows, to imagine": (
            "Worte, die zu einem Bild passen, von denen, die ein Modell kennt"
        ),
        "The picture": "Das Bild",
        "Which model is asked": "Welches Modell gefragt wird",
        # walk
        "From one prompt to another, picture by picture, and a film of it": (
            "Bild für Bild von einem Prompt zu einem anderen, und ein Film davon"
        ),
        "Where the walk begins": "Wo der Weg beginnt",
        "Where it leads": "Wohin er führt",
        "How many pictures; twelve, if you don't say": "Wie viele Bilder; sonst zwölf",
        "a walk, from words to words": "ein Weg, von Worten zu Worten",
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
        "What you prefer: pings, speed, a suffix, flags of your own, …": (
            "Was du lieber hast: Pings, Tempo, einen Zusatz, eigene Schalter, …"
        ),
        "All that you prefer": "Alles, was du eingestellt hast",
        "Change one: pings, direct messages, speed, private results, a suffix, …": (
            "Stellt eines um: Pings, Direktnachrichten, Tempo, private Bilder, einen Zusatz, …"
        ),
        "Which one": "Welche Einstellung",
        "What it should be; without it, its default": "Was sie sein soll; ohne gilt der Vorgabewert",
        "Words and flags that are added to every prompt of yours; without any, none are": (
            "Worte und Schalter, die an jeden Prompt von dir angehängt werden; ohne Angabe keine"
        ),
        "What is added, like soft light --ar 3:2": "Was angehängt wird, etwa soft light --ar 3:2",
        "Whether V and 🔄 ask for other words first: switches it on, or off again": (
            "Ob V und 🔄 erst nach anderen Worten fragen: schaltet es ein oder wieder aus"
        ),
        "Whether finished pictures also come as direct messages: switches it on, or off again": (
            "Ob fertige Bilder auch als Direktnachricht kommen: schaltet es ein oder wieder aus"
        ),
        "Flags of your own, which stand for what you often type": "Eigene Schalter für das, was du oft eingibst",
        "Note what a flag of your own stands for; without a value it is deleted": (
            "Merkt sich, wofür ein eigener Schalter steht; ohne Angabe wird er gelöscht"
        ),
        "Its name: mine is typed as --mine": "Sein Name: mine wird als --mine eingegeben",
        "Words and flags, like soft light --ar 3:2": "Worte und Schalter, etwa soft light --ar 3:2",
        "Your own flags, and what they stand for": "Deine eigenen Schalter, und wofür sie stehen",
        # reproduce, film, help
        "Make a picture once more: same words, same seed, same pixels": (
            "Macht ein Bild noch einmal: gleiche Worte, gleicher Startwert, gleiche Bildpunkte"
        ),
        "Choose one; a link to its message, its id or its seed works too": (
            "Einen Auftrag; auch Link, Nummer oder Startwert"
        ),
        "Show how a picture came out of the noise, as an animation": "Zeigt, wie ein Bild aus dem Rauschen kam",
        "As what kind of file": "Als welche Art von Datei",
        "Out of the noise, or into it": "Aus dem Rauschen heraus, oder hinein",
        "Which of its pictures, where a film is about one": "Welches seiner Bilder, wenn der Film von einem handelt",
        "developing: out of the noise": "entwickeln: aus dem Rauschen",
        "dissolving: into the noise": "auflösen: ins Rauschen",
        "there and back": "hin und zurück",
        # my-data, forget-me
        "A copy of what is kept of you: your jobs, settings and pictures": (
            "Eine Kopie von allem, was von dir gespeichert ist: Aufträge, Einstellungen, Bilder"
        ),
        "Have everything of yours removed for good; asks once more": (
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


class Languages(app_commands.Translator):
    """Asked by discord.py for every name and description, in every language."""

    async def translate(
        self, string: app_commands.locale_str, locale: Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        if locale is not Locale.german:
            return None
        return GERMAN.get(string.message) or SETTINGS.get(string.message)
