"""How a model's weights are kept: as the command line asks, else as the operator chose for that model."""

from __future__ import annotations

from pathlib import Path

from engine.contract.rejection import JobRejected
from engine.process.model_settings import ModelSettingsError, read_model_settings
from engine.process.quantization_request import QuantizationRequests, split_model_request


def find_requests(model: str, requests: QuantizationRequests, data: Path) -> tuple[str, QuantizationRequests]:
    """Return the model and what holds for it: `sdxl=int8` wins, then `--quantize`, then `darkroom models --quantize`.

    Raises `JobRejected` where the settings of the models cannot be read.
    """
    name, own_requests = split_model_request(model, requests)
    if name != model or requests.network != "auto":
        return name, own_requests
    try:
        choice = read_model_settings(data).get(name).quantize
    except ModelSettingsError as error:
        raise JobRejected(str(error), "worker") from error
    return (name, requests) if choice is None else (name, QuantizationRequests(choice, requests.text))
