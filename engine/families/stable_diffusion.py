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
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from engine.families.family import TORCH
from engine.families.quiet import quiet
from engine.job import Dtype
from engine.unfit import Unfit

TEXTS_KEPT = 256
HASHED_WHOLE = 128 * 2**20


class StableDiffusion:
    """A `Family` over an assembled float32 `StableDiffusionPipeline`; one cast copy of the network for each dtype."""

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float = 7.5
    ) -> None:
        self.name, self.revision, self.device, self.guidance = name, revision, torch.device(device), guidance
        self.scheduler_config: Mapping[str, Any] = dict(pipeline.scheduler.config)
        self.tokens = int(pipeline.tokenizer.model_max_length)
        config = pipeline.unet.config
        self._channels, self._factor = int(config.in_channels), int(pipeline.vae_scale_factor)
        self.size = int(config.sample_size) * self._factor
        self.multiple = self._factor * 2 ** (len(config.block_out_channels) - 1)  # each block but one halves
        self.max_pixels = (2 * self.size) ** 2
        self._pipeline, self._master = pipeline, pipeline.unet.eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        pipeline.text_encoder.eval().requires_grad_(False).to(self.device)
        self._nets: dict[Dtype, Any] = {}
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(cls, source: str, name: str, device: torch.device | str = "cpu") -> StableDiffusion:
        """From a folder, or a name on the model hub. Raises `Unfit` where that is no such model in safetensors."""
        folder = Path(source) if Path(source).is_dir() else Path(_download(source))
        _refuse_pickles(folder)
        try:
            with quiet():
                pipeline = StableDiffusionPipeline.from_pretrained(
                    str(folder), use_safetensors=True, requires_safety_checker=False, safety_checker=None,
                    feature_extractor=None, dtype=torch.float32, local_files_only=True,
                )  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Unfit(f"The model {name} is not a Stable Diffusion model that can be loaded.", "model") from error
        _refuse_other_inputs(pipeline, name)
        return cls(pipeline, name, fingerprint(folder), device)

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
    for path in sorted(each for pattern in ("*.json", "*.safetensors") for each in folder.rglob(pattern)):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            if path.stat().st_size > HASHED_WHOLE:
                digest.update(file.read(HASHED_WHOLE // 2))
                file.seek(-HASHED_WHOLE // 2, 2)
            digest.update(file.read())
    return digest.hexdigest()[:12]


def _download(source: str) -> str:
    try:
        return str(StableDiffusionPipeline.download(source, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        sentence = f"There is no model {source}: neither a folder nor one on the hub in safetensors."
        raise Unfit(sentence, "model") from error


def _refuse_other_inputs(pipeline: Any, name: str) -> None:
    """An inpainting or depth network also takes a picture and a mask, which no recipe of ours has."""
    network = pipeline.unet.config
    if not network.in_channels == network.out_channels == pipeline.vae.config.latent_channels:
        raise Unfit(f"The model {name} needs more than words (inpainting, depth …), which is not supported.", "model")


def _refuse_pickles(folder: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        if not list((folder / part).glob("*.safetensors")):
            pickled = any((folder / part).glob("*.bin")) or any((folder / part).glob("*.ckpt"))
            why = "only as a pickle, which can run code when it is opened" if pickled else "not at all"
            raise Unfit(f"The model holds the weights of its {part} {why}: convert them to safetensors.", "model")
