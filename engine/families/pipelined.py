"""What the families on a pipeline of diffusers have in common: its autoencoder, copies of its network, cached texts.

Reuses the pipeline's own parts, and never its `__call__`. Knows nothing of jobs, plans or batches, and of a model only
which attribute is its network; what differs from model to model is in the subclasses.
"""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from engine.families.family import TORCH, Conditions
from engine.families.packed import Packs, can_pack
from engine.families.recorded import Graphs
from engine.families.wholly import Wholly
from engine.job import Dtype, Guides, Lora, Recipe, Sampler
from engine.plan import Plan, plan, samplers_for

TEXTS_KEPT = 256
HASHED_WHOLE = 128 * 2**20
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")  # what draws: a trained folder also holds its run
UNUSED = ("feature_extractor", "image_encoder", "safety_checker")


class Pipelined(Wholly, ABC):
    """A `Family` over an assembled float32 pipeline; one cast copy of its network for each dtype.

    `guidance` is the default. A subclass sets `size`, `multiple` and `tokens`.
    """

    network: ClassVar[str] = "transformer"  # the pipeline's attribute
    guides: Guides = "rows"
    interval: tuple[float, float] = (0.0, 1.0)
    size: int
    multiple: int
    tokens: int

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float = 7.5
    ) -> None:
        self.name, self.revision, self.device, self.guidance = name, revision, torch.device(device), guidance
        self.pipeline = pipeline
        self.scheduler_config: Mapping[str, Any] = dict(pipeline.scheduler.config)
        self.samplers: tuple[Sampler, ...] = samplers_for(self.scheduler_config)
        self.enlargement, self.upscaler = 1, ""
        self._master = getattr(pipeline, self.network).eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False).to(self.device)
        for part, module in pipeline.components.items():
            if part.startswith("text_encoder") and module is not None:
                module.eval().requires_grad_(False).to(self.device)
        self._packs = Packs() if self.device.type == "cpu" and can_pack(self._master) else None
        self._graphs: Graphs | None = None
        self._nets: dict[Dtype, Any] = {}
        self._texts: OrderedDict[tuple[str, bool], Conditions] = OrderedDict()

    def record_graphs(self) -> None:
        """From now on a shape that keeps coming is recorded as a CUDA graph; nothing changes on a processor."""
        if self.device.type == "cuda":
            self._graphs = Graphs()

    @property
    def max_pixels(self) -> int:
        return (2 * self.size) ** 2

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self._vae.config.latent_channels)

    @property
    def factor(self) -> int:
        """Pixels a latent, along a side."""
        return int(self.pipeline.vae_scale_factor)

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        return plan(self.scheduler_config, sampler, steps, eta)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.channels, height // self.factor, width // self.factor

    def condition(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditions:
        return (*self._told(text, negative), *self._circumstances(recipe))

    @abstractmethod
    def _words(self, text: str, negative: bool) -> Conditions:
        """What the text encoders make of a text; `negative`: of the empty or negative text of guidance."""

    def _circumstances(self, recipe: Recipe) -> Conditions:
        """What the network reads besides words: nothing, unless the model says otherwise."""
        return ()

    def _told(self, text: str, negative: bool) -> Conditions:
        """The text's conditions, encoded when they are first asked for."""
        key = text, negative
        if key not in self._texts:
            with torch.inference_mode():
                self._texts[key] = self._words(text, negative)
        self._texts.move_to_end(key)
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return self._texts[key]

    @torch.inference_mode()
    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        kind = TORCH[dtype]
        inputs = (x.to(kind), t, *(_cast(each, kind) for each in texts))
        return self._forward(self.net(dtype, loras), inputs, dtype, loras).float()

    def _forward(
        self, net: Any, inputs: tuple[torch.Tensor, ...], dtype: Dtype, loras: tuple[Lora, ...]
    ) -> torch.Tensor:
        """Through a packed copy or a recorded graph where there can be one; what a LoRA has changed runs as it is."""

        def predict(network: Any, given: tuple[torch.Tensor, ...] = inputs) -> torch.Tensor:
            x, t, *texts = given
            return self._predict(network, x, t, tuple(texts))

        shapes = (dtype, *(each.shape for each in inputs))
        if loras:
            return predict(net)
        if self._graphs is not None:
            return self._graphs.run(shapes, inputs, lambda given: predict(net, given))
        return predict(net) if self._packs is None else self._packs.run(net, shapes, predict)

    @abstractmethod
    def _predict(self, net: Any, x: torch.Tensor, t: torch.Tensor, texts: Conditions) -> torch.Tensor:
        """One forward of the network; everything is in its dtype but the timesteps."""

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Image.Image:
        config = self._vae.config
        scaled = latents[None].to(self.device, torch.float32) / config.scaling_factor + _shift(config)
        decoded = self._vae.decode(scaled, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(decoded.float(), output_type="pil")[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        pixels = self.pipeline.image_processor.preprocess(picture).to(self.device)
        mean = self._vae.encode(pixels).latent_dist.mean[0]
        return (mean - _shift(self._vae.config)) * self._vae.config.scaling_factor

    def net(self, dtype: Dtype, loras: tuple[Lora, ...] = ()) -> Any:
        """The network in this number format."""
        if dtype not in self._nets:
            same = self.device.type == "cpu" and dtype == "float32"
            net = self._master if same else copy.deepcopy(self._master)
            torch.nn.Module.to(net, self.device, TORCH[dtype])  # its own `to` warns where nothing is to be feared
            self._nets[dtype] = net.to(memory_format=torch.channels_last)
        return self._nets[dtype]


def _cast(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Masks and lengths are no floating point numbers, and stay what they are."""
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def _shift(config: Any) -> float:
    return float(config.get("shift_factor") or 0.0)


def fingerprint(folder: Path) -> str:
    """Twelve hex digits over configurations and weights; of files over 128 MiB the two ends only, which load fast."""
    digest = hashlib.sha256()
    parts = [folder / part for part in _parts(folder)]
    found = (each for part in parts for pattern in ("*.json", "*.safetensors") for each in part.rglob(pattern))
    for path in sorted([*folder.glob("model_index.json"), *found]):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            if path.stat().st_size > HASHED_WHOLE:
                digest.update(file.read(HASHED_WHOLE // 2))
                file.seek(-HASHED_WHOLE // 2, 2)
            digest.update(file.read())
    return digest.hexdigest()[:12]


def _parts(folder: Path) -> list[str]:
    """The folders of the parts that its index names, beside the usual ones."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except FileNotFoundError:
        index = {}
    return sorted({*PARTS, *(name for name, of in index.items() if isinstance(of, list) and name not in UNUSED)})


def together(*fingerprints: str) -> str:
    """One fingerprint of what several parts decide together."""
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:12]
