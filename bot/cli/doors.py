"""`darkroom rules close` and `open`: the kill switch from the command line, of one server or of the whole bot.

The rule is written here and holds at once; a running bot cancels what is open there on its next rounds
(`bot.queue.shutting`), and one that does not run, when it starts. Knows `Administration`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from bot.cli.rules import EVERYWHERE, Data, Guild, member, run, tell

HOUSE = "whoever runs this bot"  # as members read it

Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; members read it when they are refused.")]


def close(reason: Reason = "", guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Stop a server, or without --guild all: nothing new is taken, what is open is cancelled and given back."""
    who = replace(member(guild), name=HOUSE)
    change = run(data, lambda desk: desk.shut(who, reason))
    if change is None:
        typer.echo("It is closed so already.")
        return
    tell(change)
    typer.echo("A running bot cancels what is open there within seconds; what was not run is given back.")


def open_(guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Take new jobs again after close."""
    tell(run(data, lambda desk: desk.open(member(guild))))
