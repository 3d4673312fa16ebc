"""The `darkroom train` command line. A mistake of the user ends in one sentence and exit code 2.

Each command is a file of `training/commands/`; it imports torch only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from engine.contract.rejection import JobRejected
from training.commands.autoencoder import autoencoder
from training.commands.decoder import decoder
from training.commands.diffusion import diffusion
from training.commands.evaluate import evaluate
from training.commands.judge import judge
from training.commands.lora import lora
from training.commands.measure import export, measure
from training.commands.pack import pack
from training.commands.progress import print_status
from training.commands.styles import styles
from training.commands.substitutes import substitutes
from training.commands.turbo import turbo
from training.commands.upscaler import upscaler
from training.commands.words import words

app = typer.Typer(
    help="Train the parts of the embedded model, and models of your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
EXIT_USAGE_ERROR = 2
EXIT_INTERRUPTED = 130


@app.callback()
def commands() -> None:
    """Train the parts of the embedded model, and models of your own."""


app.command()(autoencoder)
app.command()(decoder)
app.command()(diffusion)
app.command()(lora)
app.command()(turbo)
app.command()(upscaler)
app.command()(evaluate)
app.command()(judge)
app.command()(measure)
app.command()(export)
app.command()(words)
app.command()(substitutes)
app.command()(styles)
app.command()(pack)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code. By contract a ValueError is a mistake of the user."""
    try:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        return int(app(arguments, prog_name="darkroom train", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _report_error(error.format_message(), error.exit_code or EXIT_USAGE_ERROR)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bot", "engine"):
            raise
        return _report_error(
            f"This needs the engine ({error.name} is missing): pip install 'darkroom-bot[all]'.", EXIT_USAGE_ERROR
        )
    except OSError as error:
        return _report_error(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", EXIT_USAGE_ERROR
        )
    except (JobRejected, ValueError) as error:
        return _report_error(str(error), EXIT_USAGE_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return _report_error("Stopped.", EXIT_INTERRUPTED)


def _report_error(message: str, code: int) -> int:
    print_status(f"darkroom train: {' '.join(message.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
