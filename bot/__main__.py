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

from bot.cli import api_keys, rules, steer, visitors
from bot.cli.imagine import command as imagine_command
from bot.cli.jobs import commands as job_commands
from bot.cli.models import commands as model_commands
from bot.cli.options import AsJson, Data, EngineOptions, OffloadOption, QuantizeOption, QuantizeTextOption
from bot.domain.errors import UserError
from bot.domain.feature import load_parts
from engine.process.backend_kinds import list_forms

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from bot.cli.doctor import Finding

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A picture bot of your own: `darkroom up` opens the chatroom, `darkroom imagine` draws in the terminal.",
)

app.add_typer(rules.app, name="rules")
app.add_typer(job_commands.app, name="jobs")
app.add_typer(visitors.app, name="visitors")
app.add_typer(model_commands.app, name="models")

Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port of the chatroom (DARKROOM_PORT, else 8189; 0: a free one).")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on (DARKROOM_HOST, else 127.0.0.1).")]
Nats = Annotated[str | None, typer.Option(metavar="URL", help="URL of an external NATS broker (DARKROOM_NATS).")]
Model = Annotated[list[str] | None, typer.Option(help="Model folder, file or name; repeatable. Else all added models.")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory for models, such as 12GB (DARKROOM_MEMORY, else a share).")
]
Vae = Annotated[
    str, typer.Option(metavar="NAME", help="An autoencoder in vaes/ for the models that it fits (DARKROOM_VAE).")
]
Backend = Annotated[
    str, typer.Option(metavar="KIND=ADDRESS", help=f"Let another server draw: {list_forms()} (DARKROOM_BACKEND).")
]
Standby = Annotated[
    bool, typer.Option("--standby", help="If another bot uses the data folder, wait until it ends, then start.")
]
USER_FILE_COMMANDS = {"imagine", "train", "lab", "bench", "gpu-report"}  # they write to folders that the user names
SPIN_COUNT = "20000"  # as in `engine.__main__`, for the commands that load torch in this process
FORWARD_ARGS: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def up(
    port: Port = None,
    host: Host = None,
    data: Data = None,
    nats: Nats = None,
    model: Model = None,
    memory: Memory = "",
    vae: Vae = "",
    quantize: QuantizeOption = "",
    quantize_text: QuantizeTextOption = "",
    offload: OffloadOption = "",
    backend: Backend = "",
    check: Annotated[
        Path | None,
        typer.Option("--picture-check", metavar="FOLDER", help="An image classifier (DARKROOM_PICTURE_CHECK)."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    standby: Standby = False,
) -> None:
    """Run everything on this machine: broker, engine, chatroom, and Discord when DISCORD_TOKEN is set."""
    from bot.cli.up.startup import run_bot

    settings = _load_settings(port=port, host=host, data=data, nats=nats, picture_check=check)
    options = EngineOptions(memory, vae, quantize, quantize_text, offload, backend)
    run_bot(settings, tuple(model or ("added",)), engine=options, open_browser=open_browser, standby=standby)


@app.command()
def bot(port: Port = None, host: Host = None, data: Data = None, nats: Nats = None, standby: Standby = False) -> None:
    """Run the bot without an engine: chatroom and Discord, beside a broker and engines that run elsewhere."""
    from bot.cli.up.startup import run_bot

    settings = _load_settings(port=port, host=host, data=data, nats=nats)
    if not settings.nats:
        raise UserError("Name the broker with --nats or DARKROOM_NATS; `darkroom up` starts its own.")
    run_bot(settings, models=(), open_browser=False, standby=standby)


app.command()(imagine_command.imagine)
app.command()(steer.steer)


@app.command()
def doctor(
    port: Port = None,
    host: Host = None,
    data: Data = None,
    nats: Nats = None,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure the device anew.")] = False,
    model: Annotated[str, typer.Option(help="Load this model in place of the embedded one.")] = "embedded",
    quantize: QuantizeOption = "",
    quantize_text: QuantizeTextOption = "",
    offload: OffloadOption = "",
    as_json: AsJson = False,
) -> None:
    """Check what works on this machine, one line each, with the fix for what does not."""
    from bot.cli.doctor import findings_to_json, run_checks

    findings: list[Finding] = []
    settings = _load_settings(port=port, host=host, data=data, nats=nats)
    options = EngineOptions(quantize=quantize, quantize_text=quantize_text, offload=offload)
    for finding in run_checks(settings, model, options, remeasure=remeasure):
        findings.append(finding)
        if not as_json:
            typer.echo(str(finding))
    if as_json:
        typer.echo(findings_to_json(findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def commands(as_json: AsJson = False) -> None:
    """List the Discord commands as they are registered, counted against Discord's limits. Needs no token."""
    from bot.cli.discord_commands import check_commands

    listing, within_limits = check_commands(as_json=as_json)
    typer.echo(listing)
    raise typer.Exit(0 if within_limits else 1)


@app.command(context_settings=FORWARD_ARGS)
def engine(context: typer.Context) -> None:
    """Run one worker: it takes jobs from a broker (--nats URL) and makes pictures on this machine's device."""
    _run_engine_command("engine.__main__", ["serve", *context.args])


@app.command(context_settings=FORWARD_ARGS)
def bench(context: typer.Context) -> None:
    """Measure this machine against diffusers with its default settings. `bench models`: models of real sizes; `bench
    discord`: a busy evening in Discord; `bench queue`: the queue on either database; `bench scale`: one to eight
    workers; `bench clients`: OpenAI's API beside our own; `bench steer`: pictures changed while they develop; `bench
    evaluations`: pictures with few evaluations of the network beside those with all.
    """
    if context.args[:1] == ["models"]:
        _run_engine_command("benchmarks.models.__main__", context.args[1:])
    bench_modules = {
        "discord": "benchmarks.loopback_discord",
        "queue": "benchmarks.queue.command",
        "clients": "benchmarks.client_apis",
        "scale": "benchmarks.queue.worker_scaling",
        "steer": "benchmarks.steering.command",
        "evaluations": "benchmarks.engine.evaluations",
    }
    if module := bench_modules.get(context.args[0] if context.args else ""):
        from importlib import import_module

        raise typer.Exit(import_module(module).run(context.args[1:]))
    _run_engine_command("benchmarks.engine.__main__", context.args)


@app.command("gpu-report", context_settings=FORWARD_ARGS)
def gpu_report(context: typer.Context) -> None:
    """Measure this machine's GPU, or its processor, with our engine; writes two files to attach to an issue."""
    _run_engine_command("benchmarks.gpu_report.__main__", context.args)


@app.command(context_settings=FORWARD_ARGS)
def train(context: typer.Context) -> None:
    """Train the embedded model's network further, on openly licensed artwork; see `darkroom train --help`."""
    _run_engine_command("training.__main__", context.args)


@app.command(context_settings=FORWARD_ARGS)
def lab(context: typer.Context) -> None:
    """Experiment with prompts, noise and the latent space, with pictures; see `darkroom lab --help`."""
    _run_engine_command("training.lab.__main__", context.args)


app.command("api-key")(api_keys.api_key)
for module in load_parts("cli").values():
    for name, added in module.COMMANDS.items():
        if isinstance(added, typer.Typer):
            app.add_typer(added, name=name)
        else:
            app.command(name, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(added)


def _run_engine_command(module: str, args: list[str]) -> None:
    """Run `module`'s command line in this process. Raises `UserError` if a package of the engine is not installed."""
    from importlib import import_module

    try:
        main: Callable[[list[str]], Any] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bot", "engine"):
            raise
        raise UserError(f"This needs the engine ({error.name} is missing): pip install 'darkroom-bot[all]'.") from error
    raise typer.Exit(main(args) or 0)


def _load_settings(**overrides: Any) -> Settings:
    """Load the environment's settings; values from the command line override them."""
    from bot.app.settings import load_settings

    return load_settings(**{name: value for name, value in overrides.items() if value is not None})


def main() -> None:
    """Run the command line. A user's mistake ends in one sentence and exit code 2, never in a traceback."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if not USER_FILE_COMMANDS.intersection(sys.argv[1:2]):
        os.umask(0o077)  # new files are their owner's alone, also those of our children
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UserError as error:
        _exit_with(error.sentence, 2)
    except typer.TyperException as error:
        _exit_with(error.format_message(), error.exit_code or 2)
    except (KeyboardInterrupt, typer.Abort):
        _exit_with("Stopped.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports a broken pipe at exit
        sys.exit(1)


def _exit_with(sentence: str, code: int) -> None:
    typer.echo(f"darkroom: {' '.join(sentence.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
