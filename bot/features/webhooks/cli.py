"""`darkroom webhook`: addresses that are told about jobs.

Works on the store, with or without a running bot, which notices within a second. Slow imports happen inside the
commands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bot.cli.options import AsJson, Data, format_minute

if TYPE_CHECKING:
    from bot.features.webhooks.service import Webhooks, WebhookState
    from bot.features.webhooks.store import WebhookDelivery
    from bot.store import Store

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Webhooks: addresses that are told about jobs, as Standard Webhooks says (docs/webhooks.md).",
)
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="Its id, or the end of it.")]


@app.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="As https://hooks.example/darkroom.")],
    events: Annotated[
        str, typer.Option(metavar="NAMES", help="Of queued, started, preview, finished, failed, cancelled.")
    ] = "started,finished,failed,cancelled",
    key: Annotated[str, typer.Option(metavar="NAME", help="Only jobs of this API key; else all jobs.")] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Add a webhook; prints the secret that its messages are signed with."""
    names = [name.strip() for name in events.split(",") if name.strip()]
    webhook = _run(data, lambda webhooks: webhooks.add(url, names, key_name=key))
    if as_json:
        typer.echo(json.dumps(asdict(webhook), indent=1))
        return
    typer.echo(f"The webhook {webhook.id} is sent {', '.join(webhook.events)}. Its messages are signed with:\n")
    typer.echo(f"  {webhook.secret}")


@app.command("list")
def list_webhooks(as_json: AsJson = False, data: Data = None) -> None:
    """List the webhooks, with what waits, what was delivered in the last week, and what could not be."""
    states = _run(data, lambda webhooks: webhooks.list_all())
    if as_json:
        typer.echo(json.dumps([_to_dict(state) for state in states], indent=1))
        return
    typer.echo("\n".join(map(_format_state, states)) or "There is no webhook.")


@app.command()
def remove(webhook: WebhookId, data: Data = None) -> None:
    """Remove a webhook with all its events."""
    removed = _run(data, lambda webhooks: webhooks.remove(webhook))
    typer.echo(f"The webhook {removed.id} is removed.")


@app.command()
def dead(webhook: WebhookId, as_json: AsJson = False, data: Data = None) -> None:
    """List the dead letters of a webhook: events that it did not take, whatever was tried."""
    letters = _run(data, lambda webhooks: webhooks.list_dead(webhook))
    if as_json:
        typer.echo(json.dumps([asdict(letter) | {"id": letter.id} for letter in letters], indent=1))
        return
    typer.echo("\n".join(map(_format_letter, letters)) or "There is no dead letter.")


@app.command()
def replay(
    webhook: WebhookId,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="All events of so long, as 2h; else the dead letters only.")
    ] = "",
    data: Data = None,
) -> None:
    """Send dead letters again, and turn the webhook on if it was off."""
    from bot.cli.api_keys import parse_time

    count = _run(data, lambda webhooks: webhooks.replay(webhook, seconds=parse_time("--since", since)))
    typer.echo(f"{count} {'event is' if count == 1 else 'events are'} sent again.")


def _run(data: Path | None, action: Callable[[Webhooks], Awaitable[T]]) -> T:
    from bot.cli.store_session import load_store_settings, run_with_store
    from bot.features.webhooks.rules import PrivateHosts
    from bot.features.webhooks.service import Webhooks
    from bot.features.webhooks.settings import WebhookSettings

    settings = load_store_settings(data)

    async def run_action(store: Store) -> T:
        return await action(Webhooks(store, PrivateHosts.parse(settings.of(WebhookSettings).hosts), clock=time.time))

    return run_with_store(settings.database, run_action)


def _format_state(state: WebhookState) -> str:
    webhook = state.webhook
    events = ",".join(event.removeprefix("job.") for event in webhook.events)
    jobs = f"jobs of {webhook.key_name}" if webhook.key_name else "all jobs"
    counts = f"{state.waiting} waiting, {state.delivered} delivered, {state.dead} dead"
    off = "" if webhook.enabled else f"\n  off: {webhook.reason}"
    return f"{webhook.id}  {webhook.url}\n  {events} of {jobs}: {counts}{off}"


def _format_letter(letter: WebhookDelivery) -> str:
    return f"{format_minute(letter.at)}  {letter.event:14}  {letter.job}  {letter.tries} tries: {letter.error}"


def _to_dict(state: WebhookState) -> dict[str, Any]:
    """Return a webhook without its secret: that was shown when it was made."""
    shown = {name: value for name, value in asdict(state.webhook).items() if name != "secret"}
    return shown | {"waiting": state.waiting, "delivered": state.delivered, "dead": state.dead}


COMMANDS = {"webhook": app}
