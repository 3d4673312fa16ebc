"""Reads `--quantize` of `darkroom models`."""

from __future__ import annotations

from typing import cast, get_args

from bot.domain.errors import UserError
from engine.process.model_settings import QuantizationChoice

CHOICES: tuple[str, ...] = get_args(QuantizationChoice)


def parse_quantization(text: str) -> QuantizationChoice | None:
    """Return the choice; None for no text. Raise `UserError` for any other word."""
    if not text:
        return None
    choice = {"fp8": "float8"}.get(text.lower(), text.lower())
    if choice not in CHOICES:
        raise UserError(f"--quantize: auto, none, int8, int4, fp8 or nf4, not {text[:40]!r}.")
    return cast(QuantizationChoice, choice)
