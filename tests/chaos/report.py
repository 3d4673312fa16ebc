"""The report of a campaign: rows for people, JSON for machines. Pure.

The rule of three: an event seen 0 times in n cases happens, at 95 % confidence, in fewer than 3/n of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaos.evidence import ENDS, Evidence
from chaos.faults import Plug
from chaos.invariants import Verdict

MAX_NAMED = 5  # broken cases that a row names


@dataclass(frozen=True)
class Outcome:
    """A finished campaign. `skipped`: kind of plug → why it was not pulled; `died`: process → unexpected ends."""

    seed: int
    engine: str
    database: str
    seconds: float
    pulled: Sequence[Plug]
    skipped: Mapping[str, str]
    died: Mapping[str, int]
    settled: bool
    evidence: Evidence
    verdicts: Sequence[Verdict]

    @property
    def holds(self) -> bool:
        return self.settled and all(verdict.holds for verdict in self.verdicts)


def bound(verdict: Verdict) -> str:
    """The bound on the failure rate that follows from zero broken cases."""
    if verdict.broken or not verdict.of:
        return ""
    return f"95 %: below {300 / verdict.of:.2g} %" if verdict.of > 3 else "too few to say"


def quantile(values: Sequence[float], share: float) -> float | None:
    """The least value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)] if ordered else None


def rows(outcome: Outcome) -> list[str]:
    """The whole table."""
    ends = Counter(row.state for row in outcome.evidence.jobs)
    ways = Counter(one.by for one in outcome.evidence.accepted)
    kinds = Counter(plug.kind for plug in outcome.pulled)
    lines = [
        f"seed {outcome.seed}, engine {outcome.engine}, database {outcome.database}, {outcome.seconds:.0f} s",
        f"{len(outcome.pulled)} plugs, {sum(plug.kills for plug in outcome.pulled)} of them SIGKILL: "
        + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
        *(f"not run: {kind}: {why}" for kind, why in outcome.skipped.items()),
        f"{len(outcome.evidence.accepted)} jobs accepted, {ways['web']} over HTTP and {ways['discord']} in Discord: "
        + ", ".join(f"{count} {state}" for state, count in sorted(ends.items())),
        *_failures(outcome.evidence),
        *([f"ended by themselves: {dict(outcome.died)}"] if outcome.died else []),
        *_times(outcome.evidence),
        "" if outcome.settled else "NOT EVERYTHING WAS SETTLED IN TIME",
    ]
    return [*(line for line in lines if line), "", *_table(outcome.verdicts)]


def _failures(evidence: Evidence) -> list[str]:
    reasons = Counter(row.reason for row in evidence.jobs if row.state == "failed")
    return [f"  failed {count} times: {reason}" for reason, count in reasons.most_common(MAX_NAMED)]


def _times(evidence: Evidence) -> list[str]:
    lines = []
    for name, how in (
        ("SIGKILL, nothing else pulled", "kill"),
        ("SIGTERM, nothing else pulled", "term"),
        ("whatever else was pulled, a lost store too", ""),
    ):
        killed = [one for one in evidence.setbacks if not how or (one.how == how and one.alone)]
        again = [one.again for one in killed if one.again is not None]
        back = [one.back for one in killed if one.back is not None]
        if again:
            lines.append(
                f"a lost worker's job goes on ({name}, {len(again)} times): p50 {quantile(again, 0.5):.1f} s, "
                f"p99 {quantile(again, 0.99):.1f} s; went back at most {max(back, default=0.0):.1f} s"
            )
    return lines


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        lines.append(f"{verdict.name:38} {len(verdict.broken):4} of {verdict.of:6}  {bound(verdict)}".rstrip())
        lines += [f"    {what}: {problem}" for what, problem in verdict.broken[:MAX_NAMED]]
    return lines


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The table for machines."""
    evidence = outcome.evidence
    killed = [one for one in evidence.setbacks if one.how == "kill" and one.alone and one.again is not None]
    again = [one.again for one in killed if one.again is not None]
    return {
        "seed": outcome.seed,
        "engine": outcome.engine,
        "database": outcome.database,
        "seconds": round(outcome.seconds, 1),
        "plugs": dict(Counter(plug.kind for plug in outcome.pulled)),
        "kills": sum(plug.kills for plug in outcome.pulled),
        "skipped": dict(outcome.skipped),
        "died": dict(outcome.died),
        "settled": outcome.settled,
        "accepted": len(evidence.accepted),
        "ends": {state: sum(row.state == state for row in evidence.jobs) for state in ENDS},
        "again": {"times": len(again), "p50": quantile(again, 0.5), "p99": quantile(again, 0.99)},
        "back": {"most": max((one.back for one in killed if one.back is not None), default=None)},
        "invariants": [
            {"name": one.name, "of": one.of, "broken": [list(broken) for broken in one.broken]}
            for one in outcome.verdicts
        ],
        "holds": outcome.holds,
    }
