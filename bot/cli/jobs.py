"""`darkroom jobs`: lists, shows and changes jobs for the operator, with or without a running bot.

Reads and writes the store that the settings name. A running bot notices changes there within a second or two
(`bot.queue.noticing`). Slow imports happen inside the commands.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.cli.rules import discord

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Jobs of all members: list and show them, why one waits, cancel one, queue one again (docs/operations.md).",
)

Job = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the store (DARKROOM_DATA).")]


@app.command("list")
def list_(
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help="queued, sent, running, finished, …; or open, over.")
    ] = None,
    guild: Annotated[str, typer.Option(metavar="ID", callback=discord, help="Of this server alone.")] = "",
    member: Annotated[
        str, typer.Option(metavar="ID", callback=discord, help="Of this member alone, as discord:123.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first; else the newest.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """List jobs, the newest first."""
    from bot.cli import jobs_plain, jobs_shown
    from bot.cli.jobs_store import listed

    found = listed(data, state or [], guild, member, limit, oldest)
    if as_json:
        _print_json([jobs_plain.plain(one) for one in found])
    elif found:
        jobs_shown.table(found, time.time())
    else:
        typer.echo("There is no such job." if state or guild or member else "There is no job yet.")


@app.command()
def show(job: Job, as_json: AsJson = False, data: Data = None) -> None:
    """Show everything that is known of one job."""
    from bot.cli import jobs_plain, jobs_shown
    from bot.cli.jobs_store import whole

    found = whole(data, job)
    if as_json:
        _print_json(jobs_plain.everything(found))
    else:
        jobs_shown.sheet(found)


@app.command()
def why(job: Job, as_json: AsJson = False, data: Data = None) -> None:
    """Explain why a job waits."""
    from bot.cli import jobs_why

    found = jobs_why.explain(data, job)
    if as_json:
        _print_json(found.plain())
    else:
        typer.echo(found.sentence)


@app.command()
def cancel(job: Job, data: Data = None) -> None:
    """Cancel a job: at once while it waits, else at its next step."""
    from bot.cli.jobs_store import cancelled

    typer.echo(cancelled(data, job))


@app.command()
def requeue(job: Job, data: Data = None) -> None:
    """Take a job from its worker and put it back into the queue, as a new attempt."""
    from bot.cli.jobs_store import requeued

    typer.echo(requeued(data, job))


def _print_json(found: Any) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
