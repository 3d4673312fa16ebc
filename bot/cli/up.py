"""`darkroom up` and `darkroom bot`: start every part in order, print the address, and stop the parts in reverse order.

The engine runs in a separate process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from bot.cli import broker, running
from bot.cli.logbook import keep_log
from bot.cli.running import Running, check_port, only_one
from bot.cli.workshop import Workshop
from bot.house import open_house
from bot.leader import leading
from bot.refused import Refused
from bot.store import Unavailable
from bot.turns import Loop
from bot.web.app import address, open_chatroom, opened
from engine.bus import Unreachable
from engine.progress_lines import ProgressLines

if TYPE_CHECKING:
    from aiohttp.web import Application

    from bot.config import Settings
    from bot.desk.studio import Studio
    from bot.leader import Leader
    from engine.bus import Bus
    from engine.job import ModelProgress

HERE = "here"  # the name of the worker that we start
GLANCE = 0.25  # seconds between two checks of the engine, until it is warm
# secrets that a worker does not need
NOT_THE_ENGINES = (
    "DISCORD_TOKEN", "DATABASE_URL", "PICTURES_URL", "DARKROOM_METRICS_TOKEN", "DARKROOM_NATS_KEY"
)  # fmt: skip


def run(settings: Settings, models: Sequence[str], *, memory: str = "", show: bool, standby: bool = False) -> None:
    """Run until Ctrl-C or SIGTERM.

    Raise `Refused` if it cannot start: folder or port is taken, broker or database is unreachable. `models`: what the
    engine on this machine offers; if empty, neither an engine nor a broker runs here. `memory`: the models' budget, as
    12GB; if empty, the environment's. `standby`: if another process has the folder, wait for it.
    """
    if models:
        check_there(settings)
        check_size(memory)
    options = [*(part for model in models for part in ("--model", model)), *(("--memory", memory) if memory else ())]
    log_file = settings.data / "darkroom.log"
    with only_one(settings.data, _say_line if standby else None), keep_log(log_file, settings.log):
        if settings.port:
            check_port(settings.host, settings.port)
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(_until_stopped(settings, models, options, show))


async def _until_stopped(settings: Settings, models: Sequence[str], options: Sequence[str], show: bool) -> None:
    with _stops_on_signals() as asked:
        try:
            async with AsyncExitStack() as parts:
                try:
                    await _open(parts, settings, models, options, show)
                except (Unavailable, Unreachable) as error:
                    raise Refused(str(error)) from error
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not asked.is_set():
                raise


@contextmanager
def _stops_on_signals() -> Iterator[asyncio.Event]:
    """Cancel this task on SIGINT and SIGTERM, wherever it waits; the event tells that a signal did it."""
    asked, task, loop = asyncio.Event(), asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        if not asked.is_set():
            sys.stderr.write("\nStopping …\n")
        asked.set()
        task.cancel()

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stop)
    try:
        yield asked
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(sign)


async def _open(
    parts: AsyncExitStack, settings: Settings, models: Sequence[str], options: Sequence[str], show: bool
) -> None:
    """Start every part in order; `parts` stops them in reverse order."""
    way = await broker.find(parts, settings)
    bus = await broker.join(parts, way)
    leader = await parts.enter_async_context(_leading(settings, bus)) if is_shared(settings) else None
    workshop, warming = None, asyncio.Event()
    if models:
        warming.set()
        workshop = await parts.enter_async_context(_workshop(settings, options, way))
    house = await parts.enter_async_context(open_house(settings, bus, leader=leader))
    app = open_chatroom(settings, house.desk, warming, house.scrape)
    port = await parts.enter_async_context(_listening(app, settings))
    if settings.discord_token is not None:
        from bot.chat.client import serve  # costs 40 MB, so only with a token

        await parts.enter_async_context(_beside(serve(settings, house.desk, house.metrics.edited), "discord"))
    parts.enter_context(announced(settings, port))
    page = address(settings, app, port)
    _say(_welcome(settings, models, page))
    if workshop is not None:
        await parts.enter_async_context(_beside(say_loads(bus.progress.of), "loads"))
        await parts.enter_async_context(_beside(say_when_warm(house.studio, workshop, warming), "warm"))
    if show and _has_display():
        await asyncio.to_thread(webbrowser.open, page)


def is_shared(settings: Settings) -> bool:
    """Return whether a bot of another data folder may use this broker or database; else the folder's lock suffices."""
    return bool(settings.nats) or settings.database_url is not None


def _leading(settings: Settings, bus: Bus) -> AbstractAsyncContextManager[Leader]:
    """Hold the leader's lease and term. Our embedded broker elects nobody: there the term alone decides."""
    return leading(bus if settings.nats else None, _say_line, url=settings.database)


def _workshop(settings: Settings, options: Sequence[str], way: broker.Way) -> Workshop:
    """Return the engine's process. `options`: of the engine's command line, its models among them."""
    command = [sys.executable, "-m", "engine", "serve", "--nats", way.url, "--name", HERE, "--data", str(settings.data)]
    command += options
    if settings.check is not None:
        command += ["--check", str(settings.check)]
    env = {name: value for name, value in os.environ.items() if name not in NOT_THE_ENGINES}
    return Workshop(
        command, env | way.environment() | {"DARKROOM_PARENT": str(os.getpid())}, settings.data / "engine.log"
    )


def check_there(settings: Settings) -> None:
    """Raise `Refused` if the picture check has no model: otherwise the engine would restart again and again."""
    if settings.check is not None and not (settings.check / "config.json").is_file():
        raise Refused(f"The picture check cannot be used: {settings.check} is no folder with a model's config.json.")


def check_size(memory: str) -> None:
    """Raise `Refused` for an invalid memory budget, for the same reason."""
    from engine.config import parse_size

    try:
        parse_size(memory or os.environ.get("DARKROOM_MEMORY") or "1GB")
    except ValueError as error:
        raise Refused(f"--memory or DARKROOM_MEMORY: {error}.") from error


@asynccontextmanager
async def _listening(app: Application, settings: Settings) -> AsyncIterator[int]:
    try:
        async with opened(app, settings.host, settings.port) as port:
            yield port
    except OSError as error:
        raise Refused(f"Nobody can listen on {settings.host}:{settings.port}: {error.strerror}.") from error


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` beside the body and cancel it with the body; an error of `work` ends the body too."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name=name)
        try:
            yield
        finally:
            while not task.done():  # before Python 3.12 `asyncio.wait_for` may swallow a cancellation
                task.cancel()
                await asyncio.wait((task,), timeout=1.0)


@contextmanager
def announced(settings: Settings, port: int) -> Iterator[None]:
    """Announce our address to `darkroom imagine` on this machine: by loopback where we listen on all addresses."""
    host = settings.host.strip("[]")
    host = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared, not bound
    running.announce(settings.data, Running(f"http://{f'[{host}]' if ':' in host else host}:{port}", os.getpid()))
    try:
        yield
    finally:
        running.withdraw(settings.data)


def _welcome(settings: Settings, models: Sequence[str], page: str) -> str:
    discord = "connecting" if settings.discord_token else "not connected (set DISCORD_TOKEN)"
    engine = f"{', '.join(models)}, warming up" if models else "on other machines"
    return f"""
  Darkroom is open: {page}

    model     {engine}
    Discord   {discord}
    data      {settings.data}
    stop      Ctrl-C

"""


async def say_loads(progress: Callable[[str], ModelProgress | None], say: Callable[[str], None] | None = None) -> None:
    """Print the loading progress of our own engine, line by line, until cancelled."""
    lines, loop = ProgressLines(say or _say_line), asyncio.get_running_loop()
    while True:
        if (now := progress(HERE)) is not None:
            lines.hear(now, loop.time())
        await asyncio.sleep(GLANCE)


async def say_when_warm(studio: Studio, workshop: Workshop, warming: asyncio.Event) -> None:
    """Print a line for each model once the engine is ready, or one line if its first start fails.

    Either clears `warming`.
    """
    while (presence := studio.workers().get(HERE)) is None or not presence.models:
        if workshop.restarts:
            warming.clear()
            _say(f"  The engine stopped while it started; its log: {workshop.log_file}\n")
            return
        await asyncio.sleep(GLANCE)
    warming.clear()
    for warm in presence.models:
        if not warm.loaded:
            _say(f"  {warm.name} is offered, and loaded when somebody asks for it.\n")
            continue
        speed = f"{warm.row_ms:.1f} ms a row and step, {warm.steps} steps by default"
        _say(f"  {warm.name} is warm: {presence.device}, {warm.dtype}, {speed}.\n")


def _say_line(sentence: str) -> None:
    _say(f"  {sentence}\n")


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the reader of our output may have gone
        sys.stdout.write(text)
        sys.stdout.flush()


def _has_display() -> bool:
    """Return whether a browser with a window can open; a text browser would cover our output."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
