"""The checker itself: it accepts a sound store, and names each fault that a test puts into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from tools.chaos.evidence import (
    Accepted,
    Account,
    AmendmentRow,
    ApiJob,
    AskedAmendment,
    Evidence,
    JobRow,
    JobSpec,
    Move,
    PlaceRow,
    RecipeAmendment,
    RedrawnJob,
    Setback,
    ToldAmendment,
)
from tools.chaos.invariants import check_invariants
from tools.chaos.report import format_bound, quantile

WISH = JobSpec("red apple", 1, 10, 1)
WEB = "web"
STEERED = "steered"
DISCORD = "discord"
STOPPED = "stopped"
FAILED = "failed"
REFERENCE = "a" * 64
OTHER = "b" * 64
LIVES = {
    WEB: ("new", "queued", "sent", "running", "finished"),
    STEERED: ("new", "queued", "sent", "running", "finished"),
    DISCORD: ("new", "queued", "sent", "running", "queued", "sent", "running", "finished"),
    STOPPED: ("new", "queued", "sent", "running", "cancelled"),
    FAILED: ("new", "queued", "failed"),
}
CHARGED = {WEB: 2.0, STEERED: 2.0, DISCORD: 2.0, STOPPED: 0.6, FAILED: 0.0}
BILLED = {WEB: 2.0, STEERED: 2.0, DISCORD: 2.0, STOPPED: 0.6, FAILED: 0.0}

BLUE = '{"type": "SetNegative"}'
SPLIT = '{"type": "SplitImage"}'
HELD = (RecipeAmendment(1, 3, BLUE), RecipeAmendment(3, 5, SPLIT))
AMENDMENTS = (
    AmendmentRow(STEERED, 1, "hash-1", "made", 3, "", BLUE),
    AmendmentRow(STEERED, 2, "hash-1", "refused", None, "One image has to stay.", BLUE),
    AmendmentRow(STEERED, 3, "hash-2", "made", 5, "", SPLIT),
)


def _row(job: str) -> JobRow:
    return JobRow(
        id=job,
        state=LIVES[job][-1],
        key=f"key-{job}",
        ordinal=0,
        tier="standard",
        pool="default",
        account=f"default/standard/local/{job}",
        cost=2.0,
        charged=CHARGED[job],
        billed=BILLED[job],
        steps=10,
        step=3,
        count=1,
        blame="model" if job == FAILED else "",
        reason="",
        created=1.0,
        ended=2.0,
        images=(1, 3) if job == STEERED else (),
        amendments=HELD if job == STEERED else (),
    )


def _moves() -> tuple[Move, ...]:
    steps = [(job, *pair) for job, states in LIVES.items() for pair in pairwise(states)]
    why = {"cancelled": "after 3 steps"}
    return tuple(
        Move(number, job, source, target, why.get(target, "")) for number, (job, source, target) in enumerate(steps)
    )


def make_sound_evidence() -> Evidence:
    """Five jobs that ended correctly, one of them steered."""
    finished = ApiJob("finished", ((1, REFERENCE, REFERENCE),))
    steered = ApiJob("finished", ((1, OTHER, OTHER), (3, OTHER, OTHER)))
    return Evidence(
        accepted=tuple(Accepted(job, WISH, "web", (LIVES[job][-1],)) for job in LIVES),
        jobs=tuple(map(_row, LIVES)),
        moves=_moves(),
        places=tuple(PlaceRow(job, "answer", DISCORD if job == DISCORD else WEB, 2.0, "") for job in LIVES),
        accounts=(Account("default", "", 6.6, 1.0, 0, 0), Account("default/standard", "default", 9.0, 1.0, 0, 0)),
        api={
            WEB: finished,
            STEERED: steered,
            DISCORD: finished,
            STOPPED: ApiJob("cancelled"),
            FAILED: ApiJob("failed"),
        },
        posted_counts={DISCORD: 1},
        messages_left={"work": 0, "results": 0},
        references={WISH: (REFERENCE,)},
        setbacks=(Setback(WEB, "w1", "kill", 11.0, 1.9, is_isolated=True),),
        asked_amendments=(AskedAmendment(STEERED, "key-1", (1, 2)), AskedAmendment(STEERED, "key-2", (3,))),
        told_amendments=(ToldAmendment(STEERED, 1, 3),),
        amendments=AMENDMENTS,
        redrawn={STEERED: RedrawnJob({1: REFERENCE, 3: OTHER}, {1: REFERENCE, 3: OTHER})},
    )


def change_job(evidence: Evidence, job: str, **values: object) -> Evidence:
    """The evidence with one row changed."""
    return replace(evidence, jobs=tuple(replace(row, **values) if row.id == job else row for row in evidence.jobs))


def forget_job(evidence: Evidence, job: str) -> Evidence:
    """The evidence of a store without this job."""
    return replace(
        evidence,
        jobs=tuple(row for row in evidence.jobs if row.id != job),
        moves=tuple(move for move in evidence.moves if move.job != job),
        places=tuple(place for place in evidence.places if place.job != job),
        api={name: api_job for name, api_job in evidence.api.items() if name != job},
        accounts=(Account("default", "", 4.6, 1.0, 0, 0),),
    )


def add_moves(evidence: Evidence, *moves: tuple[str, str, str]) -> Evidence:
    last = len(evidence.moves)
    added_moves = tuple(Move(last + n, *each, "") for n, each in enumerate(moves))
    return replace(evidence, moves=evidence.moves + added_moves)


def change_api_job(evidence: Evidence, job: str, api_job: ApiJob) -> Evidence:
    return replace(evidence, api={**evidence.api, job: api_job})


def change_amendment(evidence: Evidence, number: int, **values: object) -> Evidence:
    """The evidence with one row of the table `amendments` changed."""
    rows = (replace(row, **values) if row.number == number else row for row in evidence.amendments)
    return replace(evidence, amendments=tuple(rows))


def list_violations(evidence: Evidence) -> dict[str, list[str]]:
    return {
        verdict.name: [subject for subject, _ in verdict.violations]
        for verdict in check_invariants(evidence)
        if verdict.violations
    }


def test_correct_evidence_violates_no_invariant() -> None:
    assert list_violations(make_sound_evidence()) == {}
    assert all(verdict.case_count for verdict in check_invariants(make_sound_evidence()))


LOST_CHANGE = "acknowledged amendments lost"
DOUBLED_CHANGE = "amendments applied twice"
OTHER_PIXELS = "steered, and other pixels if redrawn"
CASES: dict[str, tuple[Callable[[Evidence], Evidence], dict[str, list[str]]]] = {
    "lost": (lambda old: forget_job(old, WEB), {"lost": [WEB]}),
    "unknown to the API": (
        lambda old: replace(old, api={job: api_job for job, api_job in old.api.items() if job != STOPPED}),
        {"lost": [STOPPED]},
    ),
    "stuck": (
        lambda old: change_job(old, FAILED, state="running"),
        {"stuck": [FAILED], "ended twice, or otherwise than told": [FAILED]},
    ),
    "stuck, and nobody saw more": (
        lambda old: change_api_job(
            replace(
                change_job(old, FAILED, state="queued"),
                moves=old.moves[:-1],
                accepted=tuple(one for one in old.accepted if one.job != FAILED),
            ),
            FAILED,
            ApiJob("queued"),
        ),
        {"stuck": [FAILED], "made twice": [FAILED]},
    ),
    "ended twice": (
        lambda old: add_moves(old, (WEB, "finished", "finished")),
        {"ended twice, or otherwise than told": [WEB]},
    ),
    "began after its end": (
        lambda old: add_moves(old, (WEB, "finished", "running")),
        {"ended twice, or otherwise than told": [WEB]},
    ),
    "a gap in the audit": (
        lambda old: replace(old, moves=tuple(one for one in old.moves if (one.job, one.target) != (WEB, "sent"))),
        {"ended twice, or otherwise than told": [WEB]},
    ),
    "the API said otherwise before": (
        lambda old: replace(old, accepted=(replace(old.accepted[0], reported_ends=("cancelled",)), *old.accepted[1:])),
        {"ended twice, or otherwise than told": [WEB]},
    ),
    "failed by the worker": (
        lambda old: change_job(old, FAILED, blame="worker"),
        {"failed, though nobody's fault": [FAILED]},
    ),
    "failed by us": (lambda old: change_job(old, FAILED, blame="us"), {"failed, though nobody's fault": [FAILED]}),
    "one key made two": (lambda old: change_job(old, WEB, key=f"key-{FAILED}"), {"made twice": [f"key-{FAILED}"]}),
    "nobody was told": (lambda old: replace(old, accepted=old.accepted[1:]), {"made twice": [WEB]}),
    "posted twice": (lambda old: replace(old, posted_counts={DISCORD: 2}), {"not shown, or shown twice": [DISCORD]}),
    "not posted": (lambda old: replace(old, posted_counts={}), {"not shown, or shown twice": [DISCORD]}),
    "its last word is owed": (
        lambda old: replace(old, places=tuple(replace(place, delivered=None) for place in old.places)),
        {"not shown, or shown twice": [DISCORD]},
    ),
    "a picture is missing": (
        lambda old: change_api_job(old, WEB, ApiJob("finished")),
        {"pictures missing or spoilt": [WEB], "other bytes than undisturbed": [WEB]},
    ),
    "a picture is spoilt": (
        lambda old: change_api_job(old, WEB, ApiJob("finished", ((1, REFERENCE, OTHER),))),
        {"pictures missing or spoilt": [WEB], "other bytes than undisturbed": [WEB]},
    ),
    "another picture": (
        lambda old: change_api_job(old, WEB, ApiJob("finished", ((1, OTHER, OTHER),))),
        {"other bytes than undisturbed": [WEB]},
    ),
    "finished for nothing": (lambda old: change_job(old, WEB, charged=0.0), {"charged wrongly": [WEB]}),
    "charged twice": (lambda old: change_job(old, WEB, charged=4.0), {"charged wrongly": [WEB]}),
    "failed and charged": (lambda old: change_job(old, FAILED, charged=2.0), {"charged wrongly": [FAILED]}),
    "a member's fault is charged": (lambda old: change_job(old, FAILED, blame="member"), {"charged wrongly": [FAILED]}),
    "more steps than it ran": (lambda old: change_job(old, STOPPED, charged=0.8), {"charged wrongly": [STOPPED]}),
    "billed twice": (
        lambda old: replace(old, accounts=(replace(old.accounts[0], virtual=8.5),)),
        {"accounts that do not add up": ["default"]},
    ),
    "still active": (
        lambda old: replace(old, accounts=(replace(old.accounts[0], active=1),)),
        {"accounts that do not add up": ["default"]},
    ),
    "a picture of a steered job is missing": (
        lambda old: change_api_job(old, STEERED, ApiJob("finished", ((1, OTHER, OTHER),))),
        {"pictures missing or spoilt": [STEERED]},
    ),
    "a steered job is charged half": (
        lambda old: change_job(old, STEERED, charged=1.0),
        {"charged wrongly": [STEERED]},
    ),
    "an accepted change is forgotten": (
        lambda old: replace(old, amendments=old.amendments[:1] + old.amendments[2:]),
        {LOST_CHANGE: [STEERED], DOUBLED_CHANGE: [STEERED]},
    ),
    "a change that was told as made is refused": (
        lambda old: change_amendment(change_job(old, STEERED, amendments=HELD[1:]), 1, state="refused", step=None),
        {LOST_CHANGE: [STEERED]},
    ),
    "a change that was told as made holds from another step on": (
        lambda old: change_amendment(
            change_job(old, STEERED, amendments=(replace(HELD[0], step=4), HELD[1])), 1, step=4
        ),
        {LOST_CHANGE: [STEERED]},
    ),
    "the recipe lacks a change that is made": (
        lambda old: change_job(old, STEERED, amendments=HELD[:1]),
        {LOST_CHANGE: [STEERED]},
    ),
    "the recipe holds another change": (
        lambda old: change_job(old, STEERED, amendments=(HELD[0], replace(HELD[1], change=BLUE))),
        {LOST_CHANGE: [STEERED]},
    ),
    "the recipe holds a change twice": (
        lambda old: change_job(old, STEERED, amendments=(*HELD, HELD[1])),
        {DOUBLED_CHANGE: [STEERED]},
    ),
    "the recipe holds a refused change": (
        lambda old: change_job(old, STEERED, amendments=(*HELD, RecipeAmendment(2, 6, BLUE))),
        {DOUBLED_CHANGE: [STEERED]},
    ),
    "the recipe holds what nobody asked for": (
        lambda old: change_job(old, STEERED, amendments=(*HELD, RecipeAmendment(9, 6, BLUE))),
        {DOUBLED_CHANGE: [STEERED]},
    ),
    "a repeated request made more": (
        lambda old: replace(
            old, amendments=(*old.amendments, AmendmentRow(STEERED, 4, "hash-2", "refused", None, "", SPLIT))
        ),
        {DOUBLED_CHANGE: [STEERED]},
    ),
    "a request made what nobody was told of": (
        lambda old: replace(
            old, amendments=(*old.amendments, AmendmentRow(STEERED, 4, None, "refused", None, "", SPLIT))
        ),
        {DOUBLED_CHANGE: [STEERED]},
    ),
    "a change was told as made at two steps": (
        lambda old: replace(old, told_amendments=(*old.told_amendments, ToldAmendment(STEERED, 1, 4))),
        {LOST_CHANGE: [STEERED], DOUBLED_CHANGE: [STEERED]},
    ),
    "a steered picture comes out otherwise": (
        lambda old: replace(old, redrawn={STEERED: RedrawnJob({1: REFERENCE, 3: OTHER}, {1: OTHER, 3: OTHER})}),
        {OTHER_PIXELS: [STEERED]},
    ),
    "a steered picture does not come out": (
        lambda old: replace(old, redrawn={STEERED: RedrawnJob({1: REFERENCE, 3: OTHER}, {1: REFERENCE})}),
        {OTHER_PIXELS: [STEERED]},
    ),
    "work is left": (lambda old: replace(old, messages_left={"work": 1}), {"left in the broker": ["work"]}),
    "far back": (
        lambda old: replace(old, setbacks=(replace(old.setbacks[0], repeated_seconds=30.0),)),
        {"set back further than its snapshot": [WEB]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_named(case: str) -> None:
    change, expected = CASES[case]
    assert list_violations(change(make_sound_evidence())) == expected


def test_a_job_cancelled_before_it_began_costs_nothing() -> None:
    evidence = change_job(make_sound_evidence(), FAILED, state="cancelled", charged=0.1)
    evidence = replace(
        evidence,
        moves=tuple(replace(one, target="cancelled") if one.target == "failed" else one for one in evidence.moves),
    )
    assert list_violations(evidence)["charged wrongly"] == [FAILED]


def test_a_job_cancelled_while_requeued_costs_its_known_steps() -> None:
    last = make_sound_evidence().moves[-3]
    assert (last.job, last.target) == (STOPPED, "cancelled")
    requeued_move = replace(last, source="running", target="queued", why="w1 lost it")
    cancelled_move = replace(last, id=requeued_move.id + 1, source="queued", why="wished")
    later_moves = tuple(replace(move, id=move.id + 1) for move in make_sound_evidence().moves[-2:])
    evidence = replace(
        make_sound_evidence(), moves=(*make_sound_evidence().moves[:-3], requeued_move, cancelled_move, *later_moves)
    )
    assert list_violations(evidence) == {}
    for charged in (0.4, 0.8):
        assert list_violations(change_job(evidence, STOPPED, charged=charged))["charged wrongly"] == [STOPPED]


def test_the_bound_follows_the_rule_of_three() -> None:
    (lost_verdict, *_) = check_invariants(make_sound_evidence())
    assert format_bound(replace(lost_verdict, case_count=300)) == "95 %: below 1 %"
    assert format_bound(replace(lost_verdict, case_count=2)) == "too few to say"
    assert format_bound(replace(lost_verdict, violations=((WEB, "x"),))) == ""


def test_quantiles_are_observed_values() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_a_job_that_lost_three_workers_may_not_fail_either() -> None:
    evidence = change_job(make_sound_evidence(), FAILED, blame="worker")
    claims = tuple(Move(100 + epoch, FAILED, "running", "running", "w", epoch) for epoch in (7, 7, 8, 9))
    for workers, violation_count in ((claims[:3], 1), (claims, 1)):
        verdicts = check_invariants(replace(evidence, moves=(*evidence.moves, *workers)))
        assert [len(one.violations) for one in verdicts if one.name == "failed, though nobody's fault"] == [
            violation_count
        ]


def test_bytes_are_compared_only_where_the_engine_must_repeat_them() -> None:
    other = change_api_job(make_sound_evidence(), WEB, ApiJob("finished", ((1, OTHER, OTHER),)))
    counts = {
        verdict.name: len(verdict.violations)
        for verdict in check_invariants(replace(other, repeatable_front_ends=("discord",)))
    }
    assert counts["other bytes than undisturbed"] == 0
    counts = {
        verdict.name: len(verdict.violations)
        for verdict in check_invariants(replace(other, repeatable_front_ends=("web",)))
    }
    assert counts["other bytes than undisturbed"] == 1
