"""The options that all training commands share, and the decorator that adds them to a command.

It has names, defaults and signatures, and opens nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the run is kept, and its result at the end.")]
Pictures = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Pictures of your own; without it the built-in artwork is used."),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Where the built-in artwork is kept, or a file of `train pack`; by default ~/.cache/darkroom/training.",
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, max=10**9, help="End after so many steps. This, --samples or --until is needed.")
]
Samples = Annotated[int | None, typer.Option(min=1, max=10**12, help="End after so many pictures seen.")]
Until = Annotated[str, typer.Option(metavar="HH:MM", help="End at this time of the clock.")]
Minutes = Annotated[float | None, typer.Option(min=0.01, max=1440, help="Minutes between two checkpoints.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads; by default one for each core.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="The same seed repeats the same training.")]
Batch = Annotated[int | None, typer.Option(min=1, max=65536, help="Pictures in a step.")]
Rate = Annotated[float | None, typer.Option(min=1e-9, max=1.0, help="The learning rate's peak.")]
Flip = Annotated[bool, typer.Option("--flip", help="Train on mirrored pictures, too; not where left and right matter.")]
Device = Annotated[
    Literal["cpu", "cuda", "mps"] | None,
    typer.Option(help="Where the network learns; by default a GPU if there is one."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over and delete what this folder's run has saved.")]


@dataclass(frozen=True)
class TrainOptions:
    """The options of every training command: where the run is kept, when it ends, how often it saves, how it learns.

    None means the command's default.
    """

    out: Out
    steps: Steps = None
    samples: Samples = None
    until: Until = ""
    batch: Batch = None
    rate: Rate = None
    seed: Seed = None
    minutes: Minutes = None
    threads: Threads = None
    device: Device = None
    fresh: Fresh = False

    @property
    def setting_overrides(self) -> dict[str, float | None]:
        """Return the options that are trainer settings."""
        return {"seed": self.seed, "rate": self.rate, "batch": self.batch}

    def end_time(self) -> float | None:
        """Return the end by the clock in seconds since the epoch.

        Raises ValueError if no end is given, or no valid time.
        """
        if not (self.until or self.steps or self.samples):
            raise ValueError("Say when to end: --steps N, --samples N or --until HH:MM.")
        return next_clock_time(self.until) if self.until else None


@dataclass(frozen=True)
class SettingOption:
    """An option that is a setting of a trainer; left out, the trainer's default holds."""

    name: str
    kind: Any
    help: str
    min: float | None = None
    max: float | None = None
    metavar: str | None = None
    flags: str = ""

    def make_parameter(self) -> inspect.Parameter:
        """Return the parameter of a command, as typer reads it."""
        names = (self.flags,) if self.flags else ()
        option = typer.Option(*names, min=self.min, max=self.max, metavar=self.metavar, help=self.help)
        annotation = Annotated[self.kind | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)


def with_train_options(*settings: SettingOption) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameters `options` and `overrides` in a command's signature, for typer to read.

    In their places come every field of `TrainOptions`, and these settings.
    """
    type_hints = get_type_hints(TrainOptions, include_extras=True)
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=type_hints[option.name],
            default=inspect.Parameter.empty if option.default is MISSING else option.default,
        )
        for option in fields(TrainOptions)
    ]

    def add_options(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            train_options = TrainOptions(**{option.name: arguments.pop(option.name) for option in options})
            overrides = {setting.name: arguments.pop(setting.name) for setting in settings}
            command(train_options, overrides, **arguments)

        _, _, *own_options = inspect.signature(command, eval_str=True).parameters.values()
        setting_options = [setting.make_parameter() for setting in settings]
        give_signature(run, [*options[:1], *own_options, *setting_options, *options[1:]])
        return run

    return add_options


def give_signature(run: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Give a function that takes any keyword the parameters that typer reads."""
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(keywords)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}


def next_clock_time(until: str, now: Callable[[], datetime] = lambda: datetime.now().astimezone()) -> float:
    """Return the next time at which the wall clock shows HH:MM. Raises ValueError."""
    try:
        time_of_day = datetime.strptime(until, "%H:%M").time()  # noqa: DTZ007  (the caller's wall clock)
    except ValueError:
        raise ValueError(f"--until takes a time like 15:25, and {until[:40]!r} is none.") from None
    end_time = now().replace(hour=time_of_day.hour, minute=time_of_day.minute, second=0, microsecond=0)
    return (end_time if end_time > now() else end_time + timedelta(days=1)).timestamp()


def default_cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/darkroom/training`, or `~/.cache/darkroom/training`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "darkroom" / "training"
