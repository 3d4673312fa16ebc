"""Shows a model's licence, and asks where it asks to be accepted."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import typer

from bot.domain.errors import UserError
from bot.domain.texts import clean_text
from engine.hub.catalogue import CatalogueEntry, PartEntry
from engine.hub.repository import Repository, get_endpoint

# Names of licences, as the hub writes them, that restrict no use: they need no question.
FREE_LICENCES = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"})


@dataclass(frozen=True)
class Licence:
    """What is shown before a download. `asks`: it must be accepted."""

    name: str
    restrictions: str
    link: str
    asks: bool

    @property
    def lines(self) -> list[str]:
        lines = [f"licence: {self.name}, {self.link}"]
        return [*lines, f"         {self.restrictions}"] if self.restrictions else lines


def describe_licence(repository: Repository, entry: CatalogueEntry | PartEntry | None) -> Licence:
    """Return the licence as the catalogue says it; else as the hub does, which asks unless it is known to be free."""
    page = f"{get_endpoint()}/{repository.hub_id}"
    link = clean_text(repository.licence_link)
    link = link if link.startswith(("https://", "http://")) else page
    if entry is not None:
        return Licence(entry.licence, entry.restrictions, link, entry.asks)
    name = clean_text(repository.licence)
    if not name:
        return Licence("none is named", "without one you may not use it unless its authors allow it", page, True)
    is_free = name.lower() in FREE_LICENCES
    return Licence(name, "" if is_free else "read what it allows before you accept it", link, not is_free)


def ask_acceptance(licence: Licence, *, accepted: bool) -> None:
    """Ask for the licence if it must be accepted. Raise `UserError` without an answer, or for no."""
    if accepted or not licence.asks:
        return
    if not sys.stdin.isatty():
        raise UserError(f"Read its licence ({licence.name}, {licence.link}), and add --accept-licence to accept it.")
    if not typer.confirm("Do you accept this licence?", default=False, err=True):
        raise UserError("Nothing was downloaded, since the licence was not accepted.")
