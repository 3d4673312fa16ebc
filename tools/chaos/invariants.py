"""The invariants of a campaign, as functions of the evidence. Each names every job that breaks it. Pure.

Judges only by evidence from outside; knows nothing of the bot's code.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tools.chaos.evidence import ENDS, Accepted, AmendmentRow, Evidence, JobRow, Move

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
        row = rows.get(one.job)
        api_job = evidence.api.get(one.job)
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
        count = evidence.posted_counts.get(row.id, 0)
        expected = int(row.state == "finished")
        if destination.role == "answer" and count != expected:
            yield row.id, f"is {row.state}, and stands in Discord {count} times {destination.reason}".rstrip()


def find_bad_pictures(evidence: Evidence) -> Iterator[Violation]:
    """A finished job has as many pictures as requested, each with the bytes of its SHA-256."""
    for row in evidence.jobs:
        job = evidence.api.get(row.id)
        if row.state != "finished" or job is None:
            continue
        numbers = tuple(number for number, _, _ in job.pictures)
        if numbers != row.picture_numbers:
            yield row.id, f"has the pictures {list(numbers)}, not {list(row.picture_numbers)}"
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
    steered = {row.id for row in evidence.jobs if row.amendments}
    for one in evidence.accepted:
        job = evidence.api.get(one.job)
        reference = evidence.references.get(one.spec)
        if (
            job is not None
            and job.state == "finished"
            and reference
            and one.front_end in evidence.repeatable_front_ends
            and one.job not in steered
        ):
            pairs.append((one, reference))
    return pairs


def find_wrong_charges(evidence: Evidence) -> Iterator[Violation]:
    """Each job is charged once, by the audit: a finished one in full, a failed one nothing, a cancelled one its steps.

    A job cancelled after its worker was lost may be charged any part: nobody knows how far it got. So may a steered one
    that was cancelled, since its steps differ in rows.
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
    if row.amendments:
        return 0.0, row.cost
    if moves[-1].source == "queued":  # it waited to start again
        share = row.find_done_share(row.step)
        return row.cost * share, row.cost * share
    if pairs := STEPS_RUN.search(moves[-1].why):
        share = row.find_done_share(int(pairs[1]))
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


def find_lost_amendments(evidence: Evidence) -> Iterator[Violation]:
    """The store knows every accepted change. One that was told as made holds, from that step on, in the recipe."""
    known = {(row.job, row.number): row for row in evidence.amendments}
    for asked in evidence.asked_amendments:
        for number in asked.numbers:
            if (asked.job, number) not in known:
                yield asked.job, f"change {number} was accepted, and the store does not know it"
    for told in evidence.told_amendments:
        row = known.get((told.job, told.number))
        if row is not None and (row.state, row.step) != ("made", told.step):
            now = f"{row.state} at step {row.step} {row.reason}".rstrip()
            yield told.job, f"change {told.number} was told as made at step {told.step}, and is {now}"
    yield from _find_unheld(evidence)


def _find_unheld(evidence: Evidence) -> Iterator[Violation]:
    """Every change that the store has as made is in its job's recipe."""
    held = {(row.id, each.number): each for row in evidence.jobs for each in row.amendments}
    for row in evidence.amendments:
        amendment = held.get((row.job, row.number))
        if row.state == "made" and amendment is None:
            yield row.job, f"change {row.number} is made, and its recipe does not hold it"
        elif row.state == "made" and amendment and (amendment.step, amendment.change) != (row.step, row.change):
            yield row.job, f"change {row.number} is made at step {row.step}, and its recipe holds another"


def find_doubled_amendments(evidence: Evidence) -> Iterator[Violation]:
    """A request repeated with its key made its changes once, and a recipe holds each change once, as it was asked."""
    yield from _find_doubled_requests(evidence)
    known = {(row.job, row.number): row for row in evidence.amendments}
    for job_row in evidence.jobs:
        yield from _find_doubled_in_recipe(job_row, known)
    told_steps: dict[tuple[str, int], set[int]] = defaultdict(set)
    for told in evidence.told_amendments:
        told_steps[told.job, told.number].add(told.step)
    for (job, number), steps in told_steps.items():
        if len(steps) > 1:
            yield job, f"change {number} was told as made at the steps {sorted(steps)}"


def _find_doubled_requests(evidence: Evidence) -> Iterator[Violation]:
    """Rows of one key are those that its request was told of, and there are no others."""
    by_key: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for row in evidence.amendments:
        by_key[row.job, row.key].append(row.number)
    told = {(asked.job, number): asked for asked in evidence.asked_amendments for number in asked.numbers}
    for (job, _), numbers in by_key.items():
        asked = told.get((job, numbers[0]))
        if asked is None:
            yield job, f"the changes {numbers} were asked for, and nobody was told of them"
        elif tuple(sorted(numbers)) != tuple(sorted(asked.numbers)):
            yield job, f"the request {asked.key} made the changes {numbers}, and was told of {list(asked.numbers)}"


def _find_doubled_in_recipe(job_row: JobRow, known: dict[tuple[str, int], AmendmentRow]) -> Iterator[Violation]:
    for number, count in Counter(each.number for each in job_row.amendments).items():
        row = known.get((job_row.id, number))
        if count > 1:
            yield job_row.id, f"its recipe holds change {number} {count} times"
        if row is None:
            yield job_row.id, f"its recipe holds change {number}, which nobody asked for"
        elif row.state != "made":
            yield job_row.id, f"its recipe holds change {number}, which is {row.state}"


def find_other_steered_pictures(evidence: Evidence) -> Iterator[Violation]:
    """A steered job's pictures come out of its recipe again, to the pixel: no change is missing or came twice."""
    for job, one in evidence.redrawn.items():
        if wrong_numbers := [n for n in {*one.pictures, *one.redrawn} if one.pictures.get(n) != one.redrawn.get(n)]:
            yield job, f"drawn anew from its recipe, the pictures {sorted(wrong_numbers)} are others"


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
    (
        "acknowledged amendments lost",
        lambda evidence: len(evidence.told_amendments) + sum(len(one.numbers) for one in evidence.asked_amendments),
        find_lost_amendments,
    ),
    (
        "amendments applied twice",
        lambda evidence: sum(len(row.amendments) for row in evidence.jobs),
        find_doubled_amendments,
    ),
    ("steered, and other pixels if redrawn", lambda evidence: len(evidence.redrawn), find_other_steered_pictures),
    ("charged wrongly", lambda evidence: len(evidence.jobs), find_wrong_charges),
    ("accounts that do not add up", lambda evidence: len(evidence.accounts), find_wrong_accounts),
    ("left in the broker", lambda evidence: len(evidence.messages_left), find_left_over),
    (
        "set back further than its snapshot",
        lambda evidence: sum(one.is_isolated for one in evidence.setbacks),
        find_long_setbacks,
    ),
)
