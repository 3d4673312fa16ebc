"""Terminal output of `darkroom jobs`: a table that fits 100 columns, and the details of one job.

Members' text is printed on one line and without control characters. Reads nothing from the store.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bot.cli.jobs.admin import JobDetails
from bot.domain.dto import Delivery
from bot.domain.job_states import is_end
from bot.domain.texts import clean_text as one_line
from bot.domain.texts import format_footer, percent_done
from bot.store import JobRecord
from bot.store.jobs.records import AuditEntry
from engine.contract import Recipe, UpscaleTask

DEFAULT_WIDTH = 100
COLUMN_WIDTHS = {"job": 26, "state": 10, "age": 6, "took": 6, "member": 14}  # the prompt takes the rest
COLUMN_GAP = 2
MIN_PROMPT_WIDTH = 10
STATE_STYLES = {"running": "cyan", "sent": "cyan", "finished": "green", "failed": "red", "cancelled": "dim"}


def print_table(records: Sequence[JobRecord], now: float) -> None:
    """Print one line for each job."""
    console = _make_console()
    prompt_width = max(MIN_PROMPT_WIDTH, console.width - sum(COLUMN_WIDTHS.values()) - COLUMN_GAP * len(COLUMN_WIDTHS))
    table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="bold")
    for name, width in (COLUMN_WIDTHS | {"prompt": prompt_width}).items():
        table.add_column(name, min_width=width, no_wrap=True, justify="right" if name in ("age", "took") else "left")
    for record in records:
        state = "cancelling" if record.cancelling else record.state
        cells = [
            Text(record.id),
            Text(state, STATE_STYLES.get(state, "")),
            Text(short_duration(now - record.created)),
            Text(_progress_text(record)),
        ]
        for text, width in ((record.member_name, COLUMN_WIDTHS["member"]), (record.prompt, prompt_width)):
            cells.append(Text(one_line(text)))
            cells[-1].truncate(width, overflow="ellipsis")
        table.add_row(*cells)
    console.print(table, crop=False, soft_wrap=True)


def _progress_text(record: JobRecord) -> str:
    """Return how long it ran, how far it is, or the attempt if it is not the first."""
    if is_end(record.state):
        return short_duration(record.ended - record.started) if record.ended and record.started else "–"
    if record.state == "running":
        return f"{percent_done(record.step, record.steps)} %"
    return f"try {record.attempt}" if record.attempt > 1 else ""


def short_duration(seconds: float) -> str:
    """Return a duration in one unit: `7300` → "2 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def print_details(details: JobDetails) -> None:
    """Print everything about one job."""
    record = details.record
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(width=10, style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _job_facts(record):
        facts.add_row(name, Text(text))
    console = _make_console()
    console.print(facts)
    for title, section in (
        ("states", _state_table(details.history)),
        ("places", _destination_lines(details)),
        ("pictures", _picture_lines(details)),
    ):
        console.print()
        console.print(Text(title, "bold"))
        console.print(section)


def _job_facts(record: JobRecord) -> Iterator[tuple[str, str]]:
    yield "job", f"{record.id}, {'being cancelled' if record.cancelling else record.state}"
    yield "prompt", one_line(record.prompt)
    task = record.task
    if isinstance(task, UpscaleTask):
        yield "settings", f"enlarges ×{task.factor} by {task.method}, from {task.source[:16]}…"
    else:
        pictures = "1 picture" if record.image_count == 1 else f"{record.image_count} pictures"
        yield "settings", f"{pictures} · {format_footer(task, record.seconds, record.ms_per_step)}"
        if task.negative:
            yield "negative", one_line(task.negative)
    location = f"{record.guild}, channel {record.channel}" if record.channel else record.guild
    yield "asked", f"{format_time(record.created)} by {one_line(record.member_name)} ({record.member}) in {location}"
    if record.parent is not None:
        yield "made from", f"picture {record.parent[1] + 1} of {record.parent[0]}, by {record.action}"
    flags = [name for name, on in (("private", record.private), ("checked", record.check)) if on]
    yield "queue", ", ".join([f"{record.tier} tier", f"{record.pool} pool", f"{record.rows} rows of a batch", *flags])
    yield "attempts", _describe_attempts(record)
    if not is_end(record.state):
        yield "deadline", format_time(record.deadline)
    kind = "charged" if is_end(record.state) else "reserved"
    yield "charge", f"{record.charged:.2f} s of device time {kind}; its cost is {record.cost:.2f} s"
    if record.reason:
        blame = f" (blame: {record.blame})" if record.blame else ""
        yield "reason", one_line(record.reason) + blame
    for note in record.notes:
        yield "note", one_line(note)
    if record.deleted is not None:
        yield "deleted", f"its pictures were deleted {format_time(record.deleted)}"


def _describe_attempts(record: JobRecord) -> str:
    parts = [f"attempt {record.attempt}"]
    if record.attempts_without_progress:
        parts.append(f"{record.attempts_without_progress} without progress")
    if record.worker:
        parts.append(f"worker {record.worker}, epoch {record.epoch}")
    return ", ".join([*parts, f"step {record.step} of {record.steps}"])


def _state_table(history: Sequence[AuditEntry]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=2)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    previous_time = None
    for entry in history:
        delay_text = "" if previous_time is None else f"+{max(0.0, entry.created_at - previous_time):.1f} s"
        previous_time = entry.created_at
        state = entry.target if entry.source != entry.target else f"{entry.target}, still"
        table.add_row("", format_time(entry.created_at), Text(delay_text), Text(state), Text(one_line(entry.reason)))
    return table


def _destination_lines(details: JobDetails) -> RenderableType:
    lines = list[Text]()
    for delivery in details.deliveries:
        location = ", ".join(f"{name} {part}" for name, part in _list_locations(delivery).items())
        place = f"{delivery.role} in {delivery.destination.kind}{f' ({location})' if location else ''}"
        lines.append(Text(f"  {place}: {_delivery_status(delivery, details.record)}"))
    return Group(*lines) if lines else Text("  none")


def _delivery_status(delivery: Delivery, record: JobRecord) -> str:
    if delivery.reason:
        return f"could not be shown: {one_line(delivery.reason)}"
    if delivery.delivered_at is not None:
        return f"its end was shown {format_time(delivery.delivered_at)}"
    if delivery.destination.kind != "discord":
        return "shown on request"
    return "its end is still to be shown" if is_end(record.state) else "kept up to date"


def _picture_lines(details: JobDetails) -> RenderableType:
    lines = list[Text]()
    for picture in details.pictures:
        facts = [] if picture.kind == "ladder" else [f"{picture.width}×{picture.height}"]
        facts += [f"{-(-picture.bytes // 1024)} KiB", f"sha256 {picture.sha256[:16]}…"]
        facts += [mark for mark in (picture.verdict, picture.reviewed) if mark and mark != "unchecked"]
        lines.append(Text(f"  {picture.kind} {picture.image + 1}: {', '.join(facts)}"))
    return Group(*lines) if lines else Text("  none")


def format_time(timestamp: float) -> str:
    """Format a time by this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def _make_console() -> Console:
    """Return a console as wide as the terminal, or 100 columns for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else DEFAULT_WIDTH, highlight=False)


DESTINATION_FIELDS = ("guild", "channel", "message")  # the parts of a destination that are shown
RECORD_FIELDS = """
    id state cancelling action guild channel member member_name tier pool model rows attempt step steps worker epoch
    cost charged created deadline sent started ended seconds ms_per_step reason blame private check deleted prompt
"""


def record_to_dict(record: JobRecord) -> dict[str, Any]:
    """Return a job's row as plain values, without its recipe."""
    parent = None if record.parent is None else {"id": record.parent[0], "picture": record.parent[1] + 1}
    return {
        **{name: getattr(record, name) for name in RECORD_FIELDS.split()},
        "images": record.image_count,
        "attempts_without_progress": record.attempts_without_progress,
        "parent": parent,
        "notes": list(record.notes),
    }


def details_to_dict(details: JobDetails) -> dict[str, Any]:
    """Return the row with recipe, states, destinations and pictures; interaction tokens are never among them."""
    kind = "recipe" if isinstance(details.record.task, Recipe) else "upscale"
    return {
        **record_to_dict(details.record),
        kind: msgspec.to_builtins(details.record.task),
        "states": [_audit_entry_to_dict(entry) for entry in details.history],
        "destinations": [_destination_to_dict(item) for item in details.deliveries],
        "pictures": [{name: value for name, value in vars(item).items() if name != "job"} for item in details.pictures],
    }


def _audit_entry_to_dict(entry: AuditEntry) -> dict[str, Any]:
    values = {name: getattr(entry, name) for name in ("source", "target", "attempt", "epoch")}
    return {"at": entry.created_at, **values, "why": entry.reason}


def _list_locations(delivery: Delivery) -> dict[str, str]:
    """Return server, channel and message of a delivery, those that are known."""
    parts = {**delivery.destination.address, **({"message": delivery.message} if delivery.message else {})}
    return {name: parts[name] for name in DESTINATION_FIELDS if parts.get(name)}


def _destination_to_dict(delivery: Delivery) -> dict[str, Any]:
    return {
        **_list_locations(delivery),
        "role": delivery.role,
        "kind": delivery.destination.kind,
        "delivered": delivery.delivered_at,
        "reason": delivery.reason,
    }
