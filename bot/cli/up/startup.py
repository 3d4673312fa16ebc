"""`darkroom up` and `darkroom bot`: start every part in order, print the address, and stop the parts in reverse order.

The engine runs in a separate process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import webbrowser
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.app.leader_election import WatchdogLoop, keep_lead
from bot.app.settings import list_secret_variables
from bot.app.wiring import open_app
from bot.cli import instance_lock
from bot.cli.instance_lock import RunningInstance, check_port_free, lock_data_folder
from bot.cli.options import AS_CONFIGURED, EngineOptions, load_engine
from bot.cli.up import broker_setup
from bot.cli.up.engine_process import EngineProcess
from bot.cli.up.log_file import log_to_file
from bot.domain.concurrency import run_periodically
from bot.domain.errors import UserError
from bot.store import DatabaseUnavailable
from bot.web.app import build_app, entry_address, run_server
from bot.web.connections import ConnectionLimits, raise_descriptor_limit
from engine.bus import BrokerUnreachable
from engine.process.load_progress import ProgressLines
from engine.process.system import exempt_from_collection, limit_heap_arenas, return_freed_blocks, trim_heap

if TYPE_CHECKING:
    from aiohttp.web import Application

    from bot.app.leader_election import Leader
    from bot.app.settings import Settings
    from engine.bus import Bus
    from engine.contract import ModelProgress, Presence

TRIM_SECONDS = 30.0  # between two returns of freed memory to the system: what floods and films took
LOCAL_WORKER = "here"  # the name of the worker that we start
POLL_SECONDS = 0.25  # seconds between two checks of the engine, until its model is loaded
SWITCH_SECONDS = 0.001  # between turns of threads: an answer changes threads several times, also beside films


def run_bot(
    settings: Settings,
    models: Sequence[str],
    *,
    engine: EngineOptions = AS_CONFIGURED,
    open_browser: bool,
    standby: bool = False,
) -> None:
    """Run until Ctrl-C or SIGTERM.

    Raise `UserError` if it cannot start: folder or port is taken, broker or database is unreachable. `models`: what the
    engine on this machine offers; if empty, neither an engine nor a broker runs here. `standby`: if another process has
    the folder, wait for it.
    """
    backend = None
    if models:
        check_classifier_folder(settings)
        backend = load_engine(settings, engine).backend  # a wrong setting would let the engine restart for ever
    limit_heap_arenas()
    return_freed_blocks()
    sys.setswitchinterval(SWITCH_SECONDS)
    options = [*(part for model in models for part in ("--model", model)), *engine.list_arguments()]
    raise_descriptor_limit()
    lock = lock_data_folder(settings.data, _print_line if standby else None, _print_line)
    with lock, log_to_file(settings.data / "darkroom.log", settings.log_format):
        if settings.port:
            check_port_free(settings.host, settings.port)
        with asyncio.Runner(loop_factory=WatchdogLoop) as runner:
            start = partial(
                _start_parts,
                settings=settings,
                models=models,
                options=options,
                open_browser=open_browser,
                backend_url=backend.url if backend else "",
            )
            runner.run(run_until_stopped(start))


async def run_until_stopped(start_parts: Callable[[AsyncExitStack], Coroutine[Any, Any, None]]) -> None:
    """Start the parts and wait for a signal, which may come during the start; the stack stops them then.

    Raises `UserError` if broker or database is unreachable.
    """
    with _cancel_on_signals() as stop_requested:
        try:
            async with AsyncExitStack() as stack:
                try:
                    await start_parts(stack)
                except (DatabaseUnavailable, BrokerUnreachable) as error:
                    raise UserError(str(error)) from error
                exempt_from_collection()
                await stop_requested.wait()  # set already, if a library swallowed the cancellation during the start
        except asyncio.CancelledError:
            if not stop_requested.is_set():
                raise


@contextmanager
def _cancel_on_signals() -> Generator[asyncio.Event]:
    """Cancel this task on SIGINT and SIGTERM, wherever it waits; the event says that a signal caused it."""
    stop_requested = asyncio.Event()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        if not stop_requested.is_set():
            sys.stderr.write("\nStopping …\n")
        stop_requested.set()
        task.cancel()

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop)
    try:
        yield stop_requested
    finally:
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signal_number)


async def _start_parts(
    stack: AsyncExitStack,
    settings: Settings,
    models: Sequence[str],
    options: Sequence[str],
    open_browser: bool,
    backend_url: str,
) -> None:
    """Start every part in order; `stack` stops them in reverse order."""
    broker_address = await broker_setup.find_broker(stack, settings)
    bus = await broker_setup.connect(stack, broker_address)
    leader = await stack.enter_async_context(_hold_leadership(settings, bus)) if is_shared(settings) else None
    engine_process = None
    warmup = asyncio.Event()
    if models:
        warmup.set()
        engine_process = await stack.enter_async_context(_make_engine_process(settings, options, broker_address))
    bot_app = await stack.enter_async_context(open_app(settings, bus, leader=leader))
    web_app = build_app(settings, bot_app.services, warmup, bot_app.metrics_page)
    port = await stack.enter_async_context(_serve_web(web_app, settings))
    if settings.discord_token is not None:
        from bot.discord.start import run_client  # costs 40 MB, so only with a token

        await stack.enter_async_context(
            _run_beside(run_client(settings, bot_app.services, bot_app.metrics.count_discord_request), "discord")
        )
    trims = run_periodically(partial(asyncio.to_thread, trim_heap), TRIM_SECONDS, "heap", logging.getLogger(__name__))
    await stack.enter_async_context(_run_beside(trims, "heap"))
    stack.enter_context(announce_address(settings, port))
    page_url = entry_address(settings, web_app, port)
    _print_text(format_welcome(settings, models, page_url, backend_url))
    if engine_process is not None:
        await stack.enter_async_context(_run_beside(print_load_progress(bus.model_progress.get_progress), "loads"))
        warm_line = print_when_warm(bot_app.services.live_workers, engine_process, warmup)
        await stack.enter_async_context(_run_beside(warm_line, "warm"))
    if open_browser and _has_display():
        await asyncio.to_thread(webbrowser.open, page_url)


def is_shared(settings: Settings) -> bool:
    """Return whether a bot of another data folder may use this broker or database; else the folder's lock suffices."""
    return bool(settings.nats) or settings.database_url is not None


def _hold_leadership(settings: Settings, bus: Bus) -> AbstractAsyncContextManager[Leader]:
    """Hold the leader's lease and term. Our embedded broker elects nobody: there the term alone decides."""
    return keep_lead(bus if settings.nats else None, _print_line, database_url=settings.database)


def _make_engine_process(
    settings: Settings, options: Sequence[str], broker_address: broker_setup.BrokerAddress
) -> EngineProcess:
    """Return the engine's process. `options`: of the engine's command line, its models among them."""
    command = [sys.executable, "-m", "engine", "serve", "--nats", broker_address.url, "--name", LOCAL_WORKER]
    command += ["--data", str(settings.data), *options]
    if settings.picture_check is not None:
        command += ["--picture-check", str(settings.picture_check)]
    secrets = list_secret_variables()  # a worker needs none of them but the broker's token, which it is given
    env = {name: value for name, value in os.environ.items() if name not in secrets}
    return EngineProcess(
        command,
        env | broker_address.worker_environment() | {"DARKROOM_PARENT": str(os.getpid())},
        settings.data / "engine.log",
    )


def check_classifier_folder(settings: Settings) -> None:
    """Raise `UserError` if the picture check has no model: otherwise the engine would restart for ever."""
    if settings.picture_check is not None and not (settings.picture_check / "config.json").is_file():
        raise UserError(
            f"The picture check cannot be used: {settings.picture_check} is no folder with a model's config.json."
        )


@asynccontextmanager
async def _serve_web(web_app: Application, settings: Settings) -> AsyncGenerator[int]:
    try:
        limits = ConnectionLimits(settings.max_connections, settings.max_connections_per_address)
        async with run_server(web_app, settings.host, settings.port, limits) as port:
            yield port
    except OSError as error:
        raise UserError(f"Nobody can listen on {settings.host}:{settings.port}: {error.strerror}.") from error


@asynccontextmanager
async def _run_beside(work: Coroutine[Any, Any, None], name: str) -> AsyncGenerator[None]:
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
def announce_address(settings: Settings, port: int) -> Generator[None]:
    """Announce our address to `darkroom imagine` on this machine: by loopback where we listen on all addresses."""
    host = settings.host.strip("[]")
    host = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared, not bound
    instance_lock.announce_instance(
        settings.data, RunningInstance(f"http://{f'[{host}]' if ':' in host else host}:{port}", os.getpid())
    )
    try:
        yield
    finally:
        instance_lock.withdraw_instance(settings.data)


async def print_load_progress(
    progress: Callable[[str], ModelProgress | None], print_line: Callable[[str], None] | None = None
) -> None:
    """Print the loading progress of our own engine, line by line, until cancelled."""
    lines = ProgressLines(print_line or _print_line)
    loop = asyncio.get_running_loop()
    while True:
        if (model_progress := progress(LOCAL_WORKER)) is not None:
            lines.update(model_progress, loop.time())
        await asyncio.sleep(POLL_SECONDS)


async def print_when_warm(
    live_workers: Callable[[], Mapping[str, Presence]], engine_process: EngineProcess, warmup: asyncio.Event
) -> None:
    """Print a line for each model once the engine is ready, or one line if its first start fails.

    Either clears `warmup`.
    """
    while (presence := live_workers().get(LOCAL_WORKER)) is None or not presence.models:
        if engine_process.restart_count:
            warmup.clear()
            _print_text(f"  The engine stopped while it started; its log: {engine_process.log_file}\n")
            return
        await asyncio.sleep(POLL_SECONDS)
    warmup.clear()
    for model_profile in presence.models:
        if not model_profile.loaded:
            _print_text(f"  {model_profile.name} is offered, and loaded when somebody asks for it.\n")
            continue
        speed = f"{model_profile.row_ms:.1f} ms a row and step, {model_profile.steps} steps by default"
        _print_text(f"  {model_profile.name} is loaded: {presence.device}, {model_profile.dtype}, {speed}.\n")


def _print_line(sentence: str) -> None:
    _print_text(f"  {sentence}\n")


def _print_text(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody may read our output any more
        sys.stdout.write(text)
        sys.stdout.flush()


def _has_display() -> bool:
    """Return whether a browser with a window can open; a text browser would cover our output."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def format_welcome(settings: Settings, models: Sequence[str], page_url: str, backend_url: str = "") -> str:
    """Return the text. `models` as in `run_bot`; `backend_url`: of another server that draws.

    Raise `UserError` where the settings of the models are damaged.
    """
    discord = "connecting" if settings.discord_token else "not connected (set DISCORD_TOKEN)"
    if backend_url and models:
        engine = f"those of {backend_url}"
    else:
        engine = f"{', '.join(_list_names(models, settings.data))}, loading" if models else "on other machines"
    return f"""
  Darkroom is open: {page_url}

    model     {engine}
    Discord   {discord}
    data      {settings.data}
    stop      Ctrl-C

"""


def _list_names(models: Sequence[str], data: Path) -> list[str]:
    from engine.hub.added_models import expand_names
    from engine.process.model_settings import ModelSettingsError

    try:
        return expand_names(tuple(models), data)
    except ModelSettingsError as error:
        raise UserError(str(error)) from error
