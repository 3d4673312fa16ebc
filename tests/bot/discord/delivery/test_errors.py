"""The meaning of an error for one message: gone, later, or an answer that is not from Discord."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import discord
import pytest

from bot.discord.delivery.discord_api import DestinationGone, RequestRejected, RetryLater, translate_errors

PAGE = "<!DOCTYPE html><title>Attention Required! | Cloudflare</title>"


def translate_error(status: int, body: str | dict[str, Any]) -> Exception:
    with pytest.raises(Exception) as error, translate_errors():  # noqa: PT011
        raise discord.HTTPException(SimpleNamespace(status=status, reason=""), body)  # type: ignore[arg-type]
    return error.value


@pytest.mark.parametrize("status", [401, 403, 404, 429, 502])
@pytest.mark.parametrize("body", [PAGE, {"code": 0, "message": "no"}])
def test_an_error_without_discords_code_never_means_gone(status: int, body: str | dict[str, Any]) -> None:
    error = translate_error(status, body)
    assert isinstance(error, RetryLater)
    assert error.outage or status in (401, 429)
    if body == PAGE and status != 502:
        assert error.seconds >= 60.0
    assert error.rate_limited == (status == 429)


@pytest.mark.parametrize(("status", "code"), [(404, 10003), (403, 50001), (403, 50999), (400, 50083), (429, 30046)])
def test_an_error_with_discords_code_means_gone(status: int, code: int) -> None:
    assert isinstance(translate_error(status, {"code": code, "message": "no"}), DestinationGone)


def test_a_bad_request_of_ours_is_unwanted() -> None:
    error = translate_error(400, {"code": 50035, "message": "Invalid Form Body"})
    assert isinstance(error, RequestRejected)
    assert error.code == 50035
