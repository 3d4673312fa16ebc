"""The options that all training commands share, and the decorator that adds them to a command.

Knows names, defaults and signatures; opens nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the run is kept, and its result at the end.")]
From = Annotated[
    str,
    typer.Option(
        "--from", metavar="MODEL", help="The starting model: embedded, a diffusers folder, or (diffusion) scratch."
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Pictures of your own; without it the built-in artwork is used."),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="FOLDER", help="Where the built-in artwork is kept; by default ~/.cache/darkroom/training."
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
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over and delete what this folder's run has saved.")]


@dataclass(frozen=True)
class Course:
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
    fresh: Fresh = False

    @property
    def given(self) -> dict[str, float | None]:
        """Return the options that are trainer settings."""
        return {"seed": self.seed, "rate": self.rate, "batch": self.batch}

    def ending(self) -> float | None:
        """Return the end by the clock in seconds since the epoch.

        Raises ValueError if no end is given, or no valid time.
        """
        if not (self.until or self.steps or self.samples):
            raise ValueError("Say when to end: --steps N, --samples N or --until HH:MM.")
        return clock(self.until) if self.until else None


def with_course(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `course` in a command's signature by every option of `Course`, for typer to read."""
    shared, own = fields(Course), inspect.signature(command, eval_str=True).parameters
    said = get_type_hints(Course, include_extras=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(Course(**{one.name: given.pop(one.name) for one in shared}), **given)

    options = [
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, annotation=said[one.name],
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
        )
        for one in shared
    ]  # fmt: skip
    asked = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, one in own.items() if name != "course"]
    run.__signature__ = inspect.Signature([*options[:1], *asked, *options[1:]])  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {one.name: one.annotation for one in [*options, *asked]}
    return run


def clock(until: str, now: Callable[[], datetime] = lambda: datetime.now().astimezone()) -> float:
    """Return the next time at which the wall clock shows HH:MM. Raises ValueError."""
    try:
        wanted = datetime.strptime(until, "%H:%M").time()  # noqa: DTZ007  (the caller's wall clock)
    except ValueError:
        raise ValueError(f"--until takes a time like 15:25, and {until[:40]!r} is none.") from None
    end = now().replace(hour=wanted.hour, minute=wanted.minute, second=0, microsecond=0)
    return (end if end > now() else end + timedelta(days=1)).timestamp()


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/darkroom/training`, or `~/.cache/darkroom/training`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "darkroom" / "training"
