"""Forms that outlive a restart: what they ask about stands in their id, and nothing of them is kept here.

discord.py would keep every form that somebody opened and dismissed, and forget them all with the process. Knows fields
and ids; knows nothing of what is done with what was typed.
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
    """A form that was sent: its name, what it was about, what stands in each field, and the files that came along."""

    form: str
    job: str
    how: str
    index: int | None
    fields: dict[str, str]
    step: int | None = None
    files: dict[str, tuple[Sent, ...]] = field(default_factory=dict[str, "tuple[Sent, ...]"])


def named(form: str, job: str, how: str = "", index: int | None = None, step: int | None = None) -> str:
    """The id of a form; one with a `step` has an `index` too."""
    return f"{form}-form:{job}:{how}" + "".join(f":{number}" for number in (index, step) if number is not None)


def form(title: str, custom_id: str) -> ui.Modal:
    """An empty one."""
    return ui.Modal(title=title[:TITLE], custom_id=custom_id)


def line(
    name: str, label: str, about: str = "", *, value: str = "", most: int = LONGEST, required: bool = True,
    short: bool = False,
) -> ui.Label[Any]:  # fmt: skip
    """A field for text of any number of lines (`short`: of one), filled in already with what fits of `value`."""
    style = discord.TextStyle.short if short else discord.TextStyle.paragraph
    typed = ui.TextInput[Any](
        custom_id=name, style=style, default=value[:most] or None, required=required, max_length=most
    )  # fmt: skip
    return ui.Label(text=label, description=about or None, component=typed)


def upload(name: str, label: str, about: str = "") -> ui.Label[Any]:
    """A field for one file, which must be there."""
    return ui.Label(text=label, description=about or None, component=ui.FileUpload[Any](custom_id=name, max_values=1))


async def open_form(interaction: discord.Interaction[DarkroomClient], modal: ui.Modal) -> None:
    """Show it, and forget it: the library's own answer would keep it until it is sent."""
    await interaction.response.send_modal(modal)
    modal.stop()


def filled(interaction: discord.Interaction[Any]) -> Filled | None:
    """What was sent, if it is one of these forms."""
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
    """Fields with what stands in them, or the ids of their files, however deep they lie."""
    for node in nodes:
        yield from _fields([*node.get("components", ()), *filter(None, [node.get("component")])])
        if "custom_id" in node:
            yield node["custom_id"], str(node.get("value") or ""), [str(each) for each in node.get("values") or ()]
