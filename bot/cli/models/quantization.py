"""Reads `--quantize` of `darkroom models`."""

from __future__ import annotations

from bot.domain.errors import UserError
from engine.process.memory_requests import QuantizationRequest
from engine.process.memory_requests import parse_quantization as parse_request


def parse_quantization(text: str) -> QuantizationRequest | None:
    """Return the choice; None for no text. Raise `UserError` for any other word."""
    if not text:
        return None
    try:
        return parse_request(text)
    except ValueError as error:
        raise UserError(f"--quantize: {error}, not {text[:40]!r}.") from error
