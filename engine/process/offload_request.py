"""What an operator asks to keep off the device, on the command line or in the environment. Imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

Offload = Literal["none", "text", "layers"]  # what stays off the device: nothing, text encoders, or also the network
OffloadRequest = Literal["auto", "none", "text", "layers"]
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
OFFLOAD_REQUESTS: tuple[OffloadRequest, ...] = get_args(OffloadRequest)


def parse_offload(text: str) -> OffloadRequest:
    """Return the request. Raises ValueError with the words that there are."""
    word = text.strip().lower()
    if word not in OFFLOAD_REQUESTS:
        raise ValueError("auto, none, text or layers is needed")
    return word
