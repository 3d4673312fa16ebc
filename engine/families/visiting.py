"""Parts of a model that stay in the host's memory and visit the device for as long as they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def visits(module: nn.Module, device: torch.device) -> None:
    """From now on the module lies on the host, and is on the device only inside its own forward."""
    module.to("cpu")

    def come(here: nn.Module, _: Any) -> None:
        here.to(device)

    def leave(here: nn.Module, _: Any, out: Any) -> Any:
        here.to("cpu")
        return out

    module.register_forward_pre_hook(come)
    module.register_forward_hook(leave, always_call=True)
