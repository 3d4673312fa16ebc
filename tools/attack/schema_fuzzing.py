"""Schemathesis against the served openapi.json: requests that fit the schemas, ones that break them, and sequences.

`python -m tools.attack.schema_fuzzing` runs it alone; `make attack` runs it after other attacks.
Schemathesis is a process of its own: this module knows its command line and its reports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.web.auth import terminal_key
from tools.attack.room import Room, start_room
from tools.attack.visitors import Tally, Visitor

CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# streams never end, and who has signed out asks for nothing more
LEFT_OUT = "events$|/sign-out"
# `DELETE` of a job cancels it: the job stays, with its state. Wrong keys are guesses: after a few, the next gets 429
# whatever it asks; `route_matrix` and `forgeries` ask for everything without a key and with wrong ones.
LEFT_OUT_CHECKS = "use_after_free,ignored_auth"
PHASES = ("examples", "coverage", "fuzzing", "stateful")


@dataclass(frozen=True)
class SchemaCampaign:
    """How much is tried: examples of each operation, and seconds in all, of which a slow machine needs more."""

    examples: int
    seconds: int
    seed: int
    phases: Sequence[str] = PHASES


async def fuzz_schema(room: Room, tally: Tally, folder: Path, campaign: SchemaCampaign) -> list[str]:
    """Asks as the terminal, and counts every answer.

    Returns the operations whose answers are not as described, or why it did not run.
    """
    har = folder / "schema.har"
    report = folder / "schema.json"
    description = folder / "openapi.json"
    visitor = terminal_of(room, tally)
    description.write_bytes((await visitor.send_patiently("GET", "/openapi.json")).body)
    options = ["--config-file", str(CONFIG), "run", str(description), "--url", room.url]
    options += ["--exclude-path-regex", LEFT_OUT]
    options += ["--max-examples", str(campaign.examples), "--max-time", str(campaign.seconds)]
    options += ["--phases", ",".join(campaign.phases)]
    options += ["--checks", "all", "--exclude-checks", LEFT_OUT_CHECKS]
    options += ["--continue-on-failure", "--seed", str(campaign.seed)]
    options += ["--no-shrink", "--request-timeout", "20", "--suppress-health-check", "all", "--warnings", "off"]
    options += ["--report", "har,json", "--report-har-path", str(har), "--report-json-path", str(report)]
    key = visitor.headers["Authorization"].partition(" ")[2]
    env = os.environ | {"SCHEMA_KEY": key, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    with (folder / "schema.txt").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "schemathesis.cli",
            *options,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
        )
        try:
            await asyncio.wait_for(process.wait(), campaign.seconds * 2 + 60)
        finally:
            if process.returncode is None:
                process.kill()
    if not har.exists():
        return [f"schemathesis ended with {process.returncode}: {(folder / 'schema.txt').read_text()[-300:]}"]
    for entry in json.loads(har.read_text())["log"]["entries"]:
        status = int(entry["response"]["status"])
        tally.count(max(status, 0), f"{entry['request']['method']} {entry['request']['url'][:200]} (schema)")
    failures = [json.dumps(failure)[:400] for failure in json.loads(report.read_text())["failures"]]
    return failures or ([f"schemathesis ended with {process.returncode}"] if process.returncode else [])


def terminal_of(room: Room, tally: Tally) -> Visitor:
    """The visitor with the terminal's key, to whom every route is open."""
    return Visitor("the terminal", room.url, tally, {"Authorization": f"Bearer {terminal_key(room.data)}"})


async def run_alone(campaign: SchemaCampaign, folder: Path) -> tuple[Tally, list[str]]:
    """Starts a room that others can reach, with one finished job, and asks it; returns the answers and the failures."""
    tally = Tally()
    async with start_room(folder, is_open=False) as room:
        await terminal_of(room, tally).draw()
        return tally, await fuzz_schema(room, tally, folder, campaign)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="schema_fuzzing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=100, help="of each operation")
    parser.add_argument("--seconds", type=int, default=600, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="schema-"))
    campaign = SchemaCampaign(options.examples, options.seconds, options.seed)
    tally, failures = asyncio.run(run_alone(campaign, folder))
    print("\n".join(failures))
    errors = len(tally.server_errors)
    print(f"{tally.requests} requests, {errors} server errors, {len(failures)} failures; kept: {folder}")
    return 1 if failures or tally.server_errors else 0


if __name__ == "__main__":
    sys.exit(main())
