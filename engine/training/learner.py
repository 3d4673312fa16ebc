"""A network with its optimizers and moving average, and all state of its next update by name.

Knows tensors; knows nothing of losses or pictures. Frozen parameters have no average. Buffers (a spectral norm's
vectors) are saved like parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from engine.training.muon import Muon

MOMENTS = {False: ("exp_avg", "exp_avg_sq"), True: ("momentum",)}  # by whether Muon updates it


def warming(steps: int, warm: int) -> float:
    """Return the warm-up factor of the learning rate after `steps`: 1 after `warm` of them."""
    return min(1.0, (steps + 1) / warm)


def falling(share: float) -> float:
    """Return the decay factor at this share of a run: half a cosine down to 0 (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 + 0.5 * math.cos(math.pi * share)


class Learner:
    """Updates the parameters of `network` that require a gradient: `matrices` by Muon, all others by AdamW.

    `name` prefixes every tensor's name. Without `ema` the average is the network itself.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        ema: float | None = None,
        matrices: Callable[[str, Tensor], bool] | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        decay: float = 0.0,
    ) -> None:
        self.name, self.network, self.ema, self.moves = name, network, ema, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False) if ema else network
        self.moving = {key: one for key, one in network.named_parameters() if one.requires_grad}
        self._muons = {key for key, one in self.moving.items() if matrices is not None and matrices(key, one)}
        adam = [one for key, one in self.moving.items() if not self._by_muon(key)]
        muons = [one for key, one in self.moving.items() if self._by_muon(key)]
        self.optimizers: dict[bool, torch.optim.Optimizer] = {}
        if adam:
            self.optimizers[False] = torch.optim.AdamW(adam, lr=0.0, betas=betas, weight_decay=decay, fused=True)
        if muons:
            self.optimizers[True] = Muon(muons, weight_decay=decay)

    @property
    def rate(self) -> float:
        """Return the learning rate of the last update."""
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def move(self, rate: float, clip: float = 1.0) -> None:
        """Update the parameters by their gradients and clear these."""
        torch.nn.utils.clip_grad_norm_(self.moving.values(), clip)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.moves += 1
        self._follow()

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next update depends on, by name."""
        kept = {f"{self.name}.{key}": one.detach() for key, one in self.network.state_dict().items()}
        kept[f"{self.name}:moves"] = torch.tensor(self.moves)
        if self.ema:
            kept |= {f"{self.name}:average.{key}": one for key, one in self._averaged().items()}
        if self.moves:
            for key, one in self.moving.items():
                state = self.optimizers[self._by_muon(key)].state[one]
                kept |= {f"{self.name}:{moment}.{key}": state[moment] for moment in MOMENTS[self._by_muon(key)]}
        return kept

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved position. Raises KeyError for a missing tensor."""
        state = self.network.state_dict()
        for key, one in state.items():
            one.copy_(tensors[f"{self.name}.{key}"])
        self.moves = int(tensors[f"{self.name}:moves"])
        if self.ema:
            self.average.load_state_dict(state)
            for key, one in self._averaged().items():
                one.copy_(tensors[f"{self.name}:average.{key}"])
        if self.moves:
            for key, one in self.moving.items():
                moments = {
                    moment: torch.empty_like(one).copy_(tensors[f"{self.name}:{moment}.{key}"])
                    for moment in MOMENTS[self._by_muon(key)]
                }
                steps = torch.tensor(float(self.moves), device=one.device)  # not shared: the optimizer counts in it
                self.optimizers[self._by_muon(key)].state[one] = {"step": steps, **moments}

    def _by_muon(self, key: str) -> bool:
        return key in self._muons

    def _averaged(self) -> dict[str, Tensor]:
        return {key: one for key, one in self.average.named_parameters() if key in self.moving}

    @torch.no_grad()
    def _follow(self) -> None:
        if not self.ema:
            return
        # A short run forgets its start sooner: until `ema` is reached, the average covers about a ninth of the steps.
        decay = min(self.ema, (1 + self.moves) / (10 + self.moves))
        for key, kept in self._averaged().items():
            kept.lerp_(self.moving[key].detach(), 1 - decay)
