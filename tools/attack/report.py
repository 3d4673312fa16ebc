"""The report: a row for each figure with its goal, as in the benchmarks. Pure, but for the honest visitor's file."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.figure_row import FigureRow
from tools.attack.campaign import Evidence
from tools.attack.room_watch import RoomWatch, find_quantile

RESERVE = 64  # descriptors that must stay for the store and the broker
MAX_NAMED = 5
QUIET = "quiet"


def build_rows(evidence: Evidence) -> list[FigureRow]:
    tally = evidence.tally
    rows = list[FigureRow]()
    statuses = ", ".join(f"{status or 'no answer'}: {count:,}" for status, count in sorted(tally.statuses.items()))
    rows.append(FigureRow("requests tried", tally.requests, None, "", "; ".join([statuses, *evidence.notes])))
    rows += [
        _none("server errors", tally.server_errors),
        _none("rights gained", tally.gained_rights),
        _none("rights gained from an open room and its days", tally.open_room_rights),
        _none("rights of the rules that were refused", tally.refused_rights),
        _none("routes without a rule", evidence.missing_rules),
        FigureRow("cells of route × role × ownership", evidence.matrix_cells, "≥ 300", ""),
        FigureRow("requests made from openapi.json", evidence.schema_requests, "≥ 20", ""),
        _none("answers unlike openapi.json", evidence.schema_failures),
        FigureRow("subjects that the hostile worker tried", evidence.subjects_tried, "≥ 100", ""),
        _none("subjects gained", evidence.subjects_gained),
        FigureRow("malformed messages sent", evidence.messages_sent, "≥ 1", ""),
        _figure("slow bodies still awaited", evidence.slow_bodies_left, "= 0"),
        _upload_row(evidence),
        _truth("streams open again after the flood", evidence.streams_open_again),
        _truth("bot and worker still run", evidence.is_alive),
        _truth("an honest job ends afterwards", evidence.honest_job_ends),
        _none("damage to the logs", evidence.log_damage),
        FigureRow("tracebacks in the log", evidence.log_tracebacks, "≤ 100", ""),
        _none("stages that broke off", tally.problems),
    ]
    if evidence.watch is not None:
        rows += [*_resource_rows(evidence, evidence.watch), *_honest_rows(evidence.watch)]
    return rows


def list_details(evidence: Evidence) -> dict[str, Sequence[str]]:
    """Everything that rows name the first of."""
    tally = evidence.tally
    return {
        "server errors": tally.server_errors,
        "rights gained": tally.gained_rights,
        "open room": tally.open_room_rights,
        "rights refused": tally.refused_rights,
        "routes without a rule": evidence.missing_rules,
        "schema": evidence.schema_failures or [],
        "subjects gained": evidence.subjects_gained,
        "logs": evidence.log_damage,
        "stages": tally.problems,
    }


def _none(name: str, items: Sequence[str] | None) -> FigureRow:
    """A row for things of which there must be none; it names the first."""
    if items is None:
        return FigureRow(name, None, "= 0", "", "its stage did not end")
    return FigureRow(name, len(items), "= 0", "", " | ".join(list(dict.fromkeys(items))[:MAX_NAMED]))


def _truth(name: str, value: bool | None) -> FigureRow:
    return FigureRow(name, None if value is None else int(value), "= 1", "")


def _figure(name: str, value: float | None, goal: str) -> FigureRow:
    return FigureRow(name, value, goal, "")


def _upload_row(evidence: Evidence) -> FigureRow:
    status = evidence.upload_status
    return FigureRow(
        "an upload beside four slow ones is let in",
        None if status is None else int(status == 201),
        "= 1",
        "",
        f"status {status}",
    )


def _resource_rows(evidence: Evidence, watch: RoomWatch) -> list[FigureRow]:
    before = evidence.memory_before / 2**20
    after = evidence.memory_after / 2**20
    return [
        FigureRow(
            "descriptors of the bot at most",
            watch.descriptors,
            f"≤ {watch.limit - RESERVE}",
            "",
            f"its limit is {watch.limit}",
        ),
        FigureRow(
            "memory of the bot, after / before",
            after / before if before and after else None,
            "≤ 1.1",
            "",
            f"{before:.0f} MiB before, {after:.0f} MiB after",
        ),
    ]


def _honest_rows(watch: RoomWatch) -> list[FigureRow]:
    """The honest visitor's waiting time under attack beside the quiet one."""
    attacks = [name for name in watch.stages if name not in (QUIET, "look_afterwards")]
    p99 = {name: find_quantile([one.seconds for one in watch.list_visits(name)], 0.99) for name in watch.stages}
    visits = watch.list_visits(*attacks)
    quiet = p99.get(QUIET)
    attacked = find_quantile([one.seconds for one in visits], 0.99)
    all_visits = watch.list_visits(*watch.stages)
    failed = [f"{one.status} {one.path}" for one in all_visits if not (200 <= one.status < 300 or one.status == 429)]
    limited = sum(one.status == 429 for one in all_visits)
    health = max((one.seconds for one in visits if one.path == "/healthz"), default=None)
    times = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in p99.items() if value is not None)
    return [
        FigureRow(
            "honest visitor: p99, attacked / quiet",
            attacked / quiet if attacked and quiet else None,
            "≤ 2",
            "",
            f"p99 {times}; {len(visits)} requests, {limited} of all answered with 429",
        ),
        FigureRow("honest visitor: /healthz at most", health, "≤ 1", "s"),
        _none("honest visitor: requests that failed", failed),
    ]
