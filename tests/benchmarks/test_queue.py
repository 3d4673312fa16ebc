"""Short runs of `darkroom bench queue` and `scale` with real apps, brokers and simulated workers."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks.queue import command, failover, figures, job_picking, member_waits, preview_delivery, worker_scaling
from benchmarks.queue.system import private_postgres
from benchmarks.queue.system.installation import cpu_seconds
from benchmarks.queue.system.private_postgres import run_postgres as private_postgresql

pytestmark = pytest.mark.may_block("it opens folders and starts processes, as a command does")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_queue_bench_measures_every_figure_in_its_own_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_waits, "QUICK_ROUNDS", 2)
    monkeypatch.setattr(job_picking, "QUICK_SIZES", (100, 1_000))
    monkeypatch.setattr(job_picking, "QUICK_PICKS", 10)
    monkeypatch.setattr(figures, "GOALS", {**figures.GOALS, job_picking.P50_NAME.format(100, 10): (None, "ms")})
    rows = await command.measure(["SQLite"], ["latency", "picking"], quick=True)
    assert [each.name.rpartition(" (")[2] for each in rows] == ["SQLite)"] * len(rows)
    assert all(each.figure is not None for each in rows)
    exponents = [
        each for each in rows if each.name.startswith(job_picking.EXPONENT_NAME)
    ]  # below 0 where nothing grows
    assert len(exponents) == 1
    assert all(each.figure >= 0 for each in rows if each.figure is not None and each not in exponents)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["delivery", "admitting", "fairness", "handing"])
async def test_every_part_measures_all_its_samples(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_delivery, "PAGE_COUNT", 5)
    monkeypatch.setattr(preview_delivery, "QUICK_FRAMES", 12)
    monkeypatch.setattr(job_picking, "QUICK_SECONDS", 0.5)
    monkeypatch.setattr(job_picking, "USERS", 10)
    for name, value in (
        ("LONG_PROMPT", member_waits.SHORT_PROMPT),
        ("FLOOD_JOBS", 20),
        ("JOBS_PER_USER", 6),
        ("QUICK_SECONDS", 4.0),
    ):
        monkeypatch.setattr(member_waits, name, value)
    rows = await command.measure(["SQLite"], [part], quick=True)
    assert rows
    assert [each.name for each in rows if each.figure is None or each.samples < each.planned] == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_scale_bench_measures_one_and_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_scaling, "WORKERS", (1, 2))
    monkeypatch.setattr(worker_scaling, "ROW_MS", 10.0)
    monkeypatch.setattr(worker_scaling, "QUICK_SECONDS", 4.0)
    monkeypatch.setattr(worker_scaling, "WARMUP_SECONDS", 0.2)
    rows = await worker_scaling.measure(quick=True)
    names = ["jobs a second, 1 worker", "jobs a second, 2 workers", "efficiency of 2 workers"]
    assert [each.name for each in rows] == names
    assert all("the broker" in each.note for each in rows[:2])
    assert [each.name for each in rows if each.figure is None or each.samples < each.planned] == []


def test_without_postgresql_its_rows_do_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(private_postgres, "find_programs", lambda: None)
    assert command.run(["--json", "--quick", "--on", "PostgreSQL", "--only", "handing"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in rows] == [f"{name} (PostgreSQL)" for name in failover.ROW_NAMES]
    assert {(each["pass"], each["note"]) for each in rows} == {(False, "No PostgreSQL is installed here.")}


@pytest.mark.asyncio
async def test_a_private_postgresql_starts_and_removes_its_folder() -> None:
    async with private_postgresql() as url:
        folder = Path(unquote(url.partition("host=")[2].partition("&")[0]))
        reader, writer = await asyncio.open_unix_connection(str(folder / f".s.PGSQL.{private_postgres.PORT}"))
        writer.close()
        assert not reader.at_eof()
    assert not folder.exists()


def test_cpu_seconds_skips_a_process_without_an_id() -> None:
    assert set(cpu_seconds({"me": os.getpid(), "nobody": None})) == {"me"}
