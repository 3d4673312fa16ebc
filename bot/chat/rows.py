"""The rows of buttons under a card: which buttons, in the order that suits a phone. Pure.

Knows jobs and Discord's limits; knows nothing of what a press does (`buttons`) or of how a button is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from bot.desk.recipes import walkable
from bot.images import held
from bot.views import Action, View
from engine.job import Recipe

Press = Literal[
    "up", "vary", "subtle", "strong", "reroll", "remix", "film", "favour", "report", "delete", "erase", "cancel",
    "look", "approve", "deny", "show", "dismiss", "more",
    "zoomsome", "zoomtwice", "panleft", "panright", "panup", "pandown", "edit", "branch", "square", "compare", "walk",
]  # fmt: skip
PRESSES: tuple[Press, ...] = get_args(Press)
SIGNS: Mapping[Press, str] = MappingProxyType(
    {"reroll": "🔄", "remix": "✏️", "film": "🎞️", "favour": "❤️", "report": "🚩", "delete": "🗑️"}
)
BEYOND: Mapping[Press, str] = MappingProxyType(  # the actions on one picture, with their labels
    {
        "zoomsome": "Zoom out 1.5×", "zoomtwice": "Zoom out 2×", "panleft": "← Pan", "panright": "Pan →",
        "panup": "↑ Pan", "pandown": "↓ Pan", "edit": "Edit…", "branch": "Branch…",
        "square": "Make square", "compare": "Compare",
    }
)  # fmt: skip
ALWAYS: Mapping[Press, str] = MappingProxyType(
    {press: said for press, said in BEYOND.items() if press not in ("square", "compare")}
)
COMPARED: frozenset[Action] = frozenset({"branch", "edit", "vary", "remix", "upscale"})  # with their source
ROW = 5  # Discord's limit
DIRECT = "discord:dm:"  # prefix of a direct conversation's guild id


@dataclass(frozen=True)
class Button:
    """A button whose custom id carries all that a press needs, so that it works after any restart.

    `index`: of a picture, or an incident.
    """

    press: Press
    job: str
    label: str = ""
    index: int | None = None

    @property
    def id(self) -> str:
        tail = "" if self.index is None else f":{self.index}"
        return f"{self.press}:{self.job}{tail}"

    @property
    def sign(self) -> str:
        """Return its emoji; empty for none."""
        return SIGNS.get(self.press, "")


Row = tuple[Button, ...]


def beyond(view: View, index: int) -> tuple[Press, ...]:
    """Return the actions on one picture: without `square` for a square, without `compare` if it has no source."""
    shot = next((one for one in view.pictures if one.index == index), None)
    square = shot is None or shot.width == shot.height
    without: set[Press] = {*(("square",) if square else ()), *(() if view.action in COMPARED else ("compare",))}
    return tuple(press for press in BEYOND if press not in without)


def cancelling(job: str) -> tuple[Row, ...]:
    """Return the row under a job that waits or runs."""
    return ((Button("cancel", job, "Cancel"),),)


def again(view: View) -> tuple[Row, ...]:
    """Return the row under a job that failed or was cancelled."""
    return () if view.action == "upscale" else ((Button("reroll", view.id),),)


def finished(view: View) -> tuple[Row, ...]:
    """Return the rows under finished pictures: U and V for each of a grid, or all actions on an upscale; then the rest.

    Each card has its own job's id in a button, by which a lost message is found again.
    """
    return (*_onward(view), _others(view), *deciding(view, look=True))


def erasing(job: str) -> tuple[Row, ...]:
    """Return the confirmation of a deletion."""
    return ((Button("erase", job, "Delete them"),),)


def reported(job: str, incident: int | None) -> tuple[Row, ...]:
    """Return the row under a report's card for moderators."""
    dismiss = () if incident is None else (Button("dismiss", job, "Dismiss", incident),)
    return ((Button("show", job, "Show"), Button("delete", job, "Delete"), *dismiss),)


def _onward(view: View) -> tuple[Row, ...]:
    if not isinstance(view.recipe, Recipe):
        subtle, strong = Button("subtle", view.id, "Vary (Subtle)", 0), Button("strong", view.id, "Vary (Strong)", 0)
        some, twice, *pans, edit, branch = (Button(press, view.id, said, 0) for press, said in ALWAYS.items())
        seldom = tuple(Button(press, view.id, BEYOND[press], 0) for press in beyond(view, 0) if press not in ALWAYS)
        return (subtle, strong, some, twice, branch), (*pans, edit), *((seldom,) if seldom else ())
    ups = tuple(Button("up", view.id, f"U{shot.index + 1}", shot.index) for shot in view.pictures)
    varies = tuple(Button("vary", view.id, f"V{shot.index + 1}", shot.index) for shot in view.pictures)
    more = (Button("more", view.id, "More…"),) if varies else ()
    return (*ups, Button("reroll", view.id)), (*varies, *more)


def _others(view: View) -> Row:
    """Return the buttons that act on the whole job.

    A favourite is one picture, so one of a grid must be upscaled first. What only its author sees cannot be reported.
    """
    single = len(view.pictures) == 1
    enlarged = not isinstance(view.recipe, Recipe)
    alone = view.private or view.guild.startswith(DIRECT)
    return (
        Button("remix", view.id, "Remix", 0 if enlarged else None),
        *((Button("film", view.id, "Film"),) if view.ladders else ()),
        *((Button("walk", view.id, "Walk"),) if _walks(view) else ()),
        *((Button("favour", view.id, index=view.pictures[0].index),) if single else ()),
        *(() if alone else (Button("report", view.id),)),
        Button("delete", view.id),
    )


def _walks(view: View) -> bool:
    return isinstance(view.recipe, Recipe) and walkable(view.recipe) and len(view.pictures) > 1


def deciding(view: View, *, look: bool = False) -> tuple[Row, ...]:
    """Return the moderators' buttons for held pictures: decide about each, and with `look` see them first."""
    waiting = [shot for shot in view.pictures if held.is_held(view.check, shot)]
    buttons = [Button("look", view.id, "Look at held pictures")] if look and waiting else []
    for shot in waiting:
        which = f" {shot.index + 1}" if len(view.pictures) > 1 else ""
        buttons.append(Button("approve", view.id, f"Show{which}", shot.index))
        if not shot.reviewed:
            buttons.append(Button("deny", view.id, f"Keep{which} hidden", shot.index))
    return tuple(tuple(buttons[at : at + ROW]) for at in range(0, len(buttons), ROW))
