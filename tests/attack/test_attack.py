"""A short campaign against real processes, and checks that a campaign sees what is broken."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from pathlib import Path

import pytest

from tools.attack.campaign import Evidence
from tools.attack.forgeries import forge_cookies
from tools.attack.report import build_rows
from tools.attack.room import ROOT
from tools.attack.room_watch import find_log_damage, find_quantile
from tools.attack.route_matrix import Caller, Matrix
from tools.attack.route_table import ROUTES, Route
from tools.attack.visitors import Answer, Tally, Visitor

# Not of these: speed and memory, which another program on this machine changes.
MUST_HOLD = (
    "server errors",
    "rights gained",
    "rights of the rules that were refused",
    "routes without a rule",
    "cells of route × role × ownership",
    "requests made from openapi.json",
    "answers unlike openapi.json",
    "subjects that the hostile worker tried",
    "subjects gained",
    "malformed messages sent",
    "slow bodies still awaited",
    "streams open again after the flood",
    "bot and worker still run",
    "an honest job ends afterwards",
    "damage to the logs",
    "stages that broke off",
)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(600)
async def test_a_short_campaign_gains_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.attack", "--quick", "--seed", "7", "--json", "--out", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert output, errors.decode()
    rows = {row["name"]: row for row in json.loads(output)}
    assert [rows[name] for name in MUST_HOLD if not rows[name]["pass"]] == []
    assert process.returncode == (0 if all(row["pass"] for row in rows.values()) else 1)


def test_a_campaign_that_saw_nothing_does_not_pass() -> None:
    rows = {row.name: row for row in build_rows(Evidence())}
    assert not rows["bot and worker still run"].meets_goal
    assert not rows["answers unlike openapi.json"].meets_goal
    assert not rows["cells of route × role × ownership"].meets_goal


def test_every_broken_promise_has_a_row() -> None:
    tally = Tally()
    tally.count(200, "GET /")
    tally.count(500, "GET /api/jobs")
    for kind in (tally.gained_rights, tally.open_room_rights, tally.refused_rights, tally.problems):
        kind.append("something")
    rows = {row.name: row for row in build_rows(Evidence(tally, missing_rules=["GET /new"]))}
    assert rows["requests tried"].figure == 2
    for name in (
        "server errors",
        "rights gained",
        "rights gained from an open room and its days",
        "stages that broke off",
        "rights of the rules that were refused",
        "routes without a rule",
    ):
        assert rows[name].figure == 1, name
        assert not rows[name].meets_goal, name


def test_no_forged_cookie_is_the_valid_one() -> None:
    valid = "darkroom=guest.0123456789abcdef." + "5a" * 32
    forged = list(forge_cookies(random.Random(1), valid, 200))
    assert len(forged) > 150
    assert valid not in forged


def test_a_route_without_a_rule_is_found() -> None:
    matrix = Matrix([], {}, Tally())
    paths: dict[str, dict[str, object]] = {}
    for route in ROUTES:
        if route.path != "/static":
            paths.setdefault(route.path, {})[route.method.lower()] = {}
    matrix.compare_routes({"paths": paths})
    assert matrix.missing_rules == []
    matrix.compare_routes({"paths": {**paths, "/api/new": {"post": {}}}})
    assert matrix.missing_rules == ["POST /api/new"]


class OpenDoor(Visitor):
    """A visitor whom the room lets do everything."""

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        return Answer(200, b"{}")


@pytest.mark.asyncio
async def test_the_matrix_finds_rights_beyond_the_rules() -> None:
    jobs = {"another's": "A", "private": "B", "elsewhere": "C"}
    gained: dict[str, list[str]] = {}
    for rank in ("nobody", "visitor", "operator"):
        tally = Tally()
        await Matrix([Caller(OpenDoor(rank, "", tally), rank)], jobs, tally).run()
        gained[rank] = tally.gained_rights
    closed = [route for route in ROUTES if route.who != "everybody" or route.path == "/api/entrance"]
    assert len(gained["nobody"]) == sum(3 if "{id}" in route.path else 1 for route in closed)
    assert any("DELETE /api/jobs/{id}, job another's" in one for one in gained["visitor"])
    assert any("GET /api/jobs/{id}, job private" in one for one in gained["visitor"])
    assert not any("vary/{n}, job another's" in one for one in gained["visitor"])
    assert any("vary/{n}, job elsewhere" in one for one in gained["operator"])
    assert not any("DELETE /api/jobs/{id}, job private" in one for one in gained["operator"])
    assert any("wait-reason" in one for one in gained["operator"])


@pytest.mark.asyncio
async def test_the_matrix_finds_a_hidden_job_that_can_be_told_from_an_unknown_one() -> None:
    class Talker(Visitor):
        async def send(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
            return Answer(403 if "/B" in path else 404, b"{}")

    tally = Tally()
    route = Route("GET", "/api/jobs/{id}", "visitor", "-")
    await Matrix([Caller(Talker("a guest", "", tally), "visitor")], {"private": "B"}, tally, [route]).run()
    assert [one.startswith("a guest can tell that private exists") for one in tally.gained_rights] == [True]


def test_damage_to_the_logs_is_found(tmp_path: Path) -> None:
    log = tmp_path / "darkroom.log"
    log.write_text("the first line\nmore\n")
    log.chmod(0o600)
    assert find_log_damage(tmp_path, "the first line", ["secret"]) == []
    log.write_text("other\nforged line\na secret\n")
    log.chmod(0o644)
    assert len(find_log_damage(tmp_path, "the first line", ["secret"])) == 4


def test_the_quantile_is_one_of_the_values() -> None:
    assert find_quantile([], 0.99) is None
    assert find_quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert find_quantile([float(k) for k in range(200)], 0.99) == 198.0


def test_the_security_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    names = set(re.findall(r"`((?:[\w-]+/)*test_\w+\.py)`", page))
    assert len(names) > 20
    assert [name for name in sorted(names) if not (ROOT / "tests" / name).is_file()] == []
    assert [f"## V{number} " in page for number in range(1, 15)] == [True] * 14
