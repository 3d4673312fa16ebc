"""Terminal output of `darkroom jobs`: a table that fits 100 columns, and the details of one job.

Members' text is printed on one line and without control characters. Reads nothing from the store.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bot.cli.jobs_plain import SHOWN
from bot.cli.jobs_store import Whole
from bot.sentences import footer, percent
from bot.sentences import plain as one_line
from bot.states import over
from bot.store import Record
from bot.store.records import Entry
from bot.views import Delivery
from engine.job import Enlarge

WIDTH = 100
COLUMNS = {"job": 26, "state": 10, "age": 6, "took": 6, "member": 14}  # the prompt takes the rest
GAP, LEAST = 2, 10
STYLES = {"running": "cyan", "sent": "cyan", "finished": "green", "failed": "red", "cancelled": "dim"}


def table(records: Sequence[Record], now: float) -> None:
    """Print one line for each job."""
    console = _console()
    room = max(LEAST, console.width - sum(COLUMNS.values()) - GAP * len(COLUMNS))
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name, width in (COLUMNS | {"prompt": room}).items():
        grid.add_column(name, min_width=width, no_wrap=True, justify="right" if name in ("age", "took") else "left")
    for one in records:
        state = "cancelling" if one.cancelling else one.state
        cells = [Text(one.id), Text(state, STYLES.get(state, "")), Text(short(now - one.created)), Text(_took(one))]
        for text, width in ((one.member_name, COLUMNS["member"]), (one.prompt, room)):
            cells.append(Text(one_line(text)))
            cells[-1].truncate(width, overflow="ellipsis")
        grid.add_row(*cells)
    console.print(grid, crop=False, soft_wrap=True)


def _took(one: Record) -> str:
    """Return how long it ran, how far it is, or the attempt if it is not the first."""
    if over(one.state):
        return short(one.ended - one.started) if one.ended and one.started else "–"
    if one.state == "running":
        return f"{percent(one.step, one.steps)} %"
    return f"try {one.attempt}" if one.attempt > 1 else ""


def short(seconds: float) -> str:
    """Return a duration in one unit: `7300` → "2 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def sheet(whole: Whole) -> None:
    """Print everything about one job."""
    one = whole.record
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(width=10, style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(one):
        facts.add_row(name, Text(text))
    console = _console()
    console.print(facts)
    for title, part in (
        ("states", _states(whole.history)), ("places", _places(whole)), ("pictures", _pictures(whole)),
    ):  # fmt: skip
        console.print()
        console.print(Text(title, "bold"))
        console.print(part)


def _facts(one: Record) -> Iterator[tuple[str, str]]:
    yield "job", f"{one.id}, {'being cancelled' if one.cancelling else one.state}"
    yield "prompt", one_line(one.prompt)
    yield from _task(one)
    where = f"{one.guild}, channel {one.channel}" if one.channel else one.guild
    yield "asked", f"{moment(one.created)} by {one_line(one.member_name)} ({one.member}) in {where}"
    if one.parent is not None:
        yield "made from", f"picture {one.parent[1] + 1} of {one.parent[0]}, by {one.action}"
    marks = [name for name, on in (("private", one.private), ("checked", one.check)) if on]
    yield "queue", ", ".join([f"{one.tier} tier", f"{one.pool} pool", f"{one.rows} rows of a batch", *marks])
    yield "attempts", _attempts(one)
    if not over(one.state):
        yield "deadline", moment(one.deadline)
    kind = "charged" if over(one.state) else "reserved"
    yield "charge", f"{one.charged:.2f} s of device time {kind}; its cost is {one.cost:.2f} s"
    if one.reason:
        blame = f" (blame: {one.blame})" if one.blame else ""
        yield "reason", one_line(one.reason) + blame
    for note in one.notes:
        yield "note", one_line(note)
    if one.deleted is not None:
        yield "deleted", f"its pictures were deleted {moment(one.deleted)}"


def _task(one: Record) -> Iterator[tuple[str, str]]:
    task = one.task
    if isinstance(task, Enlarge):
        yield "settings", f"enlarges ×{task.factor} by {task.method}, from {task.source[:16]}…"
        return
    pictures = "1 picture" if task.count == 1 else f"{task.count} pictures"
    yield "settings", f"{pictures} · {footer(task, one.seconds, one.ms_per_step)}"
    if task.negative:
        yield "negative", one_line(task.negative)


def _attempts(one: Record) -> str:
    parts = [f"attempt {one.attempt}"]
    if one.barren:
        parts.append(f"{one.barren} without progress")
    if one.worker:
        parts.append(f"worker {one.worker}, epoch {one.epoch}")
    return ", ".join([*parts, f"step {one.step} of {one.steps}"])


def _states(history: Sequence[Entry]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=2)
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    before = None
    for entry in history:
        later = "" if before is None else f"+{max(0.0, entry.at - before):.1f} s"
        before = entry.at
        state = entry.target if entry.source != entry.target else f"{entry.target}, still"
        grid.add_row("", moment(entry.at), Text(later), Text(state), Text(one_line(entry.why)))
    return grid


def _places(whole: Whole) -> RenderableType:
    lines = [
        Text(f"  {one.role} in {one.place.kind}{_where(one)}: {_shown(one, whole.record)}") for one in whole.deliveries
    ]
    return Group(*lines) if lines else Text("  none")


def _where(one: Delivery) -> str:
    known = {**one.place.where, **({"message": one.message} if one.message else {})}
    said = [f"{name} {known[name]}" for name in SHOWN if known.get(name)]
    return f" ({', '.join(said)})" if said else ""


def _shown(one: Delivery, record: Record) -> str:
    if one.reason:
        return f"could not be shown: {one_line(one.reason)}"
    if one.delivered is not None:
        return f"its end was shown {moment(one.delivered)}"
    if one.place.kind != "discord":
        return "shown on request"
    return "its end is still to be shown" if over(record.state) else "kept up to date"


def _pictures(whole: Whole) -> RenderableType:
    lines = []
    for one in whole.pictures:
        about = [] if one.kind == "ladder" else [f"{one.width}×{one.height}"]
        about += [f"{-(-one.bytes // 1024)} KiB", f"sha256 {one.sha256[:16]}…"]
        about += [mark for mark in (one.verdict, one.reviewed) if mark and mark != "unchecked"]
        lines.append(Text(f"  {one.kind} {one.image + 1}: {', '.join(about)}"))
    return Group(*lines) if lines else Text("  none")


def moment(at: float) -> str:
    """Format a time by this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _console() -> Console:
    """Return a console as wide as the terminal, or 100 columns for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
