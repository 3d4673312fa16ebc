"""`darkroom up` and `darkroom bot`: opens every part in order, says where, and closes them in order when asked to stop.

Knows which parts there are; each part's own work is its own module's. The engine runs in a process of its own.
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
GLANCE = 0.25  # seconds between two looks for the engine, until it is warm
# secrets that a worker has no use for
NOT_THE_ENGINES = (
    "DISCORD_TOKEN", "DATABASE_URL", "PICTURES_URL", "DARKROOM_METRICS_TOKEN", "DARKROOM_NATS_KEY"
)  # fmt: skip


def run(settings: Settings, models: Sequence[str], *, memory: str = "", show: bool, standby: bool = False) -> None:
    """Until Ctrl-C or SIGTERM. Raises `Refused` where it can't start: folder or port taken, broker or database away.

    `models`: what the engine on this machine offers; none: no engine here, and no broker of our own either. `memory`:
    what they may take, as 12GB; empty: as the environment says. `standby`: if another one has the folder, wait for it.
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
    """SIGINT and SIGTERM cancel this task, wherever it waits; the event says that it was they."""
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
    """Every part in order; `parts` closes them in the opposite one."""
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
    """Whether a bot of another data folder may find this broker or this database; else the folder's lock suffices."""
    return bool(settings.nats) or settings.database_url is not None


def _leading(settings: Settings, bus: Bus) -> AbstractAsyncContextManager[Leader]:
    """A broker of our own elects nobody: there the term alone decides."""
    return leading(bus if settings.nats else None, _say_line, url=settings.database)


def _workshop(settings: Settings, options: Sequence[str], way: broker.Way) -> Workshop:
    """`options`: of the engine's command line, its models among them."""
    command = [sys.executable, "-m", "engine", "serve", "--nats", way.url, "--name", HERE, "--data", str(settings.data)]
    command += options
    if settings.check is not None:
        command += ["--check", str(settings.check)]
    env = {name: value for name, value in os.environ.items() if name not in NOT_THE_ENGINES}
    return Workshop(
        command, env | way.environment() | {"DARKROOM_PARENT": str(os.getpid())}, settings.data / "engine.log"
    )


def check_there(settings: Settings) -> None:
    """Said here and now, not by an engine that starts again and again. Raises `Refused`."""
    if settings.check is not None and not (settings.check / "config.json").is_file():
        raise Refused(f"The picture check cannot be used: {settings.check} is no folder with a model's config.json.")


def check_size(memory: str) -> None:
    """The same for what models may take. Raises `Refused`."""
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
    """Runs `work` beside the body, and ends it with it; what `work` raises ends the body too."""
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
    """Lets `darkroom imagine` on this machine find us. Whatever we are bound to, it comes by the loopback interface."""
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
    """What our own engine brings into memory, line by line, for as long as we are open."""
    lines, loop = ProgressLines(say or _say_line), asyncio.get_running_loop()
    while True:
        if (now := progress(HERE)) is not None:
            lines.hear(now, loop.time())
        await asyncio.sleep(GLANCE)


async def say_when_warm(studio: Studio, workshop: Workshop, warming: asyncio.Event) -> None:
    """One line once the engine can draw, or the first time it can't even start; neither is `warming`."""
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
    with contextlib.suppress(BrokenPipeError):  # whoever started us may have stopped reading
        sys.stdout.write(text)
        sys.stdout.flush()


def _has_display() -> bool:
    """A browser with a window; never a text browser over our own lines."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
