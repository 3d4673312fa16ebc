"""What an operator asks of a model's memory, on the command line or in the environment. Imports nothing heavy.

Quantisation says how its weights are kept, offloading which of them stay off the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

QuantizationRequest = Literal["auto", "none", "int8", "int4", "float8", "nf4"]
QUANTIZATION_REQUESTS: tuple[QuantizationRequest, ...] = get_args(QuantizationRequest)
OTHER_NAMES = {"fp8": "float8"}
EXPECTED_WORDS = "auto, none, int8, int4, fp8 or nf4 is needed"


@dataclass(frozen=True)
class QuantizationRequests:
    """What is asked of network and text encoders. `text` None: nothing where `network` is none, else auto."""

    network: QuantizationRequest = "auto"
    text: QuantizationRequest | None = None

    @property
    def text_request(self) -> QuantizationRequest:
        if self.text is not None:
            return self.text
        return "none" if self.network == "none" else "auto"


UNQUANTIZED = QuantizationRequests("none", "none")


def parse_quantization(text: str) -> QuantizationRequest:
    """Return the request; `fp8` is another name of float8. Raises ValueError that says which words there are."""
    word = text.strip().lower()
    word = OTHER_NAMES.get(word, word)
    if word not in QUANTIZATION_REQUESTS:
        raise ValueError(EXPECTED_WORDS)
    return word


def split_model_request(model: str, requests: QuantizationRequests) -> tuple[str, QuantizationRequests]:
    """Split `sdxl=int8` into the model and its own request, which wins; any other text is the model's alone."""
    name, equals, word = model.rpartition("=")
    try:
        own_request = parse_quantization(word) if equals and name else None
    except ValueError:  # an equals sign of the path
        own_request = None
    return (model, requests) if own_request is None else (name, QuantizationRequests(own_request, requests.text))


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
