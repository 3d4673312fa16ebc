"""`darkroom rules close` and `darkroom rules open`: the kill switch of one server or of the whole bot.

The rule holds as soon as it is written. A running bot cancels open jobs there on its next rounds
(`bot.jobs.control`), a stopped bot when it starts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from bot.cli.rules.commands import EVERYWHERE, Data, Guild, operator_member, print_change, run_with_rule_admin

OPERATOR_NAME = "this bot's operator"  # the operator's name, as members read it

Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; members read it when they are refused.")]


def close(reason: Reason = "", guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Stop a server, or without --guild all: take no new jobs, cancel open ones and refund what they did not use."""
    operator = replace(operator_member(guild), name=OPERATOR_NAME)
    change = run_with_rule_admin(data, lambda admin: admin.mark_closed(operator, reason))
    if change is None:
        typer.echo("It is closed already.")
        return
    print_change(change)
    typer.echo("A running bot cancels the open jobs there within seconds and refunds what they did not use.")


def reopen(guild: Guild = EVERYWHERE, data: Data = None) -> None:
    """Take new jobs again after close."""
    print_change(run_with_rule_admin(data, lambda admin: admin.open_guild(operator_member(guild))))
