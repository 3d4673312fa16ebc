"""What Discord's errors mean for one message: gone, later, or somebody else's word in between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import discord
import pytest

from bot.chat.post.troubles import Gone, Later, Unwanted, told

PAGE = "<!DOCTYPE html><title>Attention Required! | Cloudflare</title>"


def meant(status: int, said: str | dict[str, Any]) -> Exception:
    with pytest.raises(Exception) as caught, told():  # noqa: PT011
        raise discord.HTTPException(SimpleNamespace(status=status, reason=""), said)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("status", [401, 403, 404, 429, 502])
@pytest.mark.parametrize("said", [PAGE, {"code": 0, "message": "no"}])
def test_without_discords_code_nothing_is_gone(status: int, said: str | dict[str, Any]) -> None:
    error = meant(status, said)
    assert isinstance(error, Later)
    assert error.outage or status in (401, 429)
    if said == PAGE and status != 502:
        assert error.seconds >= 60.0
    assert error.limited == (status == 429)


@pytest.mark.parametrize(("status", "code"), [(404, 10003), (403, 50001), (403, 50999), (400, 50083), (429, 30046)])
def test_with_its_code_it_is(status: int, code: int) -> None:
    assert isinstance(meant(status, {"code": code, "message": "no"}), Gone)


def test_a_mistake_of_ours_is_neither() -> None:
    error = meant(400, {"code": 50035, "message": "Invalid Form Body"})
    assert isinstance(error, Unwanted)
    assert error.code == 50035
