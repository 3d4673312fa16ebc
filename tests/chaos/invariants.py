"""What must hold however plugs were pulled, as functions of the evidence; each names every job that breaks it. Pure.

Judges by what is seen from outside; knows nothing of how the bot comes to it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from chaos.evidence import ENDS, Accepted, Evidence, JobRow, Move

ROUNDING = 1e-6  # of sums, as a share
BACK = 12.0  # seconds of work that a lost worker may cost: two between snapshots, and a lease
WORN = 3  # workers
THEIRS = ("member", "model")  # whose fault a failure may be, whatever is pulled
STEPS_RUN = re.compile(r"after (\d+) steps\Z")
Break = tuple[str, str]  # the job (or what else it is about), and what is wrong with it


@dataclass(frozen=True)
class Verdict:
    """One invariant: how many cases were looked at, and which of them break it."""

    name: str
    of: int
    broken: tuple[Break, ...]

    @property
    def holds(self) -> bool:
        return not self.broken


def judge(seen: Evidence) -> list[Verdict]:
    """Every invariant, in the order in which they are told."""
    return [Verdict(name, of(seen), tuple(check(seen))) for name, of, check in INVARIANTS]


def _rows(seen: Evidence) -> dict[str, JobRow]:
    return {row.id: row for row in seen.jobs}


def _audit(seen: Evidence) -> dict[str, list[Move]]:
    found: dict[str, list[Move]] = defaultdict(list)
    for move in sorted(seen.moves, key=lambda move: move.id):
        found[move.job].append(move)
    return found


def lost(seen: Evidence) -> Iterator[Break]:
    """Accepted is accepted: the store and the API know it."""
    rows = _rows(seen)
    for one in seen.accepted:
        if one.job not in rows:
            yield one.job, "was accepted, and the store does not know it"
        elif one.job not in seen.api:
            yield one.job, "was accepted, and the API does not know it"


def stuck(seen: Evidence) -> Iterator[Break]:
    """Everything ends, accepted or not."""
    for row in seen.jobs:
        if row.state not in ENDS:
            yield row.id, f"is still {row.state}"


def ended_twice(seen: Evidence) -> Iterator[Break]:
    """Exactly one move to an end, the last one, and an unbroken chain before it; nobody ever heard of another end."""
    audit = _audit(seen)
    for row in seen.jobs:
        moves = audit.get(row.id, [])
        ends = [move.target for move in moves if move.target in ENDS]
        if row.state in ENDS and ends != [row.state]:
            yield row.id, f"is {row.state}, and its audit has the ends {ends}"
        elif row.state in ENDS and moves[-1].target != row.state:
            yield row.id, f"moved to {moves[-1].target} after its end"
        elif gap := next((pair for pair in pairwise(moves) if pair[0].target != pair[1].source), None):
            yield row.id, f"its audit goes from {gap[0].target} on with {gap[1].source}"
    yield from _told_otherwise(seen)


def _told_otherwise(seen: Evidence) -> Iterator[Break]:
    rows = _rows(seen)
    for one in seen.accepted:
        row, shown = rows.get(one.job), seen.api.get(one.job)
        for told in {*one.ends, *([shown.state] if shown else [])}:
            if row is not None and told != row.state:
                yield one.job, f"is {row.state}, and the API said {told}"


def doubled(seen: Evidence) -> Iterator[Break]:
    """A wish that was repeated with its key made one job, and the page has no job that nobody was promised."""
    keys = Counter((row.key, row.ordinal) for row in seen.jobs if row.key is not None)
    for (key, _), count in keys.items():
        if count > 1:
            yield str(key), f"made {count} jobs"
    promised = {one.job for one in seen.accepted}
    theirs = {place.job for place in seen.places if place.role == "answer" and place.kind == "web"}
    for job in sorted(theirs - promised):
        yield job, "was made over HTTP, and nobody was told of it"


def shown(seen: Evidence) -> Iterator[Break]:
    """Each place of a job has its last word, and a finished one's pictures stand in Discord exactly once."""
    rows = _rows(seen)
    answers = Counter(place.job for place in seen.places if place.role == "answer")
    for row in seen.jobs:
        if answers[row.id] != 1:
            yield row.id, f"has {answers[row.id]} answers"
    for place in seen.places:
        row = rows.get(place.job)
        if place.kind != "discord" or row is None or row.state not in ENDS:
            continue
        if place.delivered is None:
            yield row.id, f"its last word was not shown as {place.role}"
        count, wanted = seen.posted.get(row.id, 0), int(row.state == "finished")
        if place.role == "answer" and count != wanted:
            yield row.id, f"is {row.state}, and stands in Discord {count} times {place.reason}".rstrip()


def pictures(seen: Evidence) -> Iterator[Break]:
    """A finished job has as many pictures as were asked for, each of the bytes that its name says."""
    for row in seen.jobs:
        told = seen.api.get(row.id)
        if row.state != "finished" or told is None:
            continue
        if [number for number, _, _ in told.pictures] != list(range(1, row.count + 1)):
            yield row.id, f"has {len(told.pictures)} pictures of {row.count}"
        for number, promised, true in told.pictures:
            if promised != true:
                yield row.id, f"picture {number} should be {promised[:12]}, and is {true[:12] or 'not there'}"


def other_bytes(seen: Evidence) -> Iterator[Break]:
    """The same recipe gives the same bytes, whatever happened to its workers."""
    for one, reference in _comparable(seen):
        got = tuple(true for _, _, true in seen.api[one.job].pictures)
        if got != reference:
            wrong = [n + 1 for n, pair in enumerate(zip(got, reference, strict=False)) if pair[0] != pair[1]]
            yield one.job, f"pictures {wrong} are not those of an undisturbed run"


def _comparable(seen: Evidence) -> list[tuple[Accepted, tuple[str, ...]]]:
    found = []
    for one in seen.accepted:
        told, reference = seen.api.get(one.job), seen.references.get(one.wish)
        if told is not None and told.state == "finished" and reference and one.by in seen.repeats:
            found.append((one, reference))
    return found


def charged_wrongly(seen: Evidence) -> Iterator[Break]:
    """Once, and by the audit: all of a finished one, nothing of a failed one, the steps of a cancelled one.

    One that was cancelled after its worker was lost may be charged anything: how far it had come is nobody's to say.
    """
    audit = _audit(seen)
    for row in seen.jobs:
        if row.state in ENDS:
            low, high = _right(row, audit.get(row.id, []))
            slack = ROUNDING * max(1.0, row.cost)
            if not low - slack <= row.charged <= high + slack:
                wanted = f"{low:.6f}" if low == high else f"{low:.6f} to {high:.6f}"
                yield row.id, f"is {row.state}, and was charged {row.charged:.6f}, not {wanted}"


def _right(row: JobRow, moves: list[Move]) -> tuple[float, float]:
    if row.state == "finished":
        return row.cost, row.cost
    if row.state == "failed":
        return (row.cost, row.cost) if row.blame == "member" else (0.0, 0.0)
    if not any(move.target == "running" for move in moves):
        return 0.0, 0.0
    if moves[-1].source == "queued":  # it waited to be begun again
        share = min(1.0, row.step / row.steps)
        return row.cost * share, row.cost * share
    if found := STEPS_RUN.search(moves[-1].why):
        share = min(1.0, int(found[1]) / row.steps)
        return row.cost * share, row.cost * share
    return 0.0, row.cost


def blameless(seen: Evidence) -> Iterator[Break]:
    """Plugs and lies end no job: one that fails is its member's fault, or its model's. But a job that lost one worker
    after the other without getting further is given up, as promised: then its audit has each of them.
    """
    begun: dict[str, set[int]] = defaultdict(set)
    for move in seen.moves:
        if move.target == "running":
            begun[move.job].add(move.epoch)
    for row in seen.jobs:
        if row.state == "failed" and row.blame not in THEIRS and len(begun[row.id]) < WORN:
            yield row.id, f"failed ({row.blame}) after {len(begun[row.id])} workers: {row.reason}"


def accounts(seen: Evidence) -> Iterator[Break]:
    """Nothing waits or runs any more in any account, and a pool's was billed what its jobs were, once."""
    for one in seen.accounts:
        if one.queued or one.active:
            yield one.path, f"counts {one.queued} queued and {one.active} active"
    billed: dict[str, float] = defaultdict(float)
    for row in seen.jobs:
        billed[row.pool] += row.billed
    for one in seen.accounts:
        if not one.parent and abs(one.virtual * one.weight - billed[one.path]) > 1e-4 * max(1.0, billed[one.path]):
            yield one.path, f"was billed {one.virtual * one.weight:.6f}, and its jobs {billed[one.path]:.6f}"


def left_over(seen: Evidence) -> Iterator[Break]:
    """The broker has no work and no reports left."""
    for stream, count in seen.left.items():
        if count:
            yield stream, f"holds {count} messages"


def set_back(seen: Evidence) -> Iterator[Break]:
    """A lost worker costs what was done since the last snapshot, not more."""
    for one in seen.setbacks:
        if one.alone and one.back is not None and one.back > BACK:
            yield one.job, f"went back {one.back:.1f} s when {one.worker} was lost ({one.how})"


Invariant = tuple[str, Callable[[Evidence], int], Callable[[Evidence], Iterable[Break]]]
INVARIANTS: tuple[Invariant, ...] = (
    ("lost", lambda seen: len(seen.accepted), lost),
    ("stuck", lambda seen: len(seen.jobs), stuck),
    ("ended twice, or otherwise than told", lambda seen: len(seen.jobs), ended_twice),
    ("failed, though nobody's fault", lambda seen: len(seen.jobs), blameless),
    ("made twice", lambda seen: len(seen.jobs), doubled),
    ("not shown, or shown twice", lambda seen: len(seen.places), shown),
    ("pictures missing or spoilt", lambda seen: sum(row.state == "finished" for row in seen.jobs), pictures),
    ("other bytes than undisturbed", lambda seen: len(_comparable(seen)), other_bytes),
    ("charged wrongly", lambda seen: len(seen.jobs), charged_wrongly),
    ("accounts that do not add up", lambda seen: len(seen.accounts), accounts),
    ("left in the broker", lambda seen: len(seen.left), left_over),
    ("set back further than its snapshot", lambda seen: sum(one.alone for one in seen.setbacks), set_back),
)
