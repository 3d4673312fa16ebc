"""The Muon optimizer: momentum, made orthogonal matrix by matrix, so that rare directions are learnt too.

A convolution `[out, in, h, w]` counts as the matrix `[out, in·h·w]`. AdamW updates biases, norms and the first and last
layer. Jordan 2024 (Muon); the scale that allows AdamW's learning rates: Liu 2025 (Moonlight), eq. 4; the polynomials:
Amsel 2025 (Polar Express), table 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
ADAMW_UPDATE_RMS = 0.2  # the root mean square of AdamW's updates
MIN_MATRIX_SIDE = 64  # smallest side of a matrix; below, orthogonality gains nothing


@torch.no_grad()
def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the nearest matrix `[rows, columns]` with singular values of about 1; computes in bf16, returns fp32."""
    is_tall = matrix.size(0) > matrix.size(1)
    x = (matrix.T if is_tall else matrix).bfloat16().contiguous()
    x = x / (cast(Tensor, x.norm()) * 1.01 + 1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if is_tall else x).float()


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is an inner matrix of a network: no vector, and not in the first or last layer."""
    is_outer = name.startswith(("conv_in.", "conv_out."))
    return not is_outer and parameter.ndim >= 2 and min(parameter.size(0), parameter[0].numel()) >= MIN_MATRIX_SIDE


class Muon(torch.optim.Optimizer):
    """Muon; `lr` and `weight_decay` mean the same as in AdamW. State: one `momentum` for each parameter."""

    def __init__(
        self, params: Iterable[Any], lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  (no closures here)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update_parameter(
                        parameter, parameter.grad, group["lr"], group["weight_decay"], group["momentum"]
                    )

    def _update_parameter(
        self, parameter: Tensor, gradient: Tensor, rate: float, weight_decay: float, momentum_decay: float
    ) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - momentum_decay)
        lookahead = gradient.lerp(momentum, momentum_decay).reshape(parameter.size(0), -1)  # Nesterov
        update = orthogonalize(lookahead).view(parameter.shape)
        parameter.mul_(1 - rate * weight_decay).add_(
            update, alpha=-rate * ADAMW_UPDATE_RMS * math.sqrt(max(lookahead.shape))
        )
