"""What became of a request to Discord, as it is counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bot.chat.post.counted import counted
from bot.chat.post.edits import Edit
from bot.chat.post.troubles import Expired, Later, Unwanted

EDIT = Edit("job", "bucket", "final", object(), 0.0)


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (None, "done"), (Later(1.0, "slow", limited=True), "limited"), (Later(1.0, "away", outage=True), "outage"),
        (Later(1.0, "not yet"), "later"), (Expired("token"), "expired"), (Unwanted("no", 50035), "failed"),
    ],
)  # fmt: skip
def test_each_outcome_has_a_word_and_troubles_pass_on(raised, outcome):
    heard: list[tuple[str, str]] = []

    def ask() -> None:
        with counted(EDIT, "job", SimpleNamespace(lost=False), lambda *one: heard.append(one)):  # type: ignore[arg-type]
            if raised is not None:
                raise raised

    if raised is None:
        ask()
    else:
        with pytest.raises(type(raised)):
            ask()
    assert heard == [("final", outcome)]


def test_a_message_that_is_gone_is_not_done():
    heard: list[tuple[str, str]] = []
    with counted(EDIT, "job", SimpleNamespace(lost=True), lambda *one: heard.append(one)):  # type: ignore[arg-type]
        pass
    assert heard == [("final", "gone")]
