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

from bot.cli import doors, rules
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

Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port of the chatroom (DARKROOM_PORT, else 8189; 0: a free one).")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on (DARKROOM_HOST, else 127.0.0.1).")]
Data = Annotated[Path | None, typer.Option(help="Folder of the store and the pictures (DARKROOM_DATA).")]
Nats = Annotated[str | None, typer.Option(metavar="URL", help="A broker of your own (DARKROOM_NATS).")]
Model = Annotated[list[str] | None, typer.Option(help="Model folder, file or name; may be given more than once.")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="What models may take, as 12GB (DARKROOM_MEMORY, else a share).")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on the standard output, all else on the error output.")
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
) -> None:
    """Everything on this machine: broker, engine, chatroom, and Discord when DISCORD_TOKEN is set."""
    from bot.cli.up import run

    settings = _settings(port=port, host=host, data=data, nats=nats, check=check)
    run(settings, models=tuple(model or ("embedded",)), memory=memory, show=show)


@app.command()
def bot(port: Port = None, host: Host = None, data: Data = None, nats: Nats = None) -> None:
    """The bot alone: chatroom and Discord, beside a broker and engines that run elsewhere."""
    from bot.cli.up import run

    settings = _settings(port=port, host=host, data=data, nats=nats)
    if not settings.nats:
        raise Refused("Name the broker with --nats or DARKROOM_NATS; `darkroom up` brings one of its own.")
    run(settings, models=(), show=False)


@app.command()
def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw; flags may stand in it as in Discord.")],
    steps: Annotated[int | None, typer.Option(help="Sampler steps, 1 to 1000.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, euler, dpmpp_2m, …, or as in 'DPM++ 2M Karras'.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the words, 1 to 30.")] = None,
    interval: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="In which part of the steps guidance holds, as in 0.2-0.8.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:WEIGHT]", help="An addition to the model; up to four times.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures, 1 to 4.")] = None,
    ar: Annotated[str | None, typer.Option(metavar="W:H", help="The shape of the picture.")] = None,
    no: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="30 steps of DPM++ 2M, or the model's own quick way.")] = False,
    model: Annotated[str | None, typer.Option(help="Model folder or name.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path(),
    film: Annotated[bool, typer.Option("--film", help="Also write how they came to be, as an animation.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Draw one prompt here: in the `darkroom up` that is running, else with an engine of its own."""
    from bot.cli.terminal import Wish, run

    options: dict[str, object] = {
        "steps": steps,
        "sampler": sampler,
        "seed": seed,
        "guidance": guidance,
        "interval": interval,
        "lora": lora or None,
        "count": count,
        "ar": ar,
    }
    options |= {"negative": no, "fast": fast or None, "model": model}
    wish = Wish(prompt, {name: value for name, value in options.items() if value is not None}, out, film, as_json)
    raise typer.Exit(run(wish, _settings(data=data)))


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
    """Measures this machine against diffusers as it runs by default; `bench discord` a busy evening in Discord."""
    if context.args[:1] == ["discord"]:
        from bot.cli.evening import run

        raise typer.Exit(run(context.args[1:]))
    _of_the_engine("engine.bench.__main__", context.args)


@app.command(context_settings=PASSED_ON)
def train(context: typer.Context) -> None:
    """Trains the embedded model's network further, from openly licensed artwork; `darkroom train --help` says how."""
    _of_the_engine("engine.training.__main__", context.args)


@app.command(context_settings=PASSED_ON)
def lab(context: typer.Context) -> None:
    """Experiments with words, noise and the latent space, with pictures; `darkroom lab --help` lists them."""
    _of_the_engine("engine.lab.__main__", context.args)


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
