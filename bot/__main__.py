"""The `darkroom` command line.

Each command imports what it needs in its body: `darkroom --help` is quick, and `darkroom bot` never loads torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.cli import backup, describe, doors, imagine, jobs, members, own_options, restore, rules, worker_key
from bot.cli.options import AsJson, Data
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.config import Settings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A picture bot of your own: `darkroom up` opens the chatroom, `darkroom imagine` draws in the terminal.",
)

rules.app.command("close")(doors.close)
rules.app.command("open")(doors.open_)
app.add_typer(rules.app, name="rules")
app.add_typer(jobs.app, name="jobs")

Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port of the chatroom (DARKROOM_PORT, else 8189; 0: a free one).")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on (DARKROOM_HOST, else 127.0.0.1).")]
Nats = Annotated[str | None, typer.Option(metavar="URL", help="URL of an external NATS broker (DARKROOM_NATS).")]
Model = Annotated[list[str] | None, typer.Option(help="Model folder, file or name; repeatable.")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory for models, such as 12GB (DARKROOM_MEMORY, else a share).")
]
Standby = Annotated[
    bool, typer.Option("--standby", help="If another bot uses the data folder, wait until it ends, then start.")
]
SPINS = "20000"  # as in `engine.__main__`, for the commands that load torch in this process
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def up(
    port: Port = None,
    host: Host = None,
    data: Data = None,
    nats: Nats = None,
    model: Model = None,
    memory: Memory = "",
    check: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="An image classifier as picture check (DARKROOM_CHECK).")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    standby: Standby = False,
) -> None:
    """Run everything on this machine: broker, engine, chatroom, and Discord when DISCORD_TOKEN is set."""
    from bot.cli.up import run

    settings = _settings(port=port, host=host, data=data, nats=nats, check=check)
    run(settings, models=tuple(model or ("embedded",)), memory=memory, show=show, standby=standby)


@app.command()
def bot(
    port: Port = None, host: Host = None, data: Data = None, nats: Nats = None, standby: Standby = False
) -> None:  # fmt: skip
    """Run the bot without an engine: chatroom and Discord, beside a broker and engines that run elsewhere."""
    from bot.cli.up import run

    settings = _settings(port=port, host=host, data=data, nats=nats)
    if not settings.nats:
        raise Refused("Name the broker with --nats or DARKROOM_NATS; `darkroom up` starts its own.")
    run(settings, models=(), show=False, standby=standby)


app.command()(imagine.imagine)
app.command()(describe.describe)


@app.command()
def doctor(
    port: Port = None,
    host: Host = None,
    data: Data = None,
    nats: Nats = None,
    again: Annotated[bool, typer.Option("--again", help="Measure the device anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check what works on this machine, one line each, with the fix for what does not."""
    from bot.cli.doctor import examine, report

    findings = []
    for finding in examine(_settings(port=port, host=host, data=data, nats=nats), again=again):
        findings.append(finding)
        if not as_json:
            typer.echo(str(finding))
    if as_json:
        typer.echo(report(findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def commands(as_json: AsJson = False) -> None:
    """List the Discord commands as they are registered, counted against Discord's limits. Needs no token."""
    from bot.cli.commands import report

    said, passed = report(as_json=as_json)
    typer.echo(said)
    raise typer.Exit(0 if passed else 1)


@app.command(context_settings=PASSED_ON)
def engine(context: typer.Context) -> None:
    """Run one worker: it takes jobs from a broker (--nats URL) and makes pictures on this machine's device."""
    _of_the_engine("engine.__main__", ["serve", *context.args])


@app.command(context_settings=PASSED_ON)
def bench(context: typer.Context) -> None:
    """Measure this machine against diffusers with its default settings. `bench models`: models of real sizes; `bench
    discord`: a busy evening in Discord; `bench queue`: the queue on either database; `bench scale`: one to eight
    workers.
    """
    if context.args[:1] == ["models"]:
        _of_the_engine("engine.bench.models.__main__", context.args[1:])
    measured = {"discord": "bot.cli.evening", "queue": "bot.bench.queue", "scale": "bot.bench.scale"}
    if module := measured.get(context.args[0] if context.args else ""):
        from importlib import import_module

        raise typer.Exit(import_module(module).run(context.args[1:]))
    _of_the_engine("engine.bench.__main__", context.args)


@app.command("gpu-report", context_settings=PASSED_ON)
def gpu_report(context: typer.Context) -> None:
    """Measure this machine's GPU, or its processor, with our engine; writes two files to attach to an issue."""
    _of_the_engine("engine.bench.report.__main__", context.args)


@app.command(context_settings=PASSED_ON)
def train(context: typer.Context) -> None:
    """Train the embedded model's network further, on openly licensed artwork; see `darkroom train --help`."""
    _of_the_engine("engine.training.__main__", context.args)


@app.command(context_settings=PASSED_ON)
def lab(context: typer.Context) -> None:
    """Experiment with prompts, noise and the latent space, with pictures; see `darkroom lab --help`."""
    _of_the_engine("engine.lab.__main__", context.args)


app.command(context_settings={"ignore_unknown_options": True})(own_options.option)  # values may begin with dashes
app.command("worker-key")(worker_key.worker_key)
for keeping in (backup.backup, restore.restore, members.forget, members.export):
    app.command()(keeping)


def _of_the_engine(module: str, args: list[str]) -> None:
    """Run `module`'s command line in this process. Raises `Refused` if a package of the engine is not installed."""
    from importlib import import_module

    try:
        main: Callable[[list[str]], Any] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bot", "engine"):
            raise
        raise Refused(f"This needs the engine ({error.name} is missing): pip install 'darkroom-bot[all]'.") from error
    raise typer.Exit(main(args) or 0)


def _settings(**given: Any) -> Settings:
    """Load the environment's settings; values from the command line override them."""
    from bot.config import load

    return load(**{name: value for name, value in given.items() if value is not None})


def main() -> None:
    """Run the command line. A user's mistake ends in one sentence and exit code 2, never in a traceback."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except Refused as refused:
        _leave(refused.sentence, 2)
    except typer.TyperException as error:
        _leave(error.format_message(), error.exit_code or 2)
    except (KeyboardInterrupt, typer.Abort):
        _leave("Stopped.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports a broken pipe at exit
        sys.exit(1)


def _leave(sentence: str, code: int) -> None:
    typer.echo(f"darkroom: {' '.join(sentence.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
