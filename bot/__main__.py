"""The `darkroom` command. Reads the command line and the environment, and opens what a command needs; nothing more.

Every import that costs time stands inside its command: `darkroom --help` is quick, `darkroom bot` never loads torch.
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
Nats = Annotated[str | None, typer.Option(metavar="URL", help="A broker of your own (DARKROOM_NATS).")]
Model = Annotated[list[str] | None, typer.Option(help="Model folder, file or name; may be given more than once.")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="What models may take, as 12GB (DARKROOM_MEMORY, else a share).")
]
Standby = Annotated[
    bool, typer.Option("--standby", help="Where another one has the data folder, wait until it ends and go on.")
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
    """Everything on this machine: broker, engine, chatroom, and Discord when DISCORD_TOKEN is set."""
    from bot.cli.up import run

    settings = _settings(port=port, host=host, data=data, nats=nats, check=check)
    run(settings, models=tuple(model or ("embedded",)), memory=memory, show=show, standby=standby)


@app.command()
def bot(
    port: Port = None, host: Host = None, data: Data = None, nats: Nats = None, standby: Standby = False
) -> None:  # fmt: skip
    """The bot alone: chatroom and Discord, beside a broker and engines that run elsewhere."""
    from bot.cli.up import run

    settings = _settings(port=port, host=host, data=data, nats=nats)
    if not settings.nats:
        raise Refused("Name the broker with --nats or DARKROOM_NATS; `darkroom up` brings one of its own.")
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
    """What works on this machine and what doesn't, one line each, with the mend."""
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
    """The Discord commands as they are registered, counted against Discord's limits. Needs no token."""
    from bot.cli.commands import report

    said, passed = report(as_json=as_json)
    typer.echo(said)
    raise typer.Exit(0 if passed else 1)


@app.command(context_settings=PASSED_ON)
def engine(context: typer.Context) -> None:
    """One worker: takes jobs from a broker (--nats URL), develops pictures on this machine's device."""
    _of_the_engine("engine.__main__", ["serve", *context.args])


@app.command(context_settings=PASSED_ON)
def bench(context: typer.Context) -> None:
    """Measures this machine against diffusers as it runs by default; `bench models` models of real sizes, `bench
    discord` a busy evening in Discord, `bench queue` the queue on either database, `bench scale` one to eight workers.
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
    """Measures this machine's card, or its processor, with our engine: two files to attach to an issue."""
    _of_the_engine("engine.bench.report.__main__", context.args)


@app.command(context_settings=PASSED_ON)
def train(context: typer.Context) -> None:
    """Trains the embedded model's network further, from openly licensed artwork; `darkroom train --help` says how."""
    _of_the_engine("engine.training.__main__", context.args)


@app.command(context_settings=PASSED_ON)
def lab(context: typer.Context) -> None:
    """Experiments with words, noise and the latent space, with pictures; `darkroom lab --help` lists them."""
    _of_the_engine("engine.lab.__main__", context.args)


app.command(context_settings={"ignore_unknown_options": True})(own_options.option)  # a value begins with dashes
app.command("worker-key")(worker_key.worker_key)
for keeping in (backup.backup, restore.restore, members.forget, members.export):
    app.command()(keeping)


def _of_the_engine(module: str, args: list[str]) -> None:
    """Runs the engine's own command line in this process; without torch it says so in one sentence."""
    from importlib import import_module

    try:
        main: Callable[[list[str]], Any] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bot", "engine"):
            raise
        raise Refused(f"This needs the engine ({error.name} is missing): pip install 'darkroom-bot[all]'.") from error
    raise typer.Exit(main(args) or 0)


def _settings(**given: Any) -> Settings:
    """The environment's settings, and above them what the command line gave."""
    from bot.config import load

    return load(**{name: value for name, value in given.items() if value is not None})


def main() -> None:
    """The entry point. What is the caller's business ends in one sentence and exit code 2, never in a traceback."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        sys.exit(1)


def _leave(sentence: str, code: int) -> None:
    typer.echo(f"darkroom: {' '.join(sentence.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
