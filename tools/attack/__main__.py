"""`python -m tools.attack`: attacks a Darkroom that it starts on this machine, and says what held.

Exit code 0: everything held. 1: something did not. 2: the command line does not allow the campaign. `--quick` runs a
twentieth of it. The folder with the logs stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.figure_row import format_json, format_table
from tools.attack.campaign import Evidence, Plan, run_campaign
from tools.attack.report import build_rows, list_details

NEEDED_DESCRIPTORS = 7000


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="attack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of every attack")
    parser.add_argument("--only", default="", help="stages, with commas, as hold_half_open; the rows of others fail")
    parser.add_argument("--seed", type=int, default=None, help="draws the attacks (a random one)")
    parser.add_argument("--out", type=Path, default=Path("out/attack"), help="where the folders go")
    parser.add_argument("--json", action="store_true", help="rows of JSON on the standard output")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    if not raise_descriptor_limit() and not options.quick:
        print(f"attack: {NEEDED_DESCRIPTORS} descriptors are needed: `ulimit -n`, or --quick", file=sys.stderr)
        return 2
    plan = Plan(seed, options.quick, tuple(filter(None, options.only.split(","))))
    folder = options.out.absolute() / f"{seed}-{time.strftime('%H%M%S')}"
    try:
        evidence = asyncio.run(_run_until_over(plan, folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"attack: stopped; kept: {folder}", file=sys.stderr)
        return 130
    rows = build_rows(evidence)
    (folder / "rows.json").write_text(format_json(rows))
    (folder / "details.json").write_text(json.dumps(list_details(evidence), indent=1))
    print(format_json(rows) if options.json else format_table(rows))
    print(f"\nseed {seed}; kept: {folder}", file=sys.stderr)
    return 0 if all(row.meets_goal for row in rows) else 1


def raise_descriptor_limit() -> bool:
    """Allows this process as many connections as the system lets it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = 20_000 if hard == resource.RLIM_INFINITY else min(hard, 20_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit >= NEEDED_DESCRIPTORS


async def _run_until_over(plan: Plan, folder: Path) -> Evidence:
    """Runs the campaign. SIGTERM ends it like Ctrl-C, and leaves no process behind."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_campaign(plan, folder, lambda text: print(text, file=sys.stderr, flush=True))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("engine").setLevel(logging.CRITICAL)  # the broker refuses much, and the client says so
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    sys.exit(main())
