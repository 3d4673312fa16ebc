"""The `darkroom train` command line. A mistake of the caller's ends in one sentence and exit code 2.

Each command is a file of `engine/training/commands/`; it imports torch only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from engine.training.commands.autoencoder import autoencoder
from engine.training.commands.diffusion import diffusion
from engine.training.commands.evaluate import evaluate
from engine.training.commands.judge import judge
from engine.training.commands.lora import lora
from engine.training.commands.measure import export, measure
from engine.training.commands.progress import say
from engine.training.commands.upscaler import upscaler
from engine.training.commands.words import words
from engine.unfit import Unfit

app = typer.Typer(
    help="Train the parts of the embedded model, and models of your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
WRONG, STOPPED = 2, 130


@app.callback()
def commands() -> None:
    """Train the parts of the embedded model, and models of your own."""


app.command()(autoencoder)
app.command()(diffusion)
app.command()(lora)
app.command()(upscaler)
app.command()(evaluate)
app.command()(judge)
app.command()(measure)
app.command()(export)
app.command()(words)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code. By contract a ValueError is a mistake of the caller's."""
    try:
        given = list(sys.argv[1:] if args is None else args) or ["--help"]
        return int(app(given, prog_name="darkroom train", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _wrong(error.format_message(), error.exit_code or WRONG)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bot", "engine"):
            raise
        return _wrong(f"This needs the engine ({error.name} is missing): pip install 'darkroom-bot[all]'.", WRONG)
    except OSError as error:
        return _wrong(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", WRONG)
    except (Unfit, ValueError) as error:
        return _wrong(str(error), WRONG)
    except (KeyboardInterrupt, typer.Abort):
        return _wrong("Stopped.", STOPPED)


def _wrong(sentence: str, code: int) -> int:
    say(f"darkroom train: {' '.join(sentence.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
