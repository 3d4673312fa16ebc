"""Progress output: a bar with the remaining time in a terminal, else a line at intervals. Knows no trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds, without a terminal

Tell = Callable[[float, str], None]  # the finished share, and a few words


def counted(number: int, thing: str) -> str:
    """Return a count with its noun: "1 step", "2 steps"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def say(sentence: str) -> None:
    """Print one line to standard error; standard output is for results."""
    typer.echo(sentence, err=True)


@contextmanager
def shown(what: str) -> Iterator[Tell]:
    """Show a bar called `what`; yields the function that updates it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[words]}"), console=console) as progress:
        task = progress.add_task(what, total=1.0, words="")
        yield lambda share, words: progress.update(task, completed=share, words=words)


def _lines(what: str) -> Tell:
    started, due = time.monotonic(), 0.0
    first: list[float] = []

    def tell(share: float, words: str) -> None:
        nonlocal due
        first[:] = first or [share]
        now = time.monotonic()
        if now >= due and share < 1:
            due = now + LINE_EVERY
            done = share - first[0]
            left = f", {timedelta(seconds=round((now - started) / done * (1 - share)))} left" if done > 0 else ""
            say(f"{what}: {share:.0%}{left}{f', {words}' if words else ''}")

    return tell
