"""A network with its optimizers and moving average, and all state of its next update by name.

It is independent of losses and pictures. Frozen parameters have no average. Buffers (a spectral norm's vectors) are
saved like parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from training.core.muon import Muon

OPTIMIZER_MOMENTS = {False: ("exp_avg", "exp_avg_sq"), True: ("momentum",)}  # by whether Muon updates it


def warmup_factor(steps: int, warmup_steps: int) -> float:
    """Return the warm-up factor of the learning rate after `steps`: 1 after `warmup_steps` of them."""
    return min(1.0, (steps + 1) / warmup_steps)


def cosine_decay(progress: float) -> float:
    """Return the decay factor at this share of a run: half a cosine down to 0 (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


class Learner:
    """Updates the parameters of `network` that require a gradient, `is_muon_matrix` by Muon, all others by AdamW.

    `name` prefixes every tensor's name. Without `ema` the average is the network itself.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        ema: float | None = None,
        is_muon_matrix: Callable[[str, Tensor], bool] | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        self.name = name
        self.network = network
        self.ema = ema
        self.updates = 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False) if ema else network
        self.trainable_parameters = {
            key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad
        }
        self._muon_names = {
            key
            for key, parameter in self.trainable_parameters.items()
            if is_muon_matrix is not None and is_muon_matrix(key, parameter)
        }
        adamw_parameters = [
            parameter for key, parameter in self.trainable_parameters.items() if not self._uses_muon(key)
        ]
        muon_parameters = [parameter for key, parameter in self.trainable_parameters.items() if self._uses_muon(key)]
        self.optimizers: dict[bool, torch.optim.Optimizer] = {}
        if adamw_parameters:
            self.optimizers[False] = torch.optim.AdamW(
                adamw_parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
            )
        if muon_parameters:
            self.optimizers[True] = Muon(muon_parameters, weight_decay=weight_decay)

    @property
    def rate(self) -> float:
        """Return the learning rate of the last update."""
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def update(self, rate: float, clip: float = 1.0) -> None:
        """Update the parameters by their gradients and clear these."""
        torch.nn.utils.clip_grad_norm_(self.trainable_parameters.values(), clip)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self._update_average()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next update depends on, by name."""
        tensors = {f"{self.name}.{key}": tensor.detach() for key, tensor in self.network.state_dict().items()}
        tensors[f"{self.name}:moves"] = torch.tensor(self.updates)
        if self.ema:
            tensors |= {f"{self.name}:average.{key}": tensor for key, tensor in self._average_parameters().items()}
        if self.updates:
            for key, tensor in self.trainable_parameters.items():
                state = self.optimizers[self._uses_muon(key)].state[tensor]
                tensors |= {
                    f"{self.name}:{moment}.{key}": state[moment] for moment in OPTIMIZER_MOMENTS[self._uses_muon(key)]
                }
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved position. Raises KeyError for a missing tensor."""
        state = self.network.state_dict()
        for key, parameter in state.items():
            parameter.copy_(tensors[f"{self.name}.{key}"])
        self.updates = int(tensors[f"{self.name}:moves"])
        if self.ema:
            self.average.load_state_dict(state)
            for key, parameter in self._average_parameters().items():
                parameter.copy_(tensors[f"{self.name}:average.{key}"])
        if self.updates:
            for key, parameter in self.trainable_parameters.items():
                moments = {
                    moment: torch.empty_like(parameter).copy_(tensors[f"{self.name}:{moment}.{key}"])
                    for moment in OPTIMIZER_MOMENTS[self._uses_muon(key)]
                }
                steps = torch.tensor(
                    float(self.updates), device=parameter.device
                )  # not shared: the optimizer counts in it
                self.optimizers[self._uses_muon(key)].state[parameter] = {"step": steps, **moments}

    def _uses_muon(self, key: str) -> bool:
        return key in self._muon_names

    def _average_parameters(self) -> dict[str, Tensor]:
        return {
            key: parameter for key, parameter in self.average.named_parameters() if key in self.trainable_parameters
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.ema:
            return
        # A short run forgets its start sooner: until `ema` is reached, the average covers about a ninth of the steps.
        decay = min(self.ema, (1 + self.updates) / (10 + self.updates))
        for key, average in self._average_parameters().items():
            average.lerp_(self.trainable_parameters[key].detach(), 1 - decay)
