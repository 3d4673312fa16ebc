"""CPU offload: modules that are on the device only during their forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def visits(module: nn.Module, device: torch.device) -> None:
    """Keep the module on the host, and on the device only inside its forward."""
    module.to("cpu")

    def come(here: nn.Module, _: Any) -> None:
        here.to(device)

    def leave(here: nn.Module, _: Any, out: Any) -> Any:
        here.to("cpu")
        return out

    module.register_forward_pre_hook(come)
    module.register_forward_hook(leave, always_call=True)
