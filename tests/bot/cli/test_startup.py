"""`darkroom up`: its output while the engine warms up, and its checks before it starts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from bot.__main__ import app
from bot.app.settings import load_settings
from bot.cli.doctor import EngineCheck, check_engine
from bot.cli.options import EngineOptions, load_engine
from bot.cli.up import startup
from bot.cli.up.engine_process import EngineProcess
from bot.cli.up.startup import (
    LOCAL_WORKER,
    check_classifier_folder,
    format_welcome,
    is_shared,
    print_load_progress,
    print_when_warm,
    run_bot,
    run_until_stopped,
)
from bot.domain.errors import UserError
from engine.contract import ModelProfile, ModelProgress, Presence
from engine.process.backend_kinds import list_forms, load_backend_kinds

pytestmark = pytest.mark.asyncio
WARM = ModelProfile(
    name="embedded",
    revision="1",
    dtype="float32",
    size=64,
    multiple=8,
    max_pixels=256 * 256,
    tokens=24,
    steps=24,
    sampler="ddpm",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=3.0,
    row_ms=1.0,
    encode_ms=1.0,
    decode_ms=1.0,
)
LIVES = "import time; time.sleep(60)"
FAILS = "raise SystemExit('no weights')"


async def _read_output_while_warming(
    code: str,
    log: Path,
    workers: dict[str, Presence],
    capsys: pytest.CaptureFixture[str],
    presence: Presence | None = None,
) -> str:
    """Returns the output once the engine is warm; `presence` announces itself meanwhile."""
    warm_event = asyncio.Event()
    warm_event.set()
    async with EngineProcess([sys.executable, "-c", code], os.environ, log) as engine_process, asyncio.timeout(20):
        report_task = asyncio.create_task(print_when_warm(lambda: workers, engine_process, warm_event))
        await asyncio.sleep(0)
        assert warm_event.is_set()
        if presence is not None:
            workers[presence.worker] = presence
        await report_task
    assert not warm_event.is_set()
    return capsys.readouterr().out


async def test_a_signal_during_the_start_counts_though_a_library_swallows_the_cancellation() -> None:
    events = list[str]()

    async def start_parts(stack: AsyncExitStack) -> None:
        stack.callback(events.append, "stopped")
        os.kill(os.getpid(), signal.SIGTERM)
        with suppress(asyncio.CancelledError):  # as `asyncio.wait_for` did before Python 3.12
            await asyncio.sleep(60)
        events.append("started")

    task = asyncio.create_task(run_until_stopped(start_parts))
    ended_tasks, _ = await asyncio.wait([task], timeout=20)  # a timeout would cancel it, and so end it after all
    assert ended_tasks == {task}
    await task
    assert events == ["started", "stopped"]


async def test_the_engine_warms_up_until_it_announces_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    presence = Presence(
        worker=LOCAL_WORKER, pools=("default",), models=(WARM,), device="paper", rows=1, free=1, software_build="test"
    )
    assert "embedded is loaded: paper" in await _read_output_while_warming(
        LIVES, tmp_path / "engine.log", {}, capsys, presence
    )


async def test_each_model_that_the_engine_loads_is_reported_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.cli.up.startup.POLL_SECONDS", 0.0)
    load = ModelProgress(model="sd15", phase="load", size=2 * 10**9)
    sentences = list[str]()
    stages = iter([None, load, replace(load, phase="measure"), replace(load, phase="ready")])
    end_event = asyncio.Event()

    def progress(name: str) -> ModelProgress | None:
        assert name == LOCAL_WORKER
        try:
            return next(stages)
        except StopIteration:
            end_event.set()
            return None

    task = asyncio.create_task(print_load_progress(progress, sentences.append))
    await asyncio.wait_for(end_event.wait(), 10)
    task.cancel()
    assert sentences == ["loading sd15, 2 GB", "measuring sd15", "sd15 is ready after 1 s"]


async def test_the_engine_warms_up_until_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = await _read_output_while_warming(FAILS, tmp_path / "engine.log", {}, capsys)
    assert "The engine stopped while it started" in output


async def test_a_missing_picture_check_is_refused_at_once(tmp_path: Path) -> None:
    await asyncio.to_thread(_check_picture_check, tmp_path)


def _check_picture_check(tmp_path: Path) -> None:
    check_classifier_folder(load_settings(data=tmp_path))
    with pytest.raises(UserError, match="is no folder with a model"):
        check_classifier_folder(load_settings(data=tmp_path, picture_check=tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_classifier_folder(load_settings(data=tmp_path, picture_check=tmp_path))


async def test_a_model_loaded_on_demand_is_not_called_warm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = replace(WARM, name="large", loaded=False)
    presence = Presence(
        worker=LOCAL_WORKER,
        pools=("default",),
        models=(WARM, large),
        device="paper",
        rows=1,
        free=1,
        software_build="test",
    )
    output = await _read_output_while_warming(LIVES, tmp_path / "engine.log", {}, capsys, presence)
    assert "large is offered, and loaded when somebody asks for it." in output
    assert "large is loaded" not in output


@pytest.mark.parametrize("memory", ["much", "0"])
async def test_an_invalid_memory_size_is_refused_at_once(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(data=tmp_path)
    with pytest.raises(UserError, match=r"--memory is not valid: a size such as 12GB is needed\."):
        run_bot(settings, ("added",), engine=EngineOptions(memory), open_browser=False)
    monkeypatch.setenv("DARKROOM_MEMORY", memory)
    with pytest.raises(UserError, match="DARKROOM_MEMORY is not valid: a size such as 12GB"):
        run_bot(settings, ("added",), open_browser=False)
    assert load_engine(settings, EngineOptions("12GB")).memory == 12 * 10**9


@pytest.mark.may_block  # it imports commands, and with them torch
async def test_the_engine_is_told_what_to_offload_and_another_word_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[EngineOptions]()
    monkeypatch.setattr(startup, "run_bot", lambda *_, engine, **__: given.append(engine))
    monkeypatch.delenv("DARKROOM_OFFLOAD", raising=False)
    app(["up", "--offload", "layers", "--quantize", "int8", "--data", str(tmp_path)], standalone_mode=False)
    assert given[0].list_arguments() == ["--quantize", "int8", "--offload", "layers"]
    assert EngineOptions().list_arguments() == []
    settings = load_settings(data=tmp_path)
    assert load_engine(settings, given[0]).offload == "layers"
    assert load_engine(settings).offload == "auto"
    sentence = r"--offload is not valid: auto, none, text or layers is needed\."
    with pytest.raises(UserError, match=sentence):
        app(["imagine", "a fox", "--offload", "sometimes", "--data", str(tmp_path)], standalone_mode=False)
    (finding,) = check_engine(settings, EngineCheck(options=EngineOptions(offload="sometimes")))
    assert re.match(sentence, finding.summary)


async def test_a_backend_is_checked_at_once_passed_on_and_named(tmp_path: Path) -> None:
    settings = load_settings(data=tmp_path)
    with pytest.raises(UserError, match=rf"--backend is not valid: {list_forms()} is needed"):
        run_bot(settings, ("added",), engine=EngineOptions(backend="invokeai=http://127.0.0.1"), open_browser=False)
    text = f"{next(iter(load_backend_kinds()))}=http://127.0.0.1:8188"
    options = EngineOptions(backend=text)
    assert options.list_arguments() == ["--backend", text]
    backend = load_engine(settings, options).backend
    assert backend is not None
    assert "those of http://127.0.0.1:8188" in format_welcome(settings, ("added",), "http://page", backend.url)


RUN = """
import sys
from pathlib import Path
from bot.app.settings import load_settings
from bot.cli.up.startup import run_bot
from bot.domain.errors import UserError
try:
    run_bot(load_settings(data=Path(sys.argv[1]), port=0), (), open_browser=False)
except UserError as error:
    sys.exit(error.sentence)
"""


async def _wait_until_open(program: asyncio.subprocess.Process) -> None:
    assert program.stdout is not None
    line = b" "
    while line and b"Darkroom is open" not in line:
        line = await program.stdout.readline()
    assert line, "the program ended early"


@pytest.mark.slow
async def test_two_data_folders_with_one_database_run_one_bot_at_a_time(tmp_path: Path, database: str) -> None:
    """Each folder has a broker of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "DISCORD_"))}

    async def start(name: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            RUN,
            str(tmp_path / name),
            env=env | {"DATABASE_URL": database},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async with asyncio.timeout(60):
        first = await start("first")
        try:
            await _wait_until_open(first)
            second = await start("second")
            _, output = await second.communicate()
            assert b"Another bot leads on this database (bot-" in output
            assert first.returncode is None
        finally:
            first.terminate()
            await first.communicate()
        third = await start("second")
        await _wait_until_open(third)
        third.terminate()
        await third.communicate()


async def test_only_a_shared_database_or_broker_needs_a_leader(tmp_path: Path) -> None:
    def check_sharing() -> None:
        assert not is_shared(load_settings(data=tmp_path))
        assert is_shared(load_settings(data=tmp_path, nats="nats://10.0.0.5:4222"))
        assert is_shared(load_settings(data=tmp_path, database_url="postgresql://10.0.0.5/darkroom"))

    await asyncio.to_thread(check_sharing)
