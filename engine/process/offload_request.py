"""What an operator asks to keep off the device, on the command line or in the environment. Imports no torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Literal, get_args

Offload = Literal["none", "text", "layers"]  # what stays off the device: nothing, text encoders, or also the network
OffloadRequest = Literal["auto", "none", "text", "layers"]
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
OFFLOAD_REQUESTS: tuple[OffloadRequest, ...] = get_args(OffloadRequest)
OFFLOAD_OPTION, OFFLOAD_VARIABLE = "--offload", "DARKROOM_OFFLOAD"
_SWITCH_WORDS: dict[str, Offload] = {  # of the option that was a switch, and of its variable
    "1": "text", "true": "text", "yes": "text", "on": "text", "0": "none", "false": "none", "no": "none", "off": "none"
}  # fmt: skip


def parse_offload(value: str | bool) -> OffloadRequest:
    """Return the request; yes means text encoders, as before there was a choice. Raises ValueError with the words."""
    word = str(value).strip().lower()
    word = _SWITCH_WORDS.get(word, word)
    if word not in OFFLOAD_REQUESTS:
        raise ValueError("auto, none, text or layers is needed")
    return word


def load_offload_request(word: str = "") -> OffloadRequest:
    """Return what the option asks for, else the environment, else `auto`. Raises ValueError with one sentence."""
    try:
        return parse_offload(word or os.environ.get(OFFLOAD_VARIABLE) or "auto")
    except ValueError as error:
        raise ValueError(f"{OFFLOAD_OPTION} or {OFFLOAD_VARIABLE}: {error}.") from None


def complete_switch(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `text` after each `--offload` without a word: it was a switch once."""
    completed = list[str]()
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        is_switch = argument == OFFLOAD_OPTION and following.startswith("-")
        completed += [argument, "text"] if is_switch else [argument]
    return completed
