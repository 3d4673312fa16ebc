"""Forms that work after a restart: the custom id holds what they ask about, and nothing is kept here.

discord.py would keep every form that somebody opened and dismissed, and lose them all with the process. Knows fields
and ids; knows nothing of what is done with the input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.chat.brought import Sent

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

TITLE, LONGEST = 45, 4000  # Discord's limits: characters of a title, and of what is typed into one field
ID = re.compile(
    r"(?P<form>[a-z]+)-form:(?P<job>[0-9A-HJKMNP-TV-Z]{26})"
    r"(?::(?P<how>[a-z]*))?(?::(?P<index>\d{1,9}))?(?::(?P<step>\d{1,4}))?"
)


@dataclass(frozen=True)
class Filled:
    """A submitted form: its name, what it is about, the text of each field, and the uploaded files."""

    form: str
    job: str
    how: str
    index: int | None
    fields: dict[str, str]
    step: int | None = None
    files: dict[str, tuple[Sent, ...]] = field(default_factory=dict[str, "tuple[Sent, ...]"])


def named(form: str, job: str, how: str = "", index: int | None = None, step: int | None = None) -> str:
    """Return the id of a form; one with a `step` has an `index` too."""
    return f"{form}-form:{job}:{how}" + "".join(f":{number}" for number in (index, step) if number is not None)


def form(title: str, custom_id: str) -> ui.Modal:
    """Return an empty form."""
    return ui.Modal(title=title[:TITLE], custom_id=custom_id)


def line(
    name: str, label: str, about: str = "", *, value: str = "", most: int = LONGEST, required: bool = True,
    short: bool = False,
) -> ui.Label[Any]:  # fmt: skip
    """Return a text field of any number of lines (`short`: of one), filled in with what fits of `value`."""
    style = discord.TextStyle.short if short else discord.TextStyle.paragraph
    typed = ui.TextInput[Any](
        custom_id=name, style=style, default=value[:most] or None, required=required, max_length=most
    )  # fmt: skip
    return ui.Label(text=label, description=about or None, component=typed)


def upload(name: str, label: str, about: str = "") -> ui.Label[Any]:
    """Return a required field for one file."""
    return ui.Label(text=label, description=about or None, component=ui.FileUpload[Any](custom_id=name, max_values=1))


async def open_form(interaction: discord.Interaction[DarkroomClient], modal: ui.Modal) -> None:
    """Show the form and stop listening for it: discord.py would keep it until it is submitted."""
    await interaction.response.send_modal(modal)
    modal.stop()


def filled(interaction: discord.Interaction[Any]) -> Filled | None:
    """Return the submitted form; None if the interaction is something else."""
    data: Any = interaction.data or {}
    if interaction.type is not discord.InteractionType.modal_submit:
        return None
    if (match := ID.fullmatch(str(data.get("custom_id", "")))) is None:
        return None
    index, step = (None if match[name] is None else int(match[name]) for name in ("index", "step"))
    found = list(_fields(data.get("components") or ()))
    fields = {name: value for name, value, _ in found}
    sent = (data.get("resolved") or {}).get("attachments") or {}
    files = {name: tuple(_file(sent[each]) for each in ids if each in sent) for name, _, ids in found if ids}
    return Filled(match["form"], match["job"], match["how"] or "", index, fields, step, files)


def _file(said: Mapping[str, Any]) -> Sent:
    return Sent(str(said["url"]), int(said["size"]), str(said["filename"]))


def _fields(nodes: Iterable[Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each field's name, its text and the ids of its files, at any depth."""
    for node in nodes:
        yield from _fields([*node.get("components", ()), *filter(None, [node.get("component")])])
        if "custom_id" in node:
            yield node["custom_id"], str(node.get("value") or ""), [str(each) for each in node.get("values") or ()]
