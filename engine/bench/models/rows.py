"""Turns the figures of both sides into rows of ratio and goal. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bench.models.sides import DTYPE, Figures
from engine.bench.models.sizes import Subject
from engine.bench.row import Row


@dataclass(frozen=True)
class Ratio:
    """Our figure divided by diffusers'. With `rate`, ours is pictures a second and diffusers' seconds a picture."""

    name: str
    ours: str
    rival: str
    goal: str | None
    unit: str = "s"
    rate: bool = False


RATIOS = (
    Ratio("command to the first preview, by the rival's to its picture", "preview", "first", "≤ 0.5"),
    Ratio("command to the first picture, first start ever", "first", "first", "≤ 1.3"),
    Ratio("command to the first picture, second start", "second", "second", "≤ 1.1"),
    Ratio("the next picture, one user", "next", "alone", "≤ 1"),
    Ratio("a step, nobody watches", "step", "step", None),
    Ratio("decode, latents to PNG", "decode", "decode", "≤ 1.05"),
    Ratio("memory at rest, engine", "rest", "rest", "≤ 1.05", "MB"),
    Ratio("memory at rest, all of darkroom up", "all_rest", "rest", None, "MB"),
    Ratio("memory at its peak, engine, one user", "peak", "peak", "≤ 1.15", "MB"),
    Ratio("memory at its peak, all of darkroom up, one user", "all_peak", "peak", None, "MB"),
)
ON_CARD = (
    Ratio("memory of the card at rest", "card", "card", "≤ 1.05", "MB"),
    Ratio("memory of the card at its peak, one user", "card_peak", "card_peak", "≤ 1.15", "MB"),
)
USERS = (2, 4)


def make_rows(subject: Subject, found: Figures, on_card: bool) -> list[Row]:
    ratios = [*RATIOS, *(_crowd(users) for users in USERS), *(ON_CARD if on_card else ())]
    return [_row(subject, found, ratio) for ratio in ratios]


def _crowd(users: int) -> Ratio:
    return Ratio(f"{users} users at once, pictures a second", f"{users} users", "alone", "≥ 1", rate=True)


def _row(subject: Subject, found: Figures, ratio: Ratio) -> Row:
    name = f"{subject.name}: {ratio.name}"
    ours, rival = found.values.get(f"ours {ratio.ours}"), found.values.get(f"rival {ratio.rival}")
    if not ours or not rival:
        return Row(name, None, ratio.goal, "×", _missing(subject, found, ratio))
    figure = ours * rival if ratio.rate else ours / rival
    return Row(name, figure, ratio.goal, "×", _note(subject, found, ratio, ours, rival))


def _missing(subject: Subject, found: Figures, ratio: Ratio) -> str:
    """Say why there is no figure, and the one figure that was measured."""
    if ratio.rate and not any(ratio.ours == f"{users} users" for users in subject.users):
        return "left out on a processor, so that all rows fit into the time"
    sides = {side: found.values.get(f"{side} {key}") for side, key in (("ours", ratio.ours), ("rival", ratio.rival))}
    known = [f"{side} {value:.4g} {ratio.unit}" for side, value in sides.items() if value and not ratio.rate]
    return "; ".join(found.failures + known) or "this machine does not report it"


def _note(subject: Subject, found: Figures, ratio: Ratio, ours: float, rival: float) -> str:
    theirs = 1 / rival if ratio.rate else rival
    unit = "a second" if ratio.rate else ratio.unit
    parts = [f"ours {ours:.4g}, diffusers {theirs:.4g} {unit}", _job(subject, found), subject.note]
    if ratio.ours == "peak" and (most := found.values.get("ours crowd peak")):
        parts.insert(1, f"{most:.4g} {unit} after {max(subject.users)} users at once")
    return "; ".join(part for part in parts if part)


def _job(subject: Subject, found: Figures) -> str:
    sampler = subject.sampler or "the model's own sampler"
    dtypes = DTYPE if found.dtype in ("", DTYPE) else f"{DTYPE} (ours chose {found.dtype})"
    return f"{subject.side}², {subject.steps} steps of {sampler}, guidance {subject.guidance:g}, {dtypes}"
