"""The report of a campaign: rows for people, JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tools.fuzz.campaign import Outcome, Tally

MAX_SHOWN = 20  # failures that get a row each


def format_rows(outcome: Outcome) -> list[str]:
    """The whole table. The rule of three: 0 events in n cases mean, at 95 %, a rate below 3/n."""
    lines = [f"{'damage':12} {'cases':>7} {'accepted':>8} {'refused':>8} {'slowest':>9}"]
    lines += [_row(kind, tally) for kind, tally in sorted(outcome.kinds.items())]
    lines += [
        "",
        *(f"{count:7} × {reason}" for reason, count in sorted(outcome.reasons.items(), key=lambda one: -one[1])),
    ]
    rate = f"{cases_per_second(outcome):.0f} a second"
    lines += ["", f"seed {outcome.seed}, {outcome.cases} cases in {outcome.seconds:.0f} s, {rate}"]
    lines.append(f"memory of this process: {outcome.before >> 20} MiB warm, {outcome.after >> 20} MiB at the end")
    lines.append(f"broken: {len(outcome.failures)} of {outcome.cases}")
    if outcome.is_satisfied and outcome.cases > 3:
        lines[-1] += f"; 95 %: below {300 / outcome.cases:.2g} %"
    return [*lines, *(f"    case {number}: {problem}" for number, problem in outcome.failures[:MAX_SHOWN])]


def as_json(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Yields a row for each kind of damage, one for each failure, and one for the whole campaign."""
    for kind, tally in sorted(outcome.kinds.items()):
        yield {"damage": kind, **asdict(tally), "slowest": round(tally.slowest_seconds, 3)}
    for number, problem in outcome.failures:
        yield {"case": number, "broken": problem}
    yield {
        "seed": outcome.seed,
        "cases": outcome.cases,
        "seconds": round(outcome.seconds, 1),
        "holds": outcome.is_satisfied,
        "memory": [outcome.before, outcome.after],
        "reasons": outcome.reasons,
    }


def _row(kind: str, tally: Tally) -> str:
    return f"{kind:12} {tally.cases:7} {tally.accepted:8} {tally.refused:8} {tally.slowest_seconds:7.2f} s"


def cases_per_second(outcome: Outcome) -> float:
    return outcome.cases / outcome.seconds if outcome.seconds else 0.0
