"""Counts the files of bot and engine with a line that runs for one `/imagine`, from press to final.

`python tools/imagine_trace.py` starts a real bot, a real worker with the embedded model and the loopback Discord. A
member asks for a picture of 120 steps. Coverage runs in bot and worker; its context switches on at the press and off at
the final. What runs periodically in those seconds counts too. `--list` names the files with their lines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bot", "engine")
PRESS = "press to final"
STEPS = 120
START_SECONDS = 120.0
DRAW_SECONDS = 300.0
SEED = 7


def run_measured(data_file: str, module: str, arguments: list[str]) -> None:
    """Run a module as a program under coverage: SIGUSR1 switches the context on, SIGUSR2 ends and saves."""
    measure = coverage.Coverage(data_file, source=[str(ROOT / name) for name in PACKAGES], config_file=False)

    def end(*_: object) -> None:
        measure.stop()
        measure.save()

    def begin(*_: object) -> None:
        measure.switch_context(PRESS)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    measure.start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@asynccontextmanager
async def run_process(data_file: Path, environment: dict[str, str], *command: str) -> AsyncGenerator[int]:
    """Run a program under coverage, and yield its process id. What it prints lies beside its data."""
    with data_file.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            "--measured",
            str(data_file),
            *command,
            cwd=ROOT,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def trace_imagine(folder: Path) -> list[Path]:
    """Draw one picture in Discord, and return the files with coverage data: of the bot, and of the worker."""
    from engine.bus import Bus
    from engine.bus.embedded_broker import Broker
    from tools.loopback.members import Person
    from tools.loopback.server import TOKEN, Loopback, wait_until

    loopback = Loopback()
    guild = loopback.world.create_guild("Loopback")
    channel = guild.create_text_channel("pictures")
    alice = Person(loopback, "alice", guild)
    files = [folder / "bot.coverage", folder / "engine.coverage"]
    async with loopback.open(), Broker(folder / "nats") as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        await bus.watch_workers()
        shared = {"DARKROOM_NATS_TOKEN": broker.token, "DARKROOM_PARENT": str(os.getpid())}
        discord = {
            "DARKROOM_DISCORD_API": loopback.api,
            "DARKROOM_DISCORD_GATEWAY": loopback.gateway.url,
            "DISCORD_TOKEN": TOKEN,
        }
        places = [("--nats", broker.url, "--data", str(folder / name)) for name in PACKAGES]
        async with (
            run_process(files[1], shared, "engine", "serve", *places[1]) as engine,
            run_process(files[0], shared | discord, "bot", "bot", "--port", "0", *places[0]) as bot,
        ):
            await wait_until(lambda: bool(bus.get_workers()) and loopback.gateway.has_all_shards(), START_SECONDS)
            await wait_until(lambda: bool(loopback.world.backend.commands), START_SECONDS)
            await asyncio.sleep(5)  # calibration and the first announcements are over
            for process in (bot, engine):
                os.kill(process, signal.SIGUSR1)
            await asyncio.sleep(0.5)
            await alice.slash(channel, "imagine", prompt="terrier, looking up", steps=STEPS, seed=SEED)
            await wait_until(
                lambda: any(
                    attachment["filename"].endswith(".png")
                    for message in loopback.world.list_messages(channel.id)
                    for attachment in message.attachments
                ),
                DRAW_SECONDS,
            )
            await asyncio.sleep(1)  # its delivery is recorded
            for process in (bot, engine):
                os.kill(process, signal.SIGUSR2)
            await asyncio.sleep(2)
        await bus.close()
    return files


def read_lines(files: list[Path]) -> dict[str, int]:
    """Return how many lines of each file ran between press and final."""
    lines = dict[str, set[int]]()
    for file in files:
        data = coverage.CoverageData(str(file))
        data.read()
        for name in data.measured_files():
            contexts = data.contexts_by_lineno(name)
            ran = {line for line, names in contexts.items() if PRESS in names}
            if ran:
                lines.setdefault(str(Path(name).relative_to(ROOT)), set()).update(ran)
    return {name: len(numbers) for name, numbers in sorted(lines.items())}


def main() -> None:
    """Trace one `/imagine` and print the counts."""
    if sys.argv[1:2] == ["--measured"]:
        run_measured(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the files with their lines")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        lines = read_lines(asyncio.run(trace_imagine(Path(folder))))
    if arguments.list:
        for name, count in lines.items():
            print(f"{count:5d} {name}")
    for package in PACKAGES:
        counts = [count for name, count in lines.items() if name.startswith(f"{package}/")]
        print(f"{package}: {len(counts)} files, {sum(counts)} lines")
    print(f"together: {len(lines)} files, {sum(lines.values())} lines")


if __name__ == "__main__":
    main()
