"""A worker's log with DARKROOM_LOG_FORMAT=json: one object per line, and each line about a job names the job."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from engine.contract import JobFinished
from engine.worker.simulated_model import NAME
from shared.worker_harness import JOB, make_job, wait_until


@pytest.mark.slow
@pytest.mark.asyncio
async def test_every_log_line_is_json_and_names_its_worker_and_job(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with Broker(tmp_path / "nats") as broker:
        bot = await Bus.connect(broker.url, broker.token)
        await bot.declare()
        await bot.watch_workers()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine",
                "serve",
                "--nats",
                broker.url,
                "--name",
                "shed",
                "--simulated",
                env={**os.environ, "DARKROOM_NATS_TOKEN": broker.token, "DARKROOM_LOG_FORMAT": "json"},
                stderr=output,
            )
        try:
            await wait_until(lambda: "shed" in bot.workers or process.returncode is not None, 120)
            await bot.dispatch(make_job(model=NAME, sampler="ddpm", bucket=None))
            async for delivered in bot.consume_results():
                await delivered.ack()
                if isinstance(delivered.value, JobFinished):
                    break
        finally:
            process.terminate()
            await process.wait()
            await bot.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["worker"] for line in lines} == {"shed"}
    messages = [line["message"] for line in lines if line.get("job") == JOB]
    assert [message.removeprefix(f"job {JOB}").split()[0] for message in messages] == ["begins", ":"]
    assert all(line.get("job") == JOB for line in lines if JOB in line["message"])


def test_an_unknown_log_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "engine", "serve", "--nats", "nats://127.0.0.1:1"],
        env={**os.environ, "DARKROOM_LOG_FORMAT": "xml"},
        capture_output=True,
        text=True,
        check=False,
    )
    sentence = "DARKROOM_LOG_FORMAT is not valid: input should be 'text' or 'json'.\n"
    assert (completed.returncode, completed.stderr) == (2, sentence)
