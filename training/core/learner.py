"""The parts of every trainer: a network's optimizers and average, its steps, random numbers, number format and device.

A learner is independent of losses and pictures. All randomness of a step (batch, noise, timesteps) is drawn on the
processor, and is a function of (seed, step) alone. So the position of a run is also the state of its random numbers: a
killed run continues exactly, on every device.

Muon is momentum, made orthogonal matrix by matrix, so that rare directions are learnt too. A convolution
`[out, in, h, w]` counts as the matrix `[out, in·h·w]`. AdamW updates biases, norms and the first and last layer. Jordan
2024 (Muon); the scale that allows AdamW's learning rates: Liu 2025 (Moonlight), eq. 4; the polynomials: Amsel 2025
(Polar Express), table 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.device.memory import choose_device

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


class SavesState(Protocol):
    """A learner whose state can be saved and restored."""

    @property
    def rate(self) -> float: ...

    def state_tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


L = TypeVar("L", bound=SavesState)


class BatchTrainer(Generic[L]):
    """Counts the steps of `learner`, one batch each. `samples` counts pictures seen."""

    def __init__(self, learner: L, batch_size: int) -> None:
        self.learner = learner
        self.batch_size = batch_size
        self.steps: int = 0

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    @property
    def rate(self) -> float:
        return self.learner.rate

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, by name."""
        return self.learner.state_tensors()

    def refuse_bad_loss(self, loss: Tensor) -> None:
        """Raise ValueError if the loss is not a number."""
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is not a number after {self.samples} pictures: lower the learning rate.")

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        self.learner.restore(tensors)
        self.steps = steps


def open_device(name: str | None) -> torch.device:
    """Return the device `cpu`, `cuda` or `mps`; without a name a GPU if there is one. Raises ValueError if absent."""
    if name is None:
        return choose_device()
    is_available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_available[name]:
        raise ValueError(f"--device {name}: torch finds no such device on this machine. Leave the option out.")
    return torch.device(name)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return autocast to bf16 on this device; on a GPU that computes no bf16 it does nothing."""
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16)


def batch_indices(seed: int, step: int, total: int, batch_size: int) -> np.ndarray:
    """Return the row numbers of this step, `batch_size` of `total`: each row comes once an epoch."""
    epoch, batch_number = divmod(step, total // batch_size)
    return np.random.default_rng([seed, epoch]).permutation(total)[
        batch_number * batch_size : (batch_number + 1) * batch_size
    ]


def weighted_indices(seed: int, step: int, shares: np.ndarray, batch_size: int) -> np.ndarray:
    """Return different row numbers for this step, each drawn with its probability in `shares` [n]."""
    return np.random.default_rng([seed, step]).choice(len(shares), batch_size, replace=False, p=shares)


def spread_rows(total: int, count: int) -> npt.NDArray[np.int64]:
    """Return `count` of `total` row numbers, evenly spread; all of them if there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).astype(int)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator for noise, timesteps and all else that a step draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def stratified_uniforms(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return one number in each `count`-th of 0 … 1, shuffled, [count]: a batch then covers all noise levels evenly."""
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count


def drop_conditioning(
    states: torch.Tensor, empty: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Replace a `share` of token states [n, tokens, width] by the empty text's, for guidance (Ho & Salimans 2021)."""
    drop_mask = torch.rand(len(states), generator=generator) < share
    return torch.where(drop_mask.view(-1, 1, 1), empty, states)


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
