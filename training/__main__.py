"""The `darkroom train` command line. A mistake of the user ends in one sentence and exit code 2.

The commands are in `training/commands/`; they import torch only when they run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from engine.contract import JobRejected
from training.commands.artwork_files import pack, styles, substitutes, words
from training.commands.evaluate import evaluate, export, measure
from training.commands.progress import print_status
from training.commands.trainings import autoencoder, decoder, diffusion, judge, lora, turbo, upscaler

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


for command in (autoencoder, decoder, diffusion, lora, turbo, upscaler, evaluate):
    app.command()(command)
for command in (judge, measure, export, words, substitutes, styles, pack):
    app.command()(command)


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
        needed = f"This needs the engine ({error.name} is missing): pip install 'darkroom-bot[all]'."
        return _report_error(needed, EXIT_USAGE_ERROR)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return _report_error(f"{error.strerror or error}{place}", EXIT_USAGE_ERROR)
    except (JobRejected, ValueError) as error:
        return _report_error(str(error), EXIT_USAGE_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return _report_error("Stopped.", EXIT_INTERRUPTED)


def _report_error(message: str, code: int) -> int:
    print_status(f"darkroom train: {' '.join(message.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
