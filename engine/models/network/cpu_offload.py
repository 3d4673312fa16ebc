"""CPU offload: modules that are on the device as a whole, and only during their forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

RUN_DEVICE = "_run_device"  # attribute of an offloaded module: the device on which it runs


def offload_to_cpu(module: nn.Module, device: torch.device) -> None:
    """Keep the module on the host, and on the device only inside its forward."""
    module.to("cpu")
    vars(module)[RUN_DEVICE] = device

    def move_to_device(hooked_module: nn.Module, _: Any) -> None:
        hooked_module.to(device)

    def move_to_cpu(hooked_module: nn.Module, _: Any, out: Any) -> Any:
        hooked_module.to("cpu")
        return out

    module.register_forward_pre_hook(move_to_device)
    module.register_forward_hook(move_to_cpu, always_call=True)


def is_offloaded(module: Any) -> bool:
    """Whether the module's weights are off the device between its forwards, as a whole or layer by layer."""
    return RUN_DEVICE in vars(module)
