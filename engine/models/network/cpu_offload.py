"""CPU offload: modules that are on the device only during their forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def offload_to_cpu(module: nn.Module, device: torch.device) -> None:
    """Keep the module on the host, and on the device only inside its forward."""
    module.to("cpu")

    def move_to_device(hooked_module: nn.Module, _: Any) -> None:
        hooked_module.to(device)

    def move_to_cpu(hooked_module: nn.Module, _: Any, out: Any) -> Any:
        hooked_module.to("cpu")
        return out

    module.register_forward_pre_hook(move_to_device)
    module.register_forward_hook(move_to_cpu, always_call=True)
