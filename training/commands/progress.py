"""Progress output: a bar with the remaining time in a terminal, else a line at intervals. It works with any trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds, without a terminal

ProgressUpdate = Callable[[float, str], None]  # the finished share, and a few words


def count_noun(number: int, noun: str) -> str:
    """Return a count with its noun: "1 step", "2 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_status(message: str) -> None:
    """Print one line to standard error; standard output is for results."""
    typer.echo(message, err=True)


@contextmanager
def show_progress(title: str) -> Generator[ProgressUpdate]:
    """Show a bar called `title`; yields the function that updates it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _make_line_reporter(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[words]}"), console=console) as progress:
        task = progress.add_task(title, total=1.0, words="")
        yield lambda share, details: progress.update(task, completed=share, words=details)


@contextmanager
def show_counts(title: str, unit: str = "") -> Generator[Callable[[int, int], None]]:
    """Show a bar called `title`; yields the function that takes what is finished, and the total, in `unit`."""
    with show_progress(title) as report_progress:
        yield lambda finished, total: report_progress(finished / total, f"{finished} of {total} {unit}" if unit else "")


def _make_line_reporter(title: str) -> ProgressUpdate:
    start_time = time.monotonic()
    next_line = 0.0
    first_share: list[float] = []

    def report_progress(share: float, details: str) -> None:
        nonlocal next_line
        first_share[:] = first_share or [share]
        now = time.monotonic()
        if now >= next_line and share < 1:
            next_line = now + LINE_EVERY
            done_share = share - first_share[0]
            seconds_left = round((now - start_time) / done_share * (1 - share)) if done_share > 0 else 0
            remaining = f", {timedelta(seconds=seconds_left)} left" if done_share > 0 else ""
            print_status(f"{title}: {share:.0%}{remaining}{f', {details}' if details else ''}")

    return report_progress
