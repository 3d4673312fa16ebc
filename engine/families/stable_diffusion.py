"""Any Stable Diffusion 1.x or 2.x folder of diffusers, through the pipeline's own parts.

Reuses the pipeline's text encoding, autoencoder and picture processing, and never its `__call__`. Weights are
safetensors or nothing: a pickle can run code when it is opened. Knows nothing of jobs, plans or batches.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.models.bert.modeling_bert import BertModel

from engine.families.family import SMALL, TORCH
from engine.families.opening import folder_of, open_pipeline
from engine.job import Dtype
from engine.super_resolver import MAX_SIDE, SuperResolver

TEXTS_KEPT = 256
HASHED_WHOLE = 128 * 2**20
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")  # what draws: a trained folder also holds its run
OF_OURS, OF_OTHERS = 4.0, 7.5  # guidance: what a trainer of ours has written knows fewer pictures


class StableDiffusion:
    """A `Family` over an assembled float32 `StableDiffusionPipeline`; one cast copy of the network for each dtype.

    `resolver` enlarges the finals of a small model, and is then part of its revision.
    """

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float = 7.5,
        resolver: SuperResolver | None = None,
    ) -> None:  # fmt: skip
        self.name, self.revision, self.device, self.guidance = name, revision, torch.device(device), guidance
        self.scheduler_config: Mapping[str, Any] = dict(pipeline.scheduler.config)
        self.tokens = int(pipeline.tokenizer.model_max_length)
        config = pipeline.unet.config
        self._channels, self._factor = int(config.in_channels), int(pipeline.vae_scale_factor)
        self.size = int(config.sample_size) * self._factor
        self.multiple = self._factor * 2 ** (len(config.block_out_channels) - 1)  # each block but one halves
        self.max_pixels = (2 * self.size) ** 2
        self._resolver = resolver if self.size <= SMALL else None
        self.enlargement, self.upscaler = 1, ""
        if self._resolver is not None:
            self.enlargement, self.upscaler = self._resolver.scale, self._resolver.name
            self.revision = together(revision, self._resolver.fingerprint)
        self._pipeline, self._master = pipeline, pipeline.unet.eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        pipeline.text_encoder.eval().requires_grad_(False).to(self.device)
        self._nets: dict[Dtype, Any] = {}
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls, source: str, name: str, device: torch.device | str = "cpu", resolver: SuperResolver | None = None
    ) -> StableDiffusion:
        """From a folder, or a name on the model hub. Raises `Unfit` where that is no such model in safetensors."""
        folder = folder_of(source)
        pipeline = open_pipeline(folder, name)
        guidance = OF_OURS if isinstance(pipeline.text_encoder, BertModel) else OF_OTHERS
        return cls(pipeline, name, fingerprint(folder), device, guidance, resolver)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self._channels, height // self._factor, width // self._factor

    @torch.inference_mode()
    def encode(self, text: str) -> torch.Tensor:
        if text not in self._texts:
            states, _ = self._pipeline.encode_prompt(text, self.device, 1, False)
            self._texts[text] = states[0].float()
        self._texts.move_to_end(text)
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return self._texts[text]

    @torch.inference_mode()
    def denoise(self, x: torch.Tensor, t: torch.Tensor, texts: torch.Tensor, dtype: Dtype) -> torch.Tensor:
        kind = TORCH[dtype]
        return self._net(dtype)(x.to(kind), t, encoder_hidden_states=texts.to(kind), return_dict=False)[0].float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Image.Image:
        scaled = latents[None].to(self.device, torch.float32) / self._vae.config.scaling_factor
        decoded = self._vae.decode(scaled, return_dict=False)[0]
        return self._pipeline.image_processor.postprocess(decoded.float(), output_type="pil")[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        picture = self.decode(latents)
        if self._resolver is None or max(picture.size) * self.enlargement > MAX_SIDE:
            return picture
        return self._resolver.enlarge(picture)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        pixels = self._pipeline.image_processor.preprocess(picture).to(self.device)
        return self._vae.encode(pixels).latent_dist.mean[0] * self._vae.config.scaling_factor

    def _net(self, dtype: Dtype) -> Any:
        if dtype not in self._nets:
            same = self.device.type == "cpu" and dtype == "float32"
            net = self._master if same else copy.deepcopy(self._master)
            torch.nn.Module.to(net, self.device, TORCH[dtype])  # its own `to` warns where nothing is to be feared
            self._nets[dtype] = net.to(memory_format=torch.channels_last)
        return self._nets[dtype]


def fingerprint(folder: Path) -> str:
    """Twelve hex digits over configurations and weights; of files over 128 MiB the two ends only, which load fast."""
    digest = hashlib.sha256()
    parts = [folder / part for part in PARTS]
    found = (each for part in parts for pattern in ("*.json", "*.safetensors") for each in part.rglob(pattern))
    for path in sorted([*folder.glob("model_index.json"), *found]):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            if path.stat().st_size > HASHED_WHOLE:
                digest.update(file.read(HASHED_WHOLE // 2))
                file.seek(-HASHED_WHOLE // 2, 2)
            digest.update(file.read())
    return digest.hexdigest()[:12]


def together(*fingerprints: str) -> str:
    """One fingerprint of what several parts decide together."""
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:12]
