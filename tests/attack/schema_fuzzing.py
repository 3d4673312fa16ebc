"""Schemathesis against the served openapi.json: requests that fit the schemas, and ones that break them.

A process of its own. Knows its command line and its reports.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from attack.room import Room
from attack.visitors import Visitor

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"
# streams never end, who has signed out asks for nothing more, and requests of other APIs wait for their pictures
LEFT_OUT = "events$|/sign-out|^/v1/images/|^/sdapi/v1/(txt2img|img2img|extra-|interrogate)"


async def fuzz_schema(room: Room, visitor: Visitor, folder: Path, examples: int, seconds: int, seed: int) -> list[str]:
    """Counts every answer; returns the operations whose answers are not as described, or why it did not run."""
    har, report = folder / "schema.har", folder / "schema.json"
    options = ["run", f"{room.url}/api/openapi.json", "--max-examples", str(examples), "--max-time", str(seconds)]
    options += ["--phases", "coverage,fuzzing", "--exclude-path-regex", LEFT_OUT, "--checks", CHECKS, "--no-shrink"]
    options += ["--seed", str(seed), "--request-timeout", "20", "--suppress-health-check", "all", "--warnings", "off"]
    options += ["--report", "har,json", "--report-har-path", str(har), "--report-json-path", str(report)]
    options += [part for name, value in visitor.headers.items() for part in ("--header", f"{name}: {value}")]
    with (folder / "schema.txt").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", *options, cwd=folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=output, stderr=output,
        )  # fmt: skip
        try:
            await asyncio.wait_for(process.wait(), seconds * 2 + 60)
        finally:
            if process.returncode is None:
                process.kill()
    if not har.exists():
        return [f"schemathesis ended with {process.returncode}: {(folder / 'schema.txt').read_text()[-300:]}"]
    for entry in json.loads(har.read_text())["log"]["entries"]:
        status = int(entry["response"]["status"])
        visitor.tally.count(max(status, 0), f"{entry['request']['method']} {entry['request']['url'][:200]} (schema)")
    return [json.dumps(failure)[:400] for failure in json.loads(report.read_text())["failures"]]
