"""Forms and menus that work after a restart: the custom id holds what they ask about, and none stays in memory.

discord.py would keep every form that a member opened and dismissed, and lose them all with the process. Knows fields,
ids and what a job's prompt field is filled in with; knows nothing of what is done with the input.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import discord
from discord import ui

from bot.discord.responses import UploadedFile, report_errors
from bot.domain.errors import UserError
from bot.prompt.change_texts import final_prompt, prompt_at_step
from bot.prompt.concepts import escape_braces
from bot.prompt.flags import split_flags

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

MAX_PROMPT = 2000  # characters, as /imagine takes them
# Discord's limits: characters of a title, and of what is typed into one field
MAX_TITLE = 45
MAX_TEXT = 4000
FORM_ID = re.compile(
    r"(?P<form>[a-z]+)-form:(?P<job>[0-9A-HJKMNP-TV-Z]{26})"
    r"(?::(?P<how>[a-z]*))?(?::(?P<index>\d{1,9}))?(?::(?P<step>\d{1,4}))?"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FormSubmission:
    """A submitted form: its name, what it is about, the text of each field, what was chosen, and the uploaded files."""

    form_name: str
    job: str
    mode: str
    index: int | None
    fields: dict[str, str]
    step: int | None = None
    files: dict[str, tuple[UploadedFile, ...]] = field(default_factory=dict[str, "tuple[UploadedFile, ...]"])
    choices: dict[str, str] = field(default_factory=dict[str, str])


def form_id(form_name: str, job: str, mode: str = "", index: int | None = None, step: int | None = None) -> str:
    """Return the id of a form; one with a `step` has an `index` too."""
    return f"{form_name}-form:{job}:{mode}" + "".join(f":{number}" for number in (index, step) if number is not None)


def create_form(title: str, custom_id: str, *fields: ui.Item[Any]) -> ui.Modal:
    """Return a form with these fields."""
    form = ui.Modal(title=title[:MAX_TITLE], custom_id=custom_id)
    for each in fields:
        form.add_item(each)
    return form


def text_field(
    name: str,
    label: str,
    description: str = "",
    *,
    value: str = "",
    max_length: int = MAX_TEXT,
    required: bool = True,
    single_line: bool = False,
) -> ui.Label[Any]:
    """Return a text field of any number of lines (`single_line`: of one), filled in with what fits of `value`."""
    style = discord.TextStyle.short if single_line else discord.TextStyle.paragraph
    text_input = ui.TextInput[Any](
        custom_id=name, style=style, default=value[:max_length] or None, required=required, max_length=max_length
    )
    return ui.Label(text=label, description=description or None, component=text_input)


def prompt_field(name: str, label: str, description: str, value: str = "", *, required: bool = True) -> ui.Label[Any]:
    """Return a text field that takes as much as `/imagine` does."""
    return text_field(name, label, description, value=value, max_length=MAX_PROMPT, required=required)


def short_field(name: str, label: str, description: str, max_length: int) -> ui.Label[Any]:
    """Return an optional field of one line."""
    return text_field(name, label, description, max_length=max_length, required=False, single_line=True)


def upload_field(name: str, label: str, description: str = "") -> ui.Label[Any]:
    """Return a required field for one file."""
    upload = ui.FileUpload[Any](custom_id=name, max_values=1)
    return ui.Label(text=label, description=description or None, component=upload)


def choice_field(name: str, label: str, options: Sequence[tuple[str, str]]) -> ui.Label[Any]:
    """Return a field that takes one of the options, each a value and its label; the first is chosen at the start."""
    choices = [discord.SelectOption(value=value, label=title) for value, title in options]
    choices[0].default = True
    return ui.Label(text=label, component=ui.Select[Any](custom_id=name, options=choices, required=False))


def prompt_without_flags(view: JobView, step: int | None = None) -> str:
    """Return the prompt of a step, or of the end, without flags: these are in the recipe already."""
    prompt = final_prompt(view.prompt, view.task) if step is None else prompt_at_step(view.prompt, view.task, step)
    with suppress(UserError):  # a negative prompt of its own field may look like an unknown flag
        prompt, _ = split_flags(prompt)
    return escape_braces(prompt)


def is_unchanged(text: str, view: JobView, step: int | None = None) -> bool:
    """Return whether a submitted field is empty, or what it was filled in with."""
    normalized_text = " ".join(text.split())
    return not normalized_text or normalized_text == " ".join(prompt_without_flags(view, step)[:MAX_PROMPT].split())


async def open_form(interaction: Interaction, modal: ui.Modal) -> None:
    """Show the form and stop listening for it: discord.py would keep it until it is submitted."""
    await interaction.response.send_modal(modal)
    modal.stop()


def parse_submission(interaction: discord.Interaction[Any]) -> FormSubmission | None:
    """Return the submitted form; None if the interaction is something else."""
    data: Mapping[str, Any] = cast(Any, interaction.data) or {}
    if interaction.type is not discord.InteractionType.modal_submit:
        return None
    if (match := FORM_ID.fullmatch(str(data.get("custom_id", "")))) is None:
        return None
    index, step = (None if match[name] is None else int(match[name]) for name in ("index", "step"))
    raw_fields = list(_iterate_fields(data.get("components") or ()))
    fields = {name: value for name, value, _ in raw_fields}
    resolved: Mapping[str, Any] = data.get("resolved") or {}
    attachments: Mapping[str, Any] = resolved.get("attachments") or {}
    files = {
        name: tuple(_uploaded_file(attachments[file_id]) for file_id in ids if file_id in attachments)
        for name, _, ids in raw_fields
        if ids and attachments
    }
    choices = {name: ids[0] for name, _, ids in raw_fields if ids and name not in files}
    return FormSubmission(match["form"], match["job"], match["how"] or "", index, fields, step, files, choices)


def _uploaded_file(attachment: Mapping[str, Any]) -> UploadedFile:
    return UploadedFile(str(attachment["url"]), int(attachment["size"]), str(attachment["filename"]))


def _iterate_fields(nodes: Iterable[Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each field's name, its text and its chosen values (of files: their ids), at any depth."""
    for node in nodes:
        yield from _iterate_fields([*node.get("components", ()), *filter(None, [node.get("component")])])
        if "custom_id" in node:
            yield node["custom_id"], str(node.get("value") or ""), list(map(str, node.get("values") or ()))


class PictureSelect(ui.DynamicItem[ui.Select[Any]], template=""):
    """A select with the custom id `prefix:job:index`. Job and index alone must make one, too: a press has no more."""

    _prefix: ClassVar[str]

    def __init_subclass__(cls, *, prefix: str) -> None:
        super().__init_subclass__(template=rf"{prefix}:(?P<job>[0-9A-HJKMNP-TV-Z]{{26}}):(?P<index>[0-3])")
        cls._prefix = prefix

    def __init__(
        self, job: str, index: int, placeholder: str = "", options: Sequence[discord.SelectOption] = ()
    ) -> None:
        custom_id = f"{self._prefix}:{job}:{index}"
        super().__init__(ui.Select(placeholder=placeholder, options=list(options), custom_id=custom_id))
        self.job = job
        self.index = index

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(match["job"], int(match["index"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "job %s: a choice of its menu %s failed", self.job, self._prefix):
            await self.handle_choice(interaction, str(((interaction.data or {}).get("values") or [""])[0]))

    @abstractmethod
    async def handle_choice(self, interaction: Interaction, choice: str) -> None:
        """Do what the chosen value means. Raises `UserError`."""
