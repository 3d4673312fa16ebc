"""`darkroom jobs`: lists, shows and changes jobs for the operator, with or without a running bot.

Reads and writes the store that the settings name. A running bot notices changes there within a second or two
(`bot.jobs.control`). Slow imports happen inside the commands.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from bot.cli.options import print_json
from bot.cli.rules import AsJson, Data, prefix_discord_id

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Jobs of all members: list and show them, why one waits, cancel one, queue one again (docs/operations.md).",
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its beginning.")]


@app.command("list")
def list_jobs(
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help="queued, sent, running, finished, …; or open, over.")
    ] = None,
    guild: Annotated[str, typer.Option(metavar="ID", callback=prefix_discord_id, help="Of this server alone.")] = "",
    member: Annotated[
        str, typer.Option(metavar="ID", callback=prefix_discord_id, help="Of this member alone, as discord:123.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    oldest_first: Annotated[bool, typer.Option("--oldest", help="The oldest first; else the newest.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """List jobs, the newest first."""
    from bot.cli.jobs import tables
    from bot.cli.jobs.admin import find_jobs

    records = find_jobs(data, state or [], guild, member, limit, oldest_first)
    if as_json:
        print_json([tables.record_to_dict(record) for record in records])
    elif records:
        tables.print_table(records, time.time())
    else:
        typer.echo("There is no such job." if state or guild or member else "There is no job yet.")


@app.command()
def show(job: JobId, as_json: AsJson = False, data: Data = None) -> None:
    """Show everything that is known of one job."""
    from bot.cli.jobs import tables
    from bot.cli.jobs.admin import load_details

    details = load_details(data, job)
    if as_json:
        print_json(tables.details_to_dict(details))
    else:
        tables.print_details(details)


@app.command("why")
def explain_wait(job: JobId, as_json: AsJson = False, data: Data = None) -> None:
    """Explain why a job waits."""
    from bot.cli.jobs import admin

    explanation = admin.explain_wait(data, job)
    if as_json:
        print_json(explanation)
    else:
        typer.echo(explanation["sentence"])


@app.command()
def cancel(job: JobId, data: Data = None) -> None:
    """Cancel a job: at once while it waits, else at its next step."""
    from bot.cli.jobs.admin import cancel_job

    typer.echo(cancel_job(data, job))


@app.command()
def requeue(job: JobId, data: Data = None) -> None:
    """Take a job from its worker and put it back into the queue, as a new attempt."""
    from bot.cli.jobs.admin import requeue_job

    typer.echo(requeue_job(data, job))
