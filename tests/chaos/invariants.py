"""The invariants of a campaign, as functions of the evidence. Each names every job that breaks it. Pure.

Judges only by evidence from outside; knows nothing of the bot's code.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from chaos.evidence import ENDS, Accepted, Evidence, JobRow, Move

ROUNDING = 1e-6  # of sums, as a share
MAX_BACK = 12.0  # seconds of work that a lost worker may cost: two between snapshots, and a lease of ten
BLAMABLE = ("member", "model")  # who may be to blame for a failure, whatever the faults
STEPS_RUN = re.compile(r"after (\d+) steps\Z")
Violation = tuple[str, str]  # the job, or another subject, and the problem


@dataclass(frozen=True)
class Verdict:
    """One invariant: the number of checked cases, and its violations."""

    name: str
    case_count: int
    violations: tuple[Violation, ...]

    @property
    def is_satisfied(self) -> bool:
        return not self.violations


def check_invariants(evidence: Evidence) -> list[Verdict]:
    """Checks every invariant, in the order of the report."""
    return [Verdict(name, count_cases(evidence), tuple(check(evidence))) for name, count_cases, check in INVARIANTS]


def _rows(evidence: Evidence) -> dict[str, JobRow]:
    return {row.id: row for row in evidence.jobs}


def _audit(evidence: Evidence) -> dict[str, list[Move]]:
    moves_of: dict[str, list[Move]] = defaultdict(list)
    for move in sorted(evidence.moves, key=lambda move: move.id):
        moves_of[move.job].append(move)
    return moves_of


def find_lost(evidence: Evidence) -> Iterator[Violation]:
    """The store and the API know every accepted job."""
    rows = _rows(evidence)
    for one in evidence.accepted:
        if one.job not in rows:
            yield one.job, "was accepted, and the store does not know it"
        elif one.job not in evidence.api:
            yield one.job, "was accepted, and the API does not know it"


def find_stuck(evidence: Evidence) -> Iterator[Violation]:
    """Every job ends, accepted or not."""
    for row in evidence.jobs:
        if row.state not in ENDS:
            yield row.id, f"is still {row.state}"


def find_wrong_ends(evidence: Evidence) -> Iterator[Violation]:
    """Exactly one move to an end, the last one, after an unbroken chain. The API never reported another end."""
    audit = _audit(evidence)
    for row in evidence.jobs:
        moves = audit.get(row.id, [])
        ends = [move.target for move in moves if move.target in ENDS]
        if row.state in ENDS and ends != [row.state]:
            yield row.id, f"is {row.state}, and its audit has the ends {ends}"
        elif row.state in ENDS and moves[-1].target != row.state:
            yield row.id, f"moved to {moves[-1].target} after its end"
        elif gap := next((pair for pair in pairwise(moves) if pair[0].target != pair[1].source), None):
            yield row.id, f"its audit goes from {gap[0].target} on with {gap[1].source}"
    yield from _find_other_ends(evidence)


def _find_other_ends(evidence: Evidence) -> Iterator[Violation]:
    rows = _rows(evidence)
    for one in evidence.accepted:
        row, api_job = rows.get(one.job), evidence.api.get(one.job)
        for end in {*one.reported_ends, *([api_job.state] if api_job else [])}:
            if row is not None and end != row.state:
                yield one.job, f"is {row.state}, and the API said {end}"


def find_doubled(evidence: Evidence) -> Iterator[Violation]:
    """A request repeated with its key made one job. The page has no job that was not promised."""
    keys = Counter((row.key, row.ordinal) for row in evidence.jobs if row.key is not None)
    for (key, _), count in keys.items():
        if count > 1:
            yield str(key), f"made {count} jobs"
    promised_sha = {one.job for one in evidence.accepted}
    web_jobs = {
        destination.job for destination in evidence.places if destination.role == "answer" and destination.kind == "web"
    }
    for job in sorted(web_jobs - promised_sha):
        yield job, "was made over HTTP, and nobody was told of it"


def find_wrongly_shown(evidence: Evidence) -> Iterator[Violation]:
    """Each destination of a job shows its end, and a finished job's pictures are in Discord exactly once."""
    rows = _rows(evidence)
    answers = Counter(destination.job for destination in evidence.places if destination.role == "answer")
    for row in evidence.jobs:
        if answers[row.id] != 1:
            yield row.id, f"has {answers[row.id]} answers"
    for destination in evidence.places:
        row = rows.get(destination.job)
        if destination.kind != "discord" or row is None or row.state not in ENDS:
            continue
        if destination.delivered is None:
            yield row.id, f"its last word was not shown as {destination.role}"
        count, expected = evidence.posted_counts.get(row.id, 0), int(row.state == "finished")
        if destination.role == "answer" and count != expected:
            yield row.id, f"is {row.state}, and stands in Discord {count} times {destination.reason}".rstrip()


def find_bad_pictures(evidence: Evidence) -> Iterator[Violation]:
    """A finished job has as many pictures as requested, each with the bytes of its SHA-256."""
    for row in evidence.jobs:
        job = evidence.api.get(row.id)
        if row.state != "finished" or job is None:
            continue
        if [number for number, _, _ in job.pictures] != list(range(1, row.count + 1)):
            yield row.id, f"has {len(job.pictures)} pictures of {row.count}"
        for number, promised_sha, digest in job.pictures:
            if promised_sha != digest:
                yield row.id, f"picture {number} should be {promised_sha[:12]}, and is {digest[:12] or 'not there'}"


def find_other_bytes(evidence: Evidence) -> Iterator[Violation]:
    """The same recipe gives the same bytes, whatever happens to its workers."""
    for one, reference in _pair_with_references(evidence):
        digests = tuple(digest for _, _, digest in evidence.api[one.job].pictures)
        if digests != reference:
            wrong_pictures = [
                n + 1 for n, pair in enumerate(zip(digests, reference, strict=False)) if pair[0] != pair[1]
            ]
            yield one.job, f"pictures {wrong_pictures} are not those of an undisturbed run"


def _pair_with_references(evidence: Evidence) -> list[tuple[Accepted, tuple[str, ...]]]:
    pairs = []
    for one in evidence.accepted:
        job, reference = evidence.api.get(one.job), evidence.references.get(one.spec)
        if (
            job is not None
            and job.state == "finished"
            and reference
            and one.front_end in evidence.repeatable_front_ends
        ):
            pairs.append((one, reference))
    return pairs


def find_wrong_charges(evidence: Evidence) -> Iterator[Violation]:
    """Each job is charged once, by the audit: a finished one in full, a failed one nothing, a cancelled one its steps.

    A job cancelled after its worker was lost may be charged any part: nobody knows how far it got.
    """
    audit = _audit(evidence)
    for row in evidence.jobs:
        if row.state in ENDS:
            lowest, highest = _allowed_charge(row, audit.get(row.id, []))
            tolerance = ROUNDING * max(1.0, row.cost)
            if not lowest - tolerance <= row.charged <= highest + tolerance:
                expected = f"{lowest:.6f}" if lowest == highest else f"{lowest:.6f} to {highest:.6f}"
                yield row.id, f"is {row.state}, and was charged {row.charged:.6f}, not {expected}"


def _allowed_charge(row: JobRow, moves: list[Move]) -> tuple[float, float]:
    if row.state == "finished":
        return row.cost, row.cost
    if row.state == "failed":
        return (row.cost, row.cost) if row.blame == "member" else (0.0, 0.0)
    if not any(move.target == "running" for move in moves):
        return 0.0, 0.0
    if moves[-1].source == "queued":  # it waited to start again
        share = min(1.0, row.step / row.steps)
        return row.cost * share, row.cost * share
    if pairs := STEPS_RUN.search(moves[-1].why):
        share = min(1.0, int(pairs[1]) / row.steps)
        return row.cost * share, row.cost * share
    return 0.0, row.cost


def find_wrong_failures(evidence: Evidence) -> Iterator[Violation]:
    """Faults and lies fail no job, however many workers it lost: only the member or the model may be to blame."""
    epochs: dict[str, set[int]] = defaultdict(set)
    for move in evidence.moves:
        if move.target == "running":
            epochs[move.job].add(move.epoch)
    for row in evidence.jobs:
        if row.state == "failed" and row.blame not in BLAMABLE:
            yield row.id, f"failed ({row.blame}) after {len(epochs[row.id])} workers: {row.reason}"


def find_wrong_accounts(evidence: Evidence) -> Iterator[Violation]:
    """No account counts queued or active jobs, and a pool's account was billed its jobs' sum, once."""
    for one in evidence.accounts:
        if one.queued or one.active:
            yield one.path, f"counts {one.queued} queued and {one.active} active"
    sums: dict[str, float] = defaultdict(float)
    for row in evidence.jobs:
        sums[row.pool] += row.billed
    for one in evidence.accounts:
        if not one.parent and abs(one.virtual * one.weight - sums[one.path]) > 1e-4 * max(1.0, sums[one.path]):
            yield one.path, f"was billed {one.virtual * one.weight:.6f}, and its jobs {sums[one.path]:.6f}"


def find_left_over(evidence: Evidence) -> Iterator[Violation]:
    """The broker holds no work and no results any more."""
    for stream, count in evidence.messages_left.items():
        if count:
            yield stream, f"holds {count} messages"


def find_long_setbacks(evidence: Evidence) -> Iterator[Violation]:
    """A lost worker costs only the work since the last snapshot."""
    for one in evidence.setbacks:
        if one.is_isolated and one.repeated_seconds is not None and one.repeated_seconds > MAX_BACK:
            yield one.job, f"went back {one.repeated_seconds:.1f} s when {one.worker} was lost ({one.cause})"


Invariant = tuple[str, Callable[[Evidence], int], Callable[[Evidence], Iterable[Violation]]]
INVARIANTS: tuple[Invariant, ...] = (
    ("lost", lambda evidence: len(evidence.accepted), find_lost),
    ("stuck", lambda evidence: len(evidence.jobs), find_stuck),
    ("ended twice, or otherwise than told", lambda evidence: len(evidence.jobs), find_wrong_ends),
    ("failed, though nobody's fault", lambda evidence: len(evidence.jobs), find_wrong_failures),
    ("made twice", lambda evidence: len(evidence.jobs), find_doubled),
    ("not shown, or shown twice", lambda evidence: len(evidence.places), find_wrongly_shown),
    (
        "pictures missing or spoilt",
        lambda evidence: sum(row.state == "finished" for row in evidence.jobs),
        find_bad_pictures,
    ),
    ("other bytes than undisturbed", lambda evidence: len(_pair_with_references(evidence)), find_other_bytes),
    ("charged wrongly", lambda evidence: len(evidence.jobs), find_wrong_charges),
    ("accounts that do not add up", lambda evidence: len(evidence.accounts), find_wrong_accounts),
    ("left in the broker", lambda evidence: len(evidence.messages_left), find_left_over),
    (
        "set back further than its snapshot",
        lambda evidence: sum(one.is_isolated for one in evidence.setbacks),
        find_long_setbacks,
    ),
)
