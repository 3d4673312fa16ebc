"""The report of a campaign: rows for people, JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fuzz.campaign import Outcome, Tally

SHOWN = 20  # breaches that get a row each


def rows(outcome: Outcome) -> list[str]:
    """The whole table. The rule of three: 0 events in n cases mean, at 95 %, a rate below 3/n."""
    lines = [f"{'damage':12} {'cases':>7} {'brought':>8} {'refused':>8} {'slowest':>9}"]
    lines += [_row(kind, tally) for kind, tally in sorted(outcome.kinds.items())]
    lines += [
        "",
        *(f"{count:7} × {reason}" for reason, count in sorted(outcome.reasons.items(), key=lambda one: -one[1])),
    ]
    lines += [
        "",
        f"seed {outcome.seed}, {outcome.cases} cases in {outcome.seconds:.0f} s, {_pace(outcome):.0f} a second",
    ]
    lines.append(f"memory of this process: {outcome.before >> 20} MiB warm, {outcome.after >> 20} MiB at the end")
    lines.append(f"broken: {len(outcome.breaches)} of {outcome.cases}")
    if outcome.holds and outcome.cases > 3:
        lines[-1] += f"; 95 %: below {300 / outcome.cases:.2g} %"
    return [*lines, *(f"    case {number}: {what}" for number, what in outcome.breaches[:SHOWN])]


def as_json(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A row for each kind of damage, one for each breach, and one for all of it."""
    for kind, tally in sorted(outcome.kinds.items()):
        yield {"damage": kind, **asdict(tally), "slowest": round(tally.slowest, 3)}
    for number, what in outcome.breaches:
        yield {"case": number, "broken": what}
    yield {
        "seed": outcome.seed, "cases": outcome.cases, "seconds": round(outcome.seconds, 1), "holds": outcome.holds,
        "memory": [outcome.before, outcome.after], "reasons": outcome.reasons,
    }  # fmt: skip


def _row(kind: str, tally: Tally) -> str:
    return f"{kind:12} {tally.cases:7} {tally.brought:8} {tally.refused:8} {tally.slowest:7.2f} s"


def _pace(outcome: Outcome) -> float:
    return outcome.cases / outcome.seconds if outcome.seconds else 0.0
