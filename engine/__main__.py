"""The command line `python -m engine serve`, which runs one worker: options, logging and exit codes.

Exit codes: 0 after an orderly shutdown, 2 if a setting, a model or the broker's address is wrong, 70 if the engine is
stuck or crashed and a supervisor should restart it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.process.backend_kinds import join_words, list_forms, load_backend_kinds

if TYPE_CHECKING:
    from engine.process.settings import WorkerSettings

EXIT_BAD_SETTING = 2
EXIT_STUCK = 70
# How long an idle OpenMP thread spins before it sleeps. The library's default makes a step five times slower on a busy
# machine; no spinning makes it 1.5 times slower on a quiet one.
GOMP_SPIN_COUNT = "20000"

PictureCheckOption = Annotated[
    Path | None, typer.Option("--picture-check", help="A folder with an image classifier; else DARKROOM_PICTURE_CHECK.")
]
UpscalerOption = Annotated[
    Path | None,
    typer.Option(help="A super-resolver in safetensors, in place of the built-in one; else DARKROOM_UPSCALER."),
]
GraphsOption = Annotated[bool, typer.Option("--cuda-graphs", help="On a GPU: record forwards as CUDA graphs.")]
OffloadOption = Annotated[
    str,
    typer.Option(
        help="What stays off the device but while it runs: none, text (encoders), layers, or auto: what must; else "
        "DARKROOM_OFFLOAD, or auto."
    ),
]
VaeOption = Annotated[
    str, typer.Option(metavar="NAME", help="An autoencoder in vaes/ for the models that it fits; else DARKROOM_VAE.")
]
QuantizeOption = Annotated[
    str,
    typer.Option(
        help="Store networks as int8, int4, fp8 or nf4, not at all (none), or as fits (auto); else DARKROOM_QUANTIZE."
    ),
]
QuantizeTextOption = Annotated[
    str, typer.Option(help="The same for text encoders; else DARKROOM_QUANTIZE_TEXT, or auto.")
]
KeyFileOption = Annotated[
    Path | None, typer.Option(help="A file with this worker's own key, in place of a token; else DARKROOM_NATS_KEY.")
]
SimulatedOption = Annotated[
    bool, typer.Option("--simulated", help="For tests: simulate a device that only waits, without models.")
]
RowMsOption = Annotated[float | None, typer.Option(help="Simulated milliseconds per row of a forward; else 0.5.")]
RowsOption = Annotated[int | None, typer.Option(help="Most rows of a simulated forward; else 32.")]

WORKFLOW_TITLES = join_words([kind.title for kind in load_backend_kinds().values() if kind.takes_workflows])
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="KIND=ADDRESS",
        help=f"Let another server draw: {list_forms()}; else DARKROOM_BACKEND. Its key: DARKROOM_BACKEND_KEY.",
    ),
]
WorkflowOption = Annotated[
    list[Path] | None,
    typer.Option(
        help=f"For {WORKFLOW_TITLES}: a workflow in API format with named slots; may be repeated, for pictures, masks."
    ),
]
SizeOption = Annotated[int, typer.Option(help="Native side of the backend's models in pixels; else by their names.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def engine() -> None:
    """The engine of Darkroom."""


@app.command()
def serve(
    nats: Annotated[str, typer.Option(help="The broker, as nats://HOST:PORT; else DARKROOM_NATS.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the broker's token; else DARKROOM_NATS_TOKEN.")
    ] = None,
    key_file: KeyFileOption = None,
    name: Annotated[str, typer.Option(help="This worker's unique name; else the host's name.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="A model's name, folder or file of safetensors; may be repeated.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for models, as 12GB; else DARKROOM_MEMORY, or a share.")] = "",
    pool: Annotated[list[str] | None, typer.Option(help="A pool to serve; may be repeated.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for calibrations; else DARKROOM_DATA.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "",
    check: PictureCheckOption = None,
    upscaler: UpscalerOption = None,
    graphs: GraphsOption = False,
    offload: OffloadOption = "",
    vae: VaeOption = "",
    quantize: QuantizeOption = "",
    quantize_text: QuantizeTextOption = "",
    simulated: SimulatedOption = False,
    row_ms: RowMsOption = None,
    rows: RowsOption = None,
    backend: BackendOption = "",
    workflow: WorkflowOption = None,
    size: SizeOption = 0,
) -> None:
    """Take jobs from a broker and make their pictures on this machine or by a backend, until SIGTERM."""
    from engine.process.setting_sources import SettingError
    from engine.process.settings import SimulationSettings, load_settings, read_token

    token, key = (read_token(path) if path else "" for path in (token_file, key_file))
    simulation = {name: value for name, value in (("row_ms", row_ms), ("rows", rows)) if value is not None}
    if simulation and not simulated:
        raise SettingError("--row-ms and --rows need --simulated.")
    settings = load_settings(
        nats=nats,
        nats_token=token,
        nats_key=key,
        worker_name=name,
        models=tuple(model or ()),
        pools=tuple(pool or ()),
        data=data,
        device=device,
        picture_check=check,
        upscaler=upscaler,
        memory=memory,
        cuda_graphs=graphs,
        offload=offload,
        vae=vae,
        quantize=quantize,
        quantize_text=quantize_text,
        simulated=(simulation or SimulationSettings()) if simulated else None,
        backend=backend,
        workflows=tuple(workflow or ()),
        backend_size=size,
    )
    if not settings.nats:
        raise SettingError("Name the broker with --nats or DARKROOM_NATS.")
    asyncio.run(_run_worker(settings))


async def _run_worker(settings: WorkerSettings) -> None:
    """Run the worker. If a thread is stuck, end the process at once: a normal exit would wait for it for ever."""
    from engine.process.log_format import configure_stderr

    configure_stderr(settings.log_format, settings.worker_name)
    if settings.backend is not None:
        return await _run_backend_worker(settings)
    from engine.bus import ConnectionEnded
    from engine.worker import main as worker_main  # torch takes seconds to load: report bad settings first

    try:
        await worker_main.run_worker(settings)
    except (worker_main.Stuck, ConnectionEnded) as error:
        _exit_now(_print_error(str(error), EXIT_STUCK))


async def _run_backend_worker(settings: WorkerSettings) -> None:
    """Run a worker whose engine is a backend; this loads no torch."""
    from engine.bus import ConnectionEnded
    from engine.remote.worker import run_backend_worker

    try:
        await run_backend_worker(settings)
    except ConnectionEnded as error:
        _exit_now(_print_error(str(error), EXIT_STUCK))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. An error that the caller can mend ends in one sentence, never in a traceback."""
    os.environ.setdefault("GOMP_SPINCOUNT", GOMP_SPIN_COUNT)  # torch reads it when it loads, later
    from engine.bus.connection import BrokerUnreachable
    from engine.contract import JobRejected
    from engine.process.setting_sources import SettingError

    os.umask(0o077)  # new files are their owner's alone
    try:
        app(sys.argv[1:] if argv is None else argv)
    except (SettingError, BrokerUnreachable, JobRejected) as error:
        return _print_error(str(error), EXIT_BAD_SETTING)
    except SystemExit as exit_error:  # how typer ends; it has already printed a usage error
        return exit_error.code if isinstance(exit_error.code, int) else EXIT_BAD_SETTING
    return 0


def _print_error(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)  # noqa: T201 - the command line's answer
    return code


def _exit_now(code: int) -> None:
    """End the process now. A normal exit with torch takes seconds, and a supervisor may time out before."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit_now(main())
