"""`darkroom rules close` and `open`: the kill switch of one server or of the whole bot.

The rule holds as soon as it is written. A running bot cancels open jobs there on its next rounds
(`bot.queue.shutting`), a stopped bot when it starts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from bot.cli.rules import EVERYWHERE, Data, Guild, member, run, tell

HOUSE = "this bot's operator"  # as members read the name

Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; members read it when they are refused.")]


def close(reason: Reason = "", guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Stop a server, or without --guild all: take no new jobs, cancel open ones and refund what they did not use."""
    who = replace(member(guild), name=HOUSE)
    change = run(data, lambda desk: desk.shut(who, reason))
    if change is None:
        typer.echo("It is closed already.")
        return
    tell(change)
    typer.echo("A running bot cancels the open jobs there within seconds and refunds what they did not use.")


def open_(guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Take new jobs again after close."""
    tell(run(data, lambda desk: desk.open(member(guild))))
