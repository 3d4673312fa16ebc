"""`python -m engine serve`: one worker. The command line, the logs and the exit codes; everything else is handed down.

Exit codes: 0 after an orderly hand-over, 2 where a setting, a model or the broker's address is wrong, 70 where the
engine is stuck or has crashed and a supervisor should start it anew.
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

if TYPE_CHECKING:
    from engine.config import Settings

WRONG, STUCK = 2, 70
# How long an idle OpenMP thread spins before it sleeps. The library's default makes a step on a busy machine five times
# slower; no spinning at all makes it half as slow again on a quiet one.
SPINS = "20000"

Offload = Annotated[
    bool, typer.Option("--offload", help="On a card: text encoders lie in the host's memory, and visit the card.")
]
KeyFile = Annotated[
    Path | None, typer.Option(help="A file with this worker's own key, in place of a token; else DARKROOM_NATS_KEY.")
]
Simulated = Annotated[
    bool, typer.Option("--simulated", help="No device and no models: one that only takes its time, for trials.")
]
RowMs = Annotated[float | None, typer.Option(help="Simulated milliseconds of a row in a forward; else 0.5.")]
Rows = Annotated[int | None, typer.Option(help="Rows of a simulated forward, at most; else 32.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def engine() -> None:
    """The engine of Darkroom."""


@app.command()
def serve(
    nats: Annotated[str, typer.Option(help="The broker, as nats://HOST:PORT; else DARKROOM_NATS.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the broker's token; else DARKROOM_NATS_TOKEN.")
    ] = None,
    key_file: KeyFile = None,
    name: Annotated[str, typer.Option(help="This worker's name, unlike any other's; else the host's.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="A model's name, folder or file of safetensors; may be repeated.")
    ] = None,
    memory: Annotated[
        str, typer.Option(help="What models may take, as 12GB; else DARKROOM_MEMORY, or a share of the device's.")
    ] = "",
    pool: Annotated[list[str] | None, typer.Option(help="A pool to serve; may be repeated.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where calibrations are kept; else DARKROOM_DATA.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "",
    check: Annotated[
        Path | None, typer.Option(help="A folder with an image classifier, as picture check; else DARKROOM_CHECK.")
    ] = None,
    upscaler: Annotated[
        Path | None, typer.Option(help="A super-resolver in safetensors, instead of ours; else DARKROOM_UPSCALER.")
    ] = None,
    graphs: Annotated[bool, typer.Option("--graphs", help="On a card: record forwards as CUDA graphs.")] = False,
    offload: Offload = False,
    simulated: Simulated = False,
    row_ms: RowMs = None,
    rows: Rows = None,
) -> None:
    """Takes jobs from a broker and develops their pictures on this machine, until SIGTERM."""
    from engine.config import load, read_token, simulation
    from engine.logline import to_stderr

    token, key = (read_token(file) if file else "" for file in (token_file, key_file))
    settings = load(
        nats=nats, nats_token=token, nats_key=key, name=name, models=tuple(model or ()),
        pools=tuple(pool or ()), data=data, device=device, check=check, upscaler=upscaler, memory=memory,
        graphs=graphs, offload=offload, simulated=simulation(simulated, row_ms=row_ms, rows=rows),
    )  # fmt: skip
    to_stderr(settings.log, settings.name)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    """Ends the process at once where a thread is stuck: an ordinary end would wait for that thread for ever."""
    from engine import serving  # torch takes seconds to load, so a bad setting is said before
    from engine.bus import Ended

    try:
        await serving.serve(settings)
    except (serving.Stuck, Ended) as error:
        _leave(_say(str(error), STUCK))


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line; what is the caller's business ends in one sentence, never in a traceback."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is loaded, which is later
    from engine.bus.link import Unreachable
    from engine.config import BadSetting
    from engine.unfit import Unfit

    try:
        app(list(args) if args is not None else None)
    except (BadSetting, Unreachable, Unfit) as error:
        return _say(str(error), WRONG)
    except SystemExit as ended:  # how typer ends, with a usage error's text already said
        return ended.code if isinstance(ended.code, int) else WRONG
    return 0


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)  # noqa: T201 - the command line's answer
    return code


def _leave(code: int) -> None:
    """Ends the process now. Taking torch apart takes seconds, in which a supervisor may lose its patience."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
