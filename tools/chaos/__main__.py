"""`python -m tools.chaos --kills 300`: injects faults into a whole Darkroom, checks invariants.

Exit code 0: every invariant holds. 1: one is broken. 2: the command line or this machine does not allow the campaign.
The folder with logs, timeline and accepted jobs stays. The same seed draws the same faults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.chaos.campaign import Plan, run_campaign
from tools.chaos.faults import WEIGHTS
from tools.chaos.installation import Build
from tools.chaos.report import Outcome, as_json, format_rows

# seconds between two faults: a real engine takes long to start
REAL_GAP = 8.0
GAP = 2.5
REAL_STEPS = (15, 45)
STEPS = (20, 60, 150)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many faults are injected; about half of them kill")
    parser.add_argument("--engine", choices=("simulated", "real"), default="simulated")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--standby", action="store_true", help="a second bot waits for the first one to end")
    parser.add_argument("--seed", type=int, default=None, help="draws the faults (a random one)")
    parser.add_argument("--gap", type=float, default=None, help="seconds between two faults, on average")
    parser.add_argument("--only", default="", help=f"kinds of faults, with commas: {', '.join(WEIGHTS)}")
    parser.add_argument("--without", default="", help="kinds of faults that are left out")
    parser.add_argument("--settling", type=float, default=240.0, help="seconds for everything to end at the end")
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="where the folders go")
    parser.add_argument("--json", action="store_true", help="JSON on the standard output, all else on the error output")
    return parser


def make_plan(options: argparse.Namespace) -> Plan:
    """Builds the plan. Raises ValueError with a sentence for the user."""
    only_kinds, excluded_kinds = (tuple(filter(None, text.split(","))) for text in (options.only, options.without))
    if unknown_kinds := sorted({*only_kinds, *excluded_kinds} - set(WEIGHTS)):
        raise ValueError(f"There is no fault {unknown_kinds[0]}: {', '.join(WEIGHTS)}.")
    if options.kills < 1 or options.workers < 1:
        raise ValueError("At least one fault and one worker are needed.")
    real = options.engine == "real"
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    build = Build(options.engine, options.database, options.workers, standby=options.standby)
    gap = options.gap or (REAL_GAP if real else GAP)
    steps = REAL_STEPS if real else STEPS
    return Plan(
        seed,
        options.kills,
        build,
        gap,
        steps,
        members=3 if real else 6,
        discord_members=2 if real else 4,
        kinds=only_kinds,
        excluded_kinds=excluded_kinds,
        settle_timeout=options.settling,
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = _make_parser().parse_args(argv)
    try:
        plan = make_plan(options)
    except ValueError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    folder = options.out.absolute() / f"{plan.seed}-{time.strftime('%H%M%S')}"
    try:
        outcome = asyncio.run(_run_until_over(plan, folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"chaos: stopped; kept: {folder}", file=sys.stderr)
        return 130
    (folder / "outcome.json").write_text(json.dumps(as_json(outcome), indent=1))
    _print_outcome(outcome, folder, as_text=not options.json)
    return 0 if outcome.is_satisfied else 1


async def _run_until_over(plan: Plan, folder: Path) -> Outcome:
    """Runs the campaign. SIGTERM ends it like Ctrl-C, and leaves no process and no mount behind."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_campaign(plan, folder, lambda text: print(text, file=sys.stderr, flush=True))


def _print_outcome(outcome: Outcome, folder: Path, *, as_text: bool) -> None:
    lines = format_rows(outcome)
    (folder / "outcome.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), file=sys.stdout if as_text else sys.stderr)
    if not as_text:
        print(json.dumps(as_json(outcome)))
    print(f"\nkept: {folder}", file=sys.stderr)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("engine").setLevel(logging.CRITICAL)  # the campaign's own clients see every outage
    sys.exit(main())
