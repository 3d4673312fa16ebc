"""A short campaign with a fixed seed: real processes, one fault of each quick kind, every invariant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.chaos.campaign import Plan, run_campaign
from tools.chaos.installation import Build
from tools.chaos.report import format_rows

KINDS = ("kill-worker", "kill-bot", "kill-broker", "lose-store", "repeat", "lie")


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(700)
async def test_a_campaign_with_faults_breaks_no_invariant(tmp_path: Path) -> None:
    """The seed draws a lie, a killed worker, repeated messages, a lost store and a killed bot, over three seconds."""
    plan = Plan(
        seed=334,
        fault_count=5,
        build=Build(row_ms=2.0),
        gap=0.8,
        steps=(40,),
        members=2,
        discord_members=2,
        kinds=KINDS,
        settle_timeout=420.0,
    )
    outcome = await run_campaign(plan, tmp_path, print)
    assert [verdict for verdict in outcome.verdicts if not verdict.is_satisfied] == [], "\n".join(format_rows(outcome))
    assert outcome.is_settled
    assert sorted(fault.kind for fault in outcome.injected) == [
        "kill-bot",
        "kill-worker",
        "lie",
        "lose-store",
        "repeat",
    ]
    assert len(outcome.evidence.accepted) > len(plan.make_job_specs())
