"""Family for any text-to-image pipeline of diffusers without a family here: all its pictures run as whole pipelines.

Loading it checks that it draws from a prompt alone, by two steps at its native size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from threading import RLock
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from engine.families.family import TORCH, Conditions
from engine.families.latents import shift_of, space_of
from engine.families.tiles import decode_within_memory
from engine.families.traits import Traits
from engine.job import Concept, Dtype, Guides, Lora, Recipe, Sampler
from engine.known_maps import LatentSpace
from engine.plan import NotTabled, Plan, build_scheduler
from engine.strands.arguments import arguments
from engine.strands.call import Call, Forward, joined
from engine.strands.shell import NETWORKS, shell_of
from engine.unfit import Unfit

log = logging.getLogger(__name__)

SHOWN = ("AutoencoderKL", "AutoencoderDC")  # autoencoders whose latents need only scale and shift
PIXELS = 3  # channels: three mean pixels, never such latents
REHEARSED = "a small red house beside a lake"


class Coalesced:
    """A `Family` whose finished latents are pixels in 0…1. Raises `Unfit` where it does not draw."""

    output_type = "pil"
    no_guidance = 1.0
    rehearsed = True
    interval: tuple[float, float] = (0.0, 1.0)

    def __init__(self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu") -> None:
        self.name, self.revision, self.device, self.pipeline = name, revision, torch.device(device), pipeline
        self.alone = RLock()
        self.enlargement, self.upscaler = 1, ""
        traits = Traits.of(pipeline, name)
        self.size, self.multiple, self.tokens = traits.size, traits.multiple, traits.tokens
        self.guides: Guides = traits.guides
        self.guidance, self.samplers = traits.guidance, traits.samplers
        self.usual: tuple[int, Sampler] = traits.steps, self.samplers[0]
        self.max_pixels = (2 * self.size) ** 2
        self._vae = _shown(pipeline)
        self._images: Any = getattr(pipeline, "image_processor", None) or VaeImageProcessor()
        self._nets: dict[tuple[int, Dtype], Any] = {}
        self._settle(pipeline)
        self._rehearsal, self._timed = self._rehearse()

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """Number formats worth timing: of a large network the format of its files."""
        network = next(part for each in NETWORKS if (part := getattr(self.pipeline, each, None)) is not None)
        stored = next(network.parameters()).dtype
        known: tuple[Dtype, ...] = ("bfloat16", "float16")
        halves: tuple[Dtype, ...] = tuple(each for each in known if TORCH[each] == stored)
        return halves or ("float32", "bfloat16")

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        raise NotTabled(f"{self.name} has no model family here, so its own pipeline draws.")

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return PIXELS, height, width

    @property
    def latent_space(self) -> LatentSpace | None:
        """The latent space of a sampler's x0; None where x0 is a picture already."""
        if self._vae is None:
            return None
        return space_of(self._vae.config, int(getattr(self.pipeline, "vae_scale_factor", 8)))

    def condition(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditions:
        """Return nothing: the pipeline encodes the prompt itself."""
        return ()

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        """Run one forward with as many rows as `x`, and return zeros. Only for timing: no step of ours uses it."""
        call = self._rehearsal
        self.forward_of("", self._timed, dtype, loras)(*joined([call], max(0, len(x) - call.rows)))
        return torch.zeros_like(x)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Image.Image:
        if len(latents) == PIXELS or self._vae is None:
            pixels = (latents.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)
            return Image.fromarray(pixels.contiguous().numpy())
        config = self._vae.config
        scaled = latents[None].to(self.device, torch.float32) / config.scaling_factor + shift_of(config)
        return self._images.postprocess(decode_within_memory(self._vae, scaled), output_type="pil")[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        if self._vae is None:
            return _pixels(picture)
        encoded = self._vae.encode(self._images.preprocess(picture).to(self.device))
        mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
        return (mean[0] - shift_of(self._vae.config)) * self._vae.config.scaling_factor

    def scheduler(self, sampler: str) -> Any:
        return None if sampler == "native" else build_scheduler(self.pipeline.scheduler.config, sampler)

    def forward_of(self, attribute: str, net: Any, dtype: Dtype, loras: tuple[Lora, ...]) -> Forward:
        if loras:
            raise Unfit(f"{self.name} takes no LoRA.", "member")
        key = id(net), dtype
        if key not in self._nets:
            same = next(net.parameters()).dtype == TORCH[dtype]  # a large network exists once, in its files' format
            self._nets[key] = net if same else copy.deepcopy(net)
            torch.nn.Module.to(self._nets[key], self.device, TORCH[dtype])
        return Forward(self._nets[key], None if dtype == "float32" else TORCH[dtype])

    def finished(self, output: Any, width: int, height: int) -> torch.Tensor:
        if output[0].size != (width, height):
            raise Unfit(f"{self.name} does not draw pictures of {width}×{height}.", "model")
        return _pixels(output[0])

    def seen(self, x0: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        latents = self._vae is not None and x0.dim() == 4 and x0.shape[1] == self._vae.config.latent_channels
        return x0[0].float() if latents else None

    def last_seen(self, finished: torch.Tensor) -> torch.Tensor:
        return self.encode_image(self.decode(finished))

    def _settle(self, pipeline: Any) -> None:
        """Move everything but the networks to the device, pipelines inside included."""
        for name, part in vars(pipeline).items():
            if isinstance(part, DiffusionPipeline):
                self._settle(part)
            elif isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                if name not in NETWORKS:
                    part.to(self.device)

    @torch.no_grad()
    def _rehearse(self) -> tuple[Call, Any]:
        """Run two steps at the native size. Return the first network call, for timing, and the pipeline's network."""
        calls: list[Call] = []
        owners: dict[int, Any] = {}
        dtype = self.dtypes[0]  # another format would copy a large network

        def ask(call: Call) -> Any:
            calls.append(call)
            return call.forward(*call.arguments)

        def real(attribute: str, net: Any) -> Forward:
            forward = self.forward_of(attribute, net, dtype, ())
            owners[id(forward.net)] = net
            return forward

        recipe = Recipe(
            concepts=(Concept(REHEARSED),), model=self.name, sampler=self.samplers[0], steps=2, seed=0, guidance=1.0,
            width=self.size, height=self.size, dtype=dtype, guides=self.guides,
        )  # fmt: skip
        try:
            shell = shell_of(self.pipeline, ask, lambda moved: None, real)
            self.finished(shell(**arguments(shell, recipe, 0, "pil", 1.0)).images, self.size, self.size)
        except Exception as error:
            log.info("the pipeline of %s failed at its first picture", self.name, exc_info=True)
            kind = type(self.pipeline).__name__
            raise Unfit(
                f"The model {self.name} is a {kind}, which cannot draw from a prompt alone.", "model"
            ) from error
        return calls[0], owners[id(calls[0].forward.net)]


def _shown(pipeline: Any) -> Any:
    """Return the autoencoder whose latents previews can show; None where there is none."""
    vae = getattr(pipeline, "vae", None)
    config: Mapping[str, Any] = {} if vae is None else vae.config
    known = type(vae).__name__ in SHOWN and not config.get("latents_mean")
    return vae if known and config.get("latent_channels") != PIXELS else None


def _pixels(picture: Image.Image) -> torch.Tensor:
    """Return `[3, height, width]` in 0…1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1).contiguous()
