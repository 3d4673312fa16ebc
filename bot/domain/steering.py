"""Steering a picture while it develops: what a member asks for, and each change as members see it. Frozen, no logic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.contract import Concept, Recipe

AmendmentState = Literal["waiting", "made", "refused"]
AmendmentKind = Literal["words", "negative", "guidance", "images"]


@dataclass(frozen=True)
class SteeringRequest:
    """What a member asks for at once; what is left out stays as it is. Images count from 0.

    `say`: words for the prompt: without `say_weight` they join its first part, with it they are a part of their own.
    `prompt` replaces the words, and its `--no` the negative prompt. `weights`: by the index of a part of the present
    prompt; 0 removes the part. `negative`: the negative prompt, empty for none. `interval`: between which fractions of
    the steps guidance holds. `keep` drops all other images, `drop` these. `split`: an image, and how many it becomes in
    all. Over `fade_steps` steps the words go from the old to the new ones. `concepts`: all parts of the prompt as they
    shall be, from a party; with `is_mixed` they are mixed into one. `label`: the line for members about such a change.
    """

    say: str = ""
    say_weight: float | None = None
    prompt: str | None = None
    weights: Mapping[int, float] = field(default_factory=dict[int, float])
    negative: str | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    keep: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    split: tuple[int, int] | None = None
    fade_steps: int = 0
    concepts: tuple[Concept, ...] = ()
    is_mixed: bool = False
    label: str = ""


@dataclass(frozen=True)
class AmendmentView:
    """One change of a job as a member may see it.

    `number` rises within the job. `step`: from which step on it holds; None unless it is made. `reason`: why it was
    refused, as a sentence. `kind`: what it changes; `text`: the change on one plain line. `at`: when it was asked for,
    in seconds since 1970. `member_id` is empty once that member is forgotten.
    """

    number: int
    state: AmendmentState
    step: int | None
    total_steps: int
    reason: str
    member_id: str
    member_name: str
    text: str
    at: float
    kind: AmendmentKind


@dataclass(frozen=True)
class SteeringOutlook:
    """What a member may change of a job now.

    `recipe`: the job's as if every change that waits were made. `changes_left`: how many more it takes. `obstacle`: why
    this member cannot change it, as a sentence; empty if they can.
    """

    recipe: Recipe
    changes_left: int
    obstacle: str = ""


@dataclass(frozen=True)
class SteeringAnswer:
    """The changes that one request asked for, and what the member may change of the job now."""

    amendments: Sequence[AmendmentView]
    outlook: SteeringOutlook | None
