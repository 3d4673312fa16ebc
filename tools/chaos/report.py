"""The report of a campaign: rows for people, JSON for machines. Pure.

The rule of three: an event seen 0 times in n cases happens, at 95 % confidence, in fewer than 3/n of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.chaos.evidence import ENDS, Evidence
from tools.chaos.faults import Fault
from tools.chaos.invariants import Verdict

MAX_NAMED = 5  # broken cases that a row names


@dataclass(frozen=True)
class Outcome:
    """A finished campaign. `skipped`: kind of fault → why. `death_counts`: process → unexpected ends."""

    seed: int
    engine: str
    database: str
    seconds: float
    injected: Sequence[Fault]
    skipped: Mapping[str, str]
    death_counts: Mapping[str, int]
    is_settled: bool
    evidence: Evidence
    verdicts: Sequence[Verdict]

    @property
    def is_satisfied(self) -> bool:
        return self.is_settled and all(verdict.is_satisfied for verdict in self.verdicts)


def format_bound(verdict: Verdict) -> str:
    """The bound on the failure rate that follows from zero broken cases."""
    if verdict.violations or not verdict.case_count:
        return ""
    return f"95 %: below {300 / verdict.case_count:.2g} %" if verdict.case_count > 3 else "too few to say"


def quantile(values: Sequence[float], fraction: float) -> float | None:
    """The least value that at least this share of the values does not exceed."""
    sorted_values = sorted(values)
    return sorted_values[max(0, -(-int(fraction * 100) * len(sorted_values) // 100) - 1)] if sorted_values else None


def format_rows(outcome: Outcome) -> list[str]:
    """The whole table."""
    end_counts = Counter(row.state for row in outcome.evidence.jobs)
    front_ends = Counter(one.front_end for one in outcome.evidence.accepted)
    kinds = Counter(fault.kind for fault in outcome.injected)
    lines = [
        f"seed {outcome.seed}, engine {outcome.engine}, database {outcome.database}, {outcome.seconds:.0f} s",
        f"{len(outcome.injected)} faults, {sum(fault.is_kill for fault in outcome.injected)} of them SIGKILL: "
        + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
        *(f"not run: {kind}: {reason}" for kind, reason in outcome.skipped.items()),
        f"{len(outcome.evidence.accepted)} jobs accepted, "
        f"{front_ends['web']} over HTTP and {front_ends['discord']} in Discord: "
        + ", ".join(f"{count} {state}" for state, count in sorted(end_counts.items())),
        *_failures(outcome.evidence),
        *_steering(outcome.evidence),
        *([f"ended by themselves: {dict(outcome.death_counts)}"] if outcome.death_counts else []),
        *_times(outcome.evidence),
        "" if outcome.is_settled else "NOT EVERYTHING WAS SETTLED IN TIME",
    ]
    return [*(line for line in lines if line), "", *_table(outcome.verdicts)]


def _steering(evidence: Evidence) -> list[str]:
    states = Counter(row.state for row in evidence.amendments)
    if not states:
        return []
    steered_count = sum(bool(row.amendments) for row in evidence.jobs)
    return [
        f"{len(evidence.amendments)} amendments of {len({row.job for row in evidence.amendments})} jobs: "
        + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        + f"; {steered_count} recipes hold some, {len(evidence.redrawn)} were drawn anew"
    ]


def _failures(evidence: Evidence) -> list[str]:
    reasons = Counter(row.reason for row in evidence.jobs if row.state == "failed")
    return [f"  failed {count} times: {reason}" for reason, count in reasons.most_common(MAX_NAMED)]


def _times(evidence: Evidence) -> list[str]:
    lines = []
    for name, cause in (
        ("SIGKILL, no other fault", "kill"),
        ("SIGTERM, no other fault", "term"),
        ("with other faults, a lost store too", ""),
    ):
        setbacks = [one for one in evidence.setbacks if not cause or (one.cause == cause and one.is_isolated)]
        resume_times = [one.resume_seconds for one in setbacks if one.resume_seconds is not None]
        repeated_times = [one.repeated_seconds for one in setbacks if one.repeated_seconds is not None]
        if resume_times:
            lines.append(
                f"a lost worker's job goes on ({name}, {len(resume_times)} times): "
                f"p50 {quantile(resume_times, 0.5):.1f} s, "
                f"p99 {quantile(resume_times, 0.99):.1f} s; went back at most {max(repeated_times, default=0.0):.1f} s"
            )
    return lines


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        lines.append(
            f"{verdict.name:38} {len(verdict.violations):4} of {verdict.case_count:6}  {format_bound(verdict)}".rstrip()
        )
        lines += [f"    {subject}: {problem}" for subject, problem in verdict.violations[:MAX_NAMED]]
    return lines


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The table for machines."""
    evidence = outcome.evidence
    setbacks = [
        one for one in evidence.setbacks if one.cause == "kill" and one.is_isolated and one.resume_seconds is not None
    ]
    resume_times = [one.resume_seconds for one in setbacks if one.resume_seconds is not None]
    return {
        "seed": outcome.seed,
        "engine": outcome.engine,
        "database": outcome.database,
        "seconds": round(outcome.seconds, 1),
        "faults": dict(Counter(fault.kind for fault in outcome.injected)),
        "kills": sum(fault.is_kill for fault in outcome.injected),
        "skipped": dict(outcome.skipped),
        "died": dict(outcome.death_counts),
        "settled": outcome.is_settled,
        "accepted": len(evidence.accepted),
        "ends": {state: sum(row.state == state for row in evidence.jobs) for state in ENDS},
        "amendments": dict(Counter(row.state for row in evidence.amendments)),
        "again": {"times": len(resume_times), "p50": quantile(resume_times, 0.5), "p99": quantile(resume_times, 0.99)},
        "slowest": [
            {"job": one.job, "worker": one.worker, "cause": one.cause, "seconds": one.resume_seconds}
            for one in sorted(evidence.setbacks, key=lambda one: one.resume_seconds or 0.0)[-MAX_NAMED:]
        ],
        "back": {
            "most": max((one.repeated_seconds for one in setbacks if one.repeated_seconds is not None), default=None)
        },
        "invariants": [
            {"name": one.name, "of": one.case_count, "broken": [list(violation) for violation in one.violations]}
            for one in outcome.verdicts
        ],
        "holds": outcome.is_satisfied,
    }
