"""The checker itself: a made-up store that is sound, and what it says of each way in which it could be spoilt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from chaos.evidence import Accepted, Account, Evidence, JobRow, Move, PlaceRow, Setback, Shown, Wish
from chaos.invariants import judge
from chaos.report import bound, quantile

WISH = Wish("red apple", 1, 10, 1)
WEB, DISCORD, STOPPED, FAILED = "web", "discord", "stopped", "failed"
REFERENCE = "a" * 64
LIVES = {
    WEB: ("new", "queued", "sent", "running", "finished"),
    DISCORD: ("new", "queued", "sent", "running", "queued", "sent", "running", "finished"),
    STOPPED: ("new", "queued", "sent", "running", "cancelled"),
    FAILED: ("new", "queued", "failed"),
}
CHARGED = {WEB: 2.0, DISCORD: 2.0, STOPPED: 0.6, FAILED: 0.0}
BILLED = {WEB: 2.0, DISCORD: 2.0, STOPPED: 0.6, FAILED: 0.0}


def _row(job: str) -> JobRow:
    return JobRow(
        id=job, state=LIVES[job][-1], key=f"key-{job}", ordinal=0, tier="standard", pool="default",
        account=f"default/standard/local/{job}", cost=2.0, charged=CHARGED[job], billed=BILLED[job], steps=10, step=3,
        count=1, blame="model" if job == FAILED else "", reason="", created=1.0, ended=2.0,
    )  # fmt: skip


def _moves() -> tuple[Move, ...]:
    steps = [(job, *pair) for job, states in LIVES.items() for pair in pairwise(states)]
    why = {"cancelled": "after 3 steps"}
    return tuple(
        Move(number, job, source, target, why.get(target, "")) for number, (job, source, target) in enumerate(steps)
    )


def sound() -> Evidence:
    """Four jobs that ended as they should."""
    done = Shown("finished", ((1, REFERENCE, REFERENCE),))
    return Evidence(
        accepted=tuple(Accepted(job, WISH, "web", (LIVES[job][-1],)) for job in LIVES),
        jobs=tuple(map(_row, LIVES)),
        moves=_moves(),
        places=tuple(PlaceRow(job, "answer", DISCORD if job == DISCORD else WEB, 2.0, "") for job in LIVES),
        accounts=(Account("default", "", 4.6, 1.0, 0, 0), Account("default/standard", "default", 9.0, 1.0, 0, 0)),
        api={WEB: done, DISCORD: done, STOPPED: Shown("cancelled"), FAILED: Shown("failed")},
        posted={DISCORD: 1},
        left={"work": 0, "results": 0},
        references={WISH: (REFERENCE,)},
        setbacks=(Setback(WEB, "w1", "kill", 11.0, 1.9, alone=True),),
    )


def spoilt(seen: Evidence, job: str, **values: object) -> Evidence:
    """The same with one row changed."""
    return replace(seen, jobs=tuple(replace(row, **values) if row.id == job else row for row in seen.jobs))  # pyright: ignore


def without(seen: Evidence, job: str) -> Evidence:
    """The store has forgotten a job altogether."""
    return replace(
        seen,
        jobs=tuple(row for row in seen.jobs if row.id != job),
        moves=tuple(move for move in seen.moves if move.job != job),
        places=tuple(place for place in seen.places if place.job != job),
        api={name: told for name, told in seen.api.items() if name != job},
        accounts=(Account("default", "", 2.6, 1.0, 0, 0),),
    )


def more(seen: Evidence, *moves: tuple[str, str, str]) -> Evidence:
    last = len(seen.moves)
    added = tuple(Move(last + n, *each, "") for n, each in enumerate(moves))
    return replace(seen, moves=seen.moves + added)


def api(seen: Evidence, job: str, told: Shown) -> Evidence:
    return replace(seen, api={**seen.api, job: told})


def broken(seen: Evidence) -> dict[str, list[str]]:
    return {verdict.name: [what for what, _ in verdict.broken] for verdict in judge(seen) if verdict.broken}


def test_a_sound_store_breaks_nothing() -> None:
    assert broken(sound()) == {}
    assert all(verdict.of for verdict in judge(sound()))


OTHER = "b" * 64
CASES: dict[str, tuple[Callable[[Evidence], Evidence], dict[str, list[str]]]] = {
    "lost": (lambda seen: without(seen, WEB), {"lost": [WEB]}),
    "unknown to the API": (
        lambda seen: replace(seen, api={job: told for job, told in seen.api.items() if job != STOPPED}),
        {"lost": [STOPPED]},
    ),
    "stuck": (
        lambda seen: spoilt(seen, FAILED, state="running"),
        {"stuck": [FAILED], "ended twice, or otherwise than told": [FAILED]},
    ),
    "stuck, and nobody saw more": (
        lambda seen: api(
            replace(
                spoilt(seen, FAILED, state="queued"), moves=seen.moves[:-1],
                accepted=tuple(one for one in seen.accepted if one.job != FAILED),
            ),
            FAILED, Shown("queued"),
        ),
        {"stuck": [FAILED], "made twice": [FAILED]},
    ),
    "ended twice": (
        lambda seen: more(seen, (WEB, "finished", "finished")), {"ended twice, or otherwise than told": [WEB]}
    ),
    "began after its end": (
        lambda seen: more(seen, (WEB, "finished", "running")), {"ended twice, or otherwise than told": [WEB]}
    ),
    "a gap in the audit": (
        lambda seen: replace(seen, moves=tuple(one for one in seen.moves if (one.job, one.target) != (WEB, "sent"))),
        {"ended twice, or otherwise than told": [WEB]},
    ),
    "the API said otherwise before": (
        lambda seen: replace(seen, accepted=(replace(seen.accepted[0], ends=("cancelled",)), *seen.accepted[1:])),
        {"ended twice, or otherwise than told": [WEB]},
    ),
    "failed by the worker": (
        lambda seen: spoilt(seen, FAILED, blame="worker"), {"failed, though nobody's fault": [FAILED]}
    ),
    "failed by us": (lambda seen: spoilt(seen, FAILED, blame="us"), {"failed, though nobody's fault": [FAILED]}),
    "one key made two": (lambda seen: spoilt(seen, WEB, key=f"key-{FAILED}"), {"made twice": [f"key-{FAILED}"]}),
    "nobody was told": (lambda seen: replace(seen, accepted=seen.accepted[1:]), {"made twice": [WEB]}),
    "posted twice": (
        lambda seen: replace(seen, posted={DISCORD: 2}), {"not shown, or shown twice": [DISCORD]}
    ),
    "not posted": (lambda seen: replace(seen, posted={}), {"not shown, or shown twice": [DISCORD]}),
    "its last word is owed": (
        lambda seen: replace(seen, places=tuple(replace(place, delivered=None) for place in seen.places)),
        {"not shown, or shown twice": [DISCORD]},
    ),
    "a picture is missing": (
        lambda seen: api(seen, WEB, Shown("finished")),
        {"pictures missing or spoilt": [WEB], "other bytes than undisturbed": [WEB]},
    ),
    "a picture is spoilt": (
        lambda seen: api(seen, WEB, Shown("finished", ((1, REFERENCE, OTHER),))),
        {"pictures missing or spoilt": [WEB], "other bytes than undisturbed": [WEB]},
    ),
    "another picture": (
        lambda seen: api(seen, WEB, Shown("finished", ((1, OTHER, OTHER),))), {"other bytes than undisturbed": [WEB]}
    ),
    "finished for nothing": (lambda seen: spoilt(seen, WEB, charged=0.0), {"charged wrongly": [WEB]}),
    "charged twice": (lambda seen: spoilt(seen, WEB, charged=4.0), {"charged wrongly": [WEB]}),
    "failed and charged": (lambda seen: spoilt(seen, FAILED, charged=2.0), {"charged wrongly": [FAILED]}),
    "a member's fault is charged": (
        lambda seen: spoilt(seen, FAILED, blame="member"), {"charged wrongly": [FAILED]}
    ),
    "more steps than it ran": (lambda seen: spoilt(seen, STOPPED, charged=0.8), {"charged wrongly": [STOPPED]}),
    "billed twice": (
        lambda seen: replace(seen, accounts=(replace(seen.accounts[0], virtual=6.6),)),
        {"accounts that do not add up": ["default"]},
    ),
    "still active": (
        lambda seen: replace(seen, accounts=(replace(seen.accounts[0], active=1),)),
        {"accounts that do not add up": ["default"]},
    ),
    "work is left": (lambda seen: replace(seen, left={"work": 1}), {"left in the broker": ["work"]}),
    "far back": (
        lambda seen: replace(seen, setbacks=(replace(seen.setbacks[0], back=30.0),)),
        {"set back further than its snapshot": [WEB]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_spoilt_is_named(case: str) -> None:
    spoil, expected = CASES[case]
    assert broken(spoil(sound())) == expected


def test_cancelled_before_it_began_costs_nothing() -> None:
    seen = spoilt(sound(), FAILED, state="cancelled", charged=0.1)
    seen = replace(
        seen, moves=tuple(replace(one, target="cancelled") if one.target == "failed" else one for one in seen.moves)
    )
    assert broken(seen)["charged wrongly"] == [FAILED]


def test_cancelled_while_it_waited_again_costs_the_steps_that_are_known() -> None:
    last = sound().moves[-3]
    assert (last.job, last.target) == (STOPPED, "cancelled")
    waits = replace(last, source="running", target="queued", why="w1 lost it")
    over = replace(last, id=waits.id + 1, source="queued", why="wished")
    later = tuple(replace(move, id=move.id + 1) for move in sound().moves[-2:])
    seen = replace(sound(), moves=(*sound().moves[:-3], waits, over, *later))
    assert broken(seen) == {}
    for charged in (0.4, 0.8):
        assert broken(spoilt(seen, STOPPED, charged=charged))["charged wrongly"] == [STOPPED]


def test_the_rule_of_three() -> None:
    (lost, *_) = judge(sound())
    assert bound(replace(lost, of=300)) == "95 %: below 1 %"
    assert bound(replace(lost, of=2)) == "too few to say"
    assert bound(replace(lost, broken=((WEB, "x"),))) == ""


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_a_job_that_lost_three_workers_may_be_given_up() -> None:
    given_up = spoilt(sound(), FAILED, blame="worker")
    begun = tuple(Move(100 + epoch, FAILED, "running", "running", "w", epoch) for epoch in (7, 7, 8, 9))
    for workers, broken in ((begun[:3], 1), (begun, 0)):  # the same epoch twice is one worker
        found = judge(replace(given_up, moves=(*given_up.moves, *workers)))
        assert [len(one.broken) for one in found if one.name == "failed, though nobody's fault"] == [broken]


def test_bytes_are_compared_only_where_the_engine_promises_to_repeat_them() -> None:
    other = api(sound(), WEB, Shown("finished", ((1, OTHER, OTHER),)))
    found = {verdict.name: len(verdict.broken) for verdict in judge(replace(other, repeats=("discord",)))}
    assert found["other bytes than undisturbed"] == 0
    found = {verdict.name: len(verdict.broken) for verdict in judge(replace(other, repeats=("web",)))}
    assert found["other bytes than undisturbed"] == 1
