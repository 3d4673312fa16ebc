"""Metrics count the outcome of each request to Discord."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bot.discord.delivery.courier import count_request
from bot.discord.delivery.discord_api import RequestRejected, RetryLater, TokenExpired
from bot.discord.delivery.edit_policy import Edit

EDIT = Edit("job", "bucket", "final", object(), 0.0)


@pytest.mark.parametrize(
    ("raised_error", "outcome"),
    [
        (None, "done"),
        (RetryLater(1.0, "slow", rate_limited=True), "limited"),
        (RetryLater(1.0, "away", outage=True), "outage"),
        (RetryLater(1.0, "not yet"), "later"),
        (TokenExpired("token"), "expired"),
        (RequestRejected("no", 50035), "failed"),
    ],
)
def test_each_outcome_is_counted_and_errors_propagate(raised_error, outcome):
    counts: list[tuple[str, str]] = []

    def run_edit() -> None:
        with count_request(EDIT, "job", SimpleNamespace(response_lost=False), lambda *one: counts.append(one)):  # type: ignore[arg-type]
            if raised_error is not None:
                raise raised_error

    if raised_error is None:
        run_edit()
    else:
        with pytest.raises(type(raised_error)):
            run_edit()
    assert counts == [("final", outcome)]


def test_an_edit_of_a_deleted_message_counts_as_gone():
    counts: list[tuple[str, str]] = []
    with count_request(EDIT, "job", SimpleNamespace(response_lost=True), lambda *one: counts.append(one)):  # type: ignore[arg-type]
        pass
    assert counts == [("final", "gone")]
