"""The rows of buttons under a card: which buttons, in the order that suits a phone. Pure.

It knows jobs and Discord's limits, but not what a press does (`bot.discord.components.buttons`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bot.domain.dto import JobAction, JobView
from bot.jobs.recipe import can_interpolate
from bot.pictures import moderation_status
from engine.contract import Recipe, is_draft, list_final_images

BUTTON_EMOJI: Mapping[str, str] = MappingProxyType(
    {"reroll": "🔄", "remix": "✏️", "film": "🎞️", "favour": "❤️", "report": "🚩", "delete": "🗑️"}
)
PICTURE_ACTION_LABELS: Mapping[str, str] = MappingProxyType(  # the actions on one picture, with their labels
    {
        "zoomsome": "Zoom out 1.5×",
        "zoomtwice": "Zoom out 2×",
        "panleft": "← Pan",
        "panright": "Pan →",
        "panup": "↑ Pan",
        "pandown": "↓ Pan",
        "edit": "Edit…",
        "branch": "Branch…",
        "square": "Make square",
        "compare": "Compare",
    }
)
COMPARABLE_ACTIONS: frozenset[JobAction] = frozenset(
    {"branch", "edit", "vary", "remix", "finish", "upscale"}
)  # actions whose pictures can be compared with their source
MAX_ROW_BUTTONS = 5  # Discord's limit
DIRECT_GUILD_PREFIX = "discord:dm:"  # prefix of a direct conversation's guild id


@dataclass(frozen=True)
class Button:
    """A button whose custom id carries all that a press needs, so that it works after any restart.

    `kind`: of a row of `bot.discord.components.buttons.BUTTONS`. `index`: of a picture, or an incident. `sign`: an
    emoji, where its kind has none.
    """

    kind: str
    job: str
    label: str = ""
    index: int | None = None
    sign: str = ""

    @property
    def custom_id(self) -> str:
        tail = "" if self.index is None else f":{self.index}"
        return f"{self.kind}:{self.job}{tail}"

    @property
    def emoji(self) -> str:
        """Return its emoji; empty for none."""
        return self.sign or BUTTON_EMOJI.get(self.kind, "")


ButtonRow = tuple[Button, ...]


def picture_action_kinds(view: JobView, index: int) -> tuple[str, ...]:
    """Return the actions on one picture: without `square` for a square, without `compare` if it has no source."""
    picture = next((candidate for candidate in view.pictures if candidate.index == index), None)
    is_square = picture is None or picture.width == picture.height
    is_shown = {"square": not is_square, "compare": view.action in COMPARABLE_ACTIONS}
    return tuple(kind for kind in PICTURE_ACTION_LABELS if is_shown.get(kind, True))


def build_cancel_rows(job: str) -> tuple[ButtonRow, ...]:
    """Return the row under a job that waits or runs."""
    return ((Button("cancel", job, "Cancel"),),)


def build_developing_rows(view: JobView) -> tuple[ButtonRow, ...]:
    """Return the row under a running job that can be steered."""
    assert isinstance(view.task, Recipe), "only a recipe's pictures develop"
    has_several = len(list_final_images(view.task)) > 1
    return (
        (
            Button("cancel", view.id, "Cancel"),
            *((Button("keep", view.id, "Keep…"),) if has_several else ()),
            Button("say", view.id, "Say more…"),
            Button("again", view.id, "Again from here"),
        ),
    )


def build_retry_rows(view: JobView) -> tuple[ButtonRow, ...]:
    """Return the row under a job that failed or was cancelled."""
    return () if view.action == "upscale" else ((Button("reroll", view.id),),)


def build_finished_rows(view: JobView) -> tuple[ButtonRow, ...]:
    """Return the rows under finished pictures: U and V for each of a grid, or all actions on an upscale; then the rest.

    A button holds the job's id: by it, the courier finds a lost message again. A draft whose pictures wait for
    moderators cannot be finished yet: their buttons take its row.
    """
    review_rows = build_review_rows(view, with_look=True)
    is_drafted = isinstance(view.task, Recipe) and is_draft(view.task)
    finish = ((Button("finish", view.id, "Finish it"),),) if is_drafted and not review_rows else ()
    return (*_build_picture_rows(view), _build_job_row(view), *finish, *review_rows)


def build_confirm_rows(job: str) -> tuple[ButtonRow, ...]:
    """Return the confirmation of a deletion."""
    return ((Button("erase", job, "Delete them"),),)


def build_report_rows(job: str, incident: int | None) -> tuple[ButtonRow, ...]:
    """Return the row under a report's card for moderators."""
    dismiss = () if incident is None else (Button("dismiss", job, "Dismiss", incident),)
    return ((Button("show", job, "Show"), Button("delete", job, "Delete"), *dismiss),)


def _build_picture_rows(view: JobView) -> tuple[ButtonRow, ...]:
    if not isinstance(view.task, Recipe):
        subtle = Button("subtle", view.id, "Vary (Subtle)", 0)
        strong = Button("strong", view.id, "Vary (Strong)", 0)
        zoom_1_5, zoom_twice, *pans, edit, branch, square, compare = (
            Button(kind, view.id, label, 0) for kind, label in PICTURE_ACTION_LABELS.items()
        )
        rare = tuple(each for each in (square, compare) if each.kind in picture_action_kinds(view, 0))
        return (subtle, strong, zoom_1_5, zoom_twice, branch), (*pans, edit), *((rare,) if rare else ())
    ups = tuple(Button("up", view.id, f"U{picture.index + 1}", picture.index) for picture in view.pictures)
    varies = tuple(Button("vary", view.id, f"V{picture.index + 1}", picture.index) for picture in view.pictures)
    more = (Button("more", view.id, "More…"),) if varies else ()
    return (*ups, Button("reroll", view.id)), (*varies, *more)


def _build_job_row(view: JobView) -> ButtonRow:
    """Return the buttons that act on the whole job.

    A favourite is one picture, so one of a grid must be upscaled first. What only its author sees cannot be reported.
    """
    is_single = len(view.pictures) == 1
    is_upscale = not isinstance(view.task, Recipe)
    can_walk = isinstance(view.task, Recipe) and can_interpolate(view.task) and len(view.pictures) > 1
    author_only = view.is_private or view.guild.startswith(DIRECT_GUILD_PREFIX)
    return (
        Button("remix", view.id, "Remix", 0 if is_upscale else None),
        *((Button("film", view.id, "Film"),) if view.ladder_images else ()),
        *((Button("walk", view.id, "Walk"),) if can_walk else ()),
        *(Button("favour", view.id, index=picture.index) for picture in view.pictures if is_single),
        *(() if author_only else (Button("report", view.id),)),
        Button("delete", view.id),
    )


def build_review_rows(view: JobView, *, with_look: bool = False) -> tuple[ButtonRow, ...]:
    """Return the moderators' buttons for held pictures: decide about each, and with `with_look` see them first."""
    held_pictures = [picture for picture in view.pictures if moderation_status.is_held(view.needs_check, picture)]
    buttons = [Button("look", view.id, "Look at held pictures")] if with_look and held_pictures else []
    for picture in held_pictures:
        number = f" {picture.index + 1}" if len(view.pictures) > 1 else ""
        buttons.append(Button("approve", view.id, f"Show{number}", picture.index))
        if not picture.reviewed:
            buttons.append(Button("deny", view.id, f"Keep{number} hidden", picture.index))
    return split_rows(buttons)


def split_rows(buttons: Sequence[Button]) -> tuple[ButtonRow, ...]:
    """Return the buttons in as few rows as Discord allows."""
    return tuple(tuple(buttons[start : start + MAX_ROW_BUTTONS]) for start in range(0, len(buttons), MAX_ROW_BUTTONS))
