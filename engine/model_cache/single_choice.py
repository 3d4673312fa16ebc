"""How one model is loaded that has the whole memory budget of this machine, without a worker."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.device.memory_budget import model_budget
from engine.models.families.embedded import EMBEDDED_MODEL
from engine.models.files.model_source import find_model
from engine.models.loading.memory_estimate import InspectedModel, LoadChoice
from engine.models.loading.number_formats import FormatChooser
from engine.models.quantization.choice import PartQuantization, choose_quantizations
from engine.process.chosen_quantization import find_requests
from engine.process.offload_request import OffloadRequest
from engine.process.quantization_request import QuantizationRequests


def choose_for_one(
    model: str, requests: QuantizationRequests, data: Path, device: torch.device, offload: OffloadRequest = "none"
) -> tuple[str, LoadChoice]:
    """Return the model without its own request, and the way to load it (embedded: as it is, 0 bytes).

    Raises `JobRejected` where something is wrong with its files, or where weights cannot be stored so here.
    """
    name_or_path, own_requests = find_requests(model, requests, data)
    if name_or_path == EMBEDDED_MODEL:
        return name_or_path, LoadChoice(PartQuantization(), "none", 0)
    inspected = InspectedModel.from_source(find_model(name_or_path, data))
    chooser = FormatChooser(device)
    candidates = inspected.list_quantizations(chooser, own_requests, offload)
    budget = model_budget(device)
    [chosen] = choose_quantizations([candidates], budget)
    considered = (chosen,) if chosen.size <= budget else candidates
    return name_or_path, inspected.choose_load(chooser, considered, offload, budget)
