"""German translations of `/settings` and `/moderation`: descriptions of commands and of their options."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GERMAN: Mapping[str, str] = MappingProxyType(
    {
        "The limits and rules of this server": "Die Grenzen und Regeln dieses Servers",
        "All settings of this server, and buttons to change them": "Alle Einstellungen dieses Servers, zum Ändern",
        "Set a limit or a switch: for everyone, or for one channel, role or member": (
            "Setzt eine Grenze oder einen Schalter: für alle, einen Kanal, eine Rolle oder ein Mitglied"
        ),
        "What to set": "Was gesetzt wird",
        "Such as 5, 30 min, 512x512, on, no limit, or names with commas between them": (
            "Etwa 5, 30 min, 512x512, on, no limit, oder Namen mit Kommas dazwischen"
        ),
        "Only in this channel": "Nur in diesem Kanal",
        "Only for this role": "Nur für diese Rolle",
        "Only for this member": "Nur für dieses Mitglied",
        "Remove a rule, so that the next wider one holds again": "Entfernt eine Regel; dann gilt die nächstweitere",
        "What to remove": "Was entfernt wird",
        "The rule for this channel": "Die Regel für diesen Kanal",
        "The rule for this role": "Die Regel für diese Rolle",
        "The rule for this member": "Die Regel für dieses Mitglied",
        "What holds for a member, which rule decides it, and what they have used": (
            "Was für ein Mitglied gilt, welche Regel entscheidet, und was verbraucht ist"
        ),
        "Which member": "Von wem",
        "Only this setting": "Nur diese Einstellung",
        "As it is in this channel": "So wie es in diesem Kanal ist",
        "Many settings at once, for a kind of server; shows first what it would change": (
            "Viele Einstellungen auf einmal; zeigt erst, was sich ändern würde"
        ),
        "Which preset": "Welche Vorlage",
        "What was changed here, by whom, each with a button to undo it": (
            "Was hier von wem geändert wurde, jedes mit einem Knopf zum Zurücknehmen"
        ),
        "Take back the last change, or the one of this number": (
            "Nimmt die letzte Änderung zurück, oder die mit dieser Nummer"
        ),
        "The change's number in the history": "Die Nummer der Änderung im Verlauf",
        "This server's settings as a file": "Die Einstellungen dieses Servers als Datei",
        "Settings from a file, in place of all; shows first what would change": (
            "Einstellungen aus einer Datei statt aller jetzigen; zeigt erst, was sich ändern würde"
        ),
        "A file as export gives it (YAML)": "Eine Datei, wie export sie gibt (YAML)",
        "The owner's emergency stop: cancels everything here and takes nothing more": (
            "Notbremse des Eigentümers: bricht hier alles ab und nimmt nichts mehr an"
        ),
        "Members read it when they are refused": "Mitglieder lesen ihn, wenn sie abgewiesen werden",
        "Take new jobs again after close": "Nimmt nach close wieder Aufträge an",
        "For this bot's operator: what all members of a server may use together": (
            "Für den, der diesen Bot betreibt: was alle auf einem Server zusammen verbrauchen dürfen"
        ),
        "Which server; this one by default": "Welcher Server; sonst dieser",
        "Device time in 24 hours, such as 2 h; none to remove": "Rechenzeit in 24 Stunden, etwa 2 h; none entfernt",
        "Device time in 30 days, such as 30 h; none to remove": "Rechenzeit in 30 Tagen, etwa 30 h; none entfernt",
        "Jobs at once; none to remove": "Aufträge zugleich; none entfernt",
        "Jobs that wait; none to remove": "Wartende Aufträge; none entfernt",
        "Any other ceiling": "Eine andere Obergrenze",
        "Its value; none to remove": "Ihr Wert; none entfernt",
        "What keeps this server clean: words, blocks, reports, the picture check": (
            "Was diesen Server sauber hält: Wörter, Sperren, Meldungen, die Bildprüfung"
        ),
        "Words and patterns that no prompt may have; without options, a form with all of them": (
            "Wörter und Muster, die kein Prompt haben darf; ohne Angaben ein Formular mit allen"
        ),
        "Words to add, with commas between them": "Neue Wörter, mit Kommas dazwischen",
        "Words to take off the list": "Wörter, die von der Liste gehen",
        "A member may make nothing here any more": "Ein Mitglied darf hier nichts mehr machen",
        "The member; also one who has left": "Wen; auch jemand, der gegangen ist",
        "For the moderators' list": "Für die Liste der Moderatoren",
        "A blocked member may ask for pictures again": "Ein gesperrtes Mitglied darf wieder Bilder machen",
        "The member": "Wen",
        "Where members' reports go; without a channel, to the list of incidents alone": (
            "Wohin Meldungen gehen; ohne Kanal nur in die Liste der Vorfälle"
        ),
        "A channel that moderators read, and the bot may write in": (
            "Ein Kanal, den Moderatoren lesen und in den der Bot schreiben darf"
        ),
        "Reports, held pictures, refused words: what waits for a moderator, and what happened": (
            "Meldungen, zurückgehaltene Bilder, verbotene Wörter: was wartet, und was war"
        ),
        "What waits, or all": "Was wartet, oder alles",
        "Show pictures only after the picture check has passed them": "Zeigt Bilder erst nach bestandener Bildprüfung",
        "Pictures that the picture check holds and nobody has decided about": (
            "Bilder, die die Bildprüfung zurückhält und über die niemand entschieden hat"
        ),
        "On or off": "An oder aus",
    }
)
