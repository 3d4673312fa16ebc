"""Family for any text-to-image pipeline of diffusers without a family here: all its pictures run as whole pipelines.

Loading it checks that it draws from a prompt alone, by two steps at its native size.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from engine.contract import Concept, Dtype, GuidanceKind, JobRejected, Lora, Quantization, Recipe, Sampler
from engine.models.autoencoder.autoencoder import (
    decode_within_memory,
    encode_within_memory,
    fit_to_memory,
    get_shift,
    make_latent_space,
)
from engine.models.family import TORCH_DTYPES, Conditioning
from engine.models.network.pipeline_offload import copy_without_offload, is_offloaded, offload_like
from engine.models.quantization import is_quantized
from engine.pipelines.network_call import (
    NETWORK_NAMES,
    NetworkCall,
    NetworkForward,
    clone_pipeline,
    join_calls,
    make_arguments,
)
from engine.preview_maps.latent_map import LatentSpace
from engine.process.memory_requests import Offload
from engine.sampling import NotTabled, Plan, build_scheduler, is_flow, samplers_for

log = logging.getLogger(__name__)

PREVIEWABLE_AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")  # autoencoders whose latents need only scale and shift
PIXEL_CHANNELS = 3  # channels: three mean pixels, never such latents
TEST_PROMPT = "a small red house beside a lake"


class GenericFamily:
    """A `Family` whose finished latents are pixels in 0…1. Raises `JobRejected` where it does not draw."""

    output_type = "pil"
    no_guidance = 1.0
    timed_at_native_size = True
    offload: Offload = "none"
    interval: tuple[float, float] = (0.0, 1.0)
    quantization: Quantization = "none"

    def __init__(self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.revision = revision
        self.device = torch.device(device)
        self.pipeline = pipeline
        self.pipeline_lock = RLock()
        self.upscale_factor = 1
        self.upscaler = ""
        traits = PipelineTraits.from_pipeline(pipeline, name)
        self.size = traits.size
        self.multiple = traits.multiple
        self.tokens = traits.tokens
        self.guides: GuidanceKind = traits.guides
        self.guidance = traits.guidance
        self.samplers = traits.samplers
        self.default_sampling: tuple[int, Sampler] = traits.steps, self.samplers[0]
        self.max_pixels = (2 * self.size) ** 2
        self._vae = _find_previewable_vae(pipeline)
        self._image_processor: Any = getattr(pipeline, "image_processor", None) or VaeImageProcessor()
        self._networks: dict[tuple[int, Dtype], Any] = {}
        self._move_to_device(pipeline)
        if isinstance(vae := getattr(pipeline, "vae", None), torch.nn.Module):
            fit_to_memory(vae)
        self._test_call, self._timed_network = self._run_test_image()

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """Number formats worth timing: of a large or quantised network the format in which it is in memory."""
        network = next(part for each in NETWORK_NAMES if (part := getattr(self.pipeline, each, None)) is not None)
        stored_dtype = next(network.parameters()).dtype
        if is_quantized(network):
            return tuple(name for name, dtype in TORCH_DTYPES.items() if dtype == stored_dtype)
        half_formats: tuple[Dtype, ...] = ("bfloat16", "float16")
        stored_halves: tuple[Dtype, ...] = tuple(each for each in half_formats if TORCH_DTYPES[each] == stored_dtype)
        return stored_halves or ("float32", "bfloat16")

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        raise NotTabled(f"{self.name} has no model family here, so its own pipeline draws.")

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return PIXEL_CHANNELS, height, width

    @property
    def latent_space(self) -> LatentSpace | None:
        """The latent space of a sampler's x0; None where x0 is a picture already."""
        if self._vae is None:
            return None
        return make_latent_space(self._vae.config, int(getattr(self.pipeline, "vae_scale_factor", 8)))

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        """Return nothing: the pipeline encodes the prompt itself."""
        return ()

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        """Run one forward with as many rows as `x`, and return zeros. Only for timing: no step of ours uses it."""
        call = self._test_call
        self.make_forward("", self._timed_network, dtype, loras)(*join_calls([call], max(0, len(x) - call.rows)))
        return torch.zeros_like(x)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Image.Image:
        if len(latents) == PIXEL_CHANNELS or self._vae is None:
            pixels = (latents.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)
            return Image.fromarray(pixels.contiguous().numpy())
        config = self._vae.config
        scaled = latents[None].to(self.device, torch.float32) / config.scaling_factor + get_shift(config)
        return self._image_processor.postprocess(decode_within_memory(self._vae, scaled), output_type="pil")[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        if self._vae is None:
            return _to_pixels(picture)
        mean = encode_within_memory(self._vae, self._image_processor.preprocess(picture).to(self.device))
        return (mean[0] - get_shift(self._vae.config)) * self._vae.config.scaling_factor

    def make_scheduler(self, sampler: str) -> Any:
        return None if sampler == "native" else build_scheduler(self.pipeline.scheduler.config, sampler)

    def make_forward(self, attribute: str, net: Any, dtype: Dtype, loras: tuple[Lora, ...]) -> NetworkForward:
        if loras:
            raise JobRejected(f"{self.name} takes no LoRA.", "member")
        key = id(net), dtype
        if key not in self._networks:
            self._networks[key] = self._place_network(net, dtype)
        return NetworkForward(self._networks[key], None if dtype == "float32" else TORCH_DTYPES[dtype])

    def _place_network(self, net: Any, dtype: Dtype) -> Any:
        """Return the network on the device, or offloaded. A large one exists once, in its files' format."""
        if next(net.parameters()).dtype != TORCH_DTYPES[dtype]:
            original = net
            net = copy.deepcopy(copy_without_offload(net))
            torch.nn.Module.to(net, dtype=TORCH_DTYPES[dtype])
            offload_like(net, original)
        if not is_offloaded(net):
            torch.nn.Module.to(net, self.device)
        return net

    def extract_latents(self, output: Any, width: int, height: int) -> torch.Tensor:
        if output[0].size != (width, height):
            raise JobRejected(f"{self.name} does not draw pictures of {width}×{height}.", "model")
        return _to_pixels(output[0])

    def to_preview_latents(self, x0: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        is_latents = self._vae is not None and x0.dim() == 4 and x0.shape[1] == self._vae.config.latent_channels
        return x0[0].float() if is_latents else None

    def final_to_preview_latents(self, final_latents: torch.Tensor) -> torch.Tensor:
        return self.encode_image(self.decode(final_latents))

    def _move_to_device(self, pipeline: Any) -> None:
        """Move everything but the networks to the device, pipelines inside included."""
        for name, part in cast(dict[str, Any], vars(pipeline)).items():
            if isinstance(part, DiffusionPipeline):
                self._move_to_device(part)
            elif isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                if name not in NETWORK_NAMES and not is_offloaded(part):
                    part.to(self.device)

    @torch.no_grad()
    def _run_test_image(self) -> tuple[NetworkCall, Any]:
        """Run two steps at the native size. Return the first network call, for timing, and the pipeline's network."""
        calls: list[NetworkCall] = []
        originals: dict[int, Any] = {}
        dtype = self.dtypes[0]  # another format would copy a large network

        def record_call(call: NetworkCall) -> Any:
            calls.append(call)
            return call.forward(*call.arguments)

        def record_forward(attribute: str, net: Any) -> NetworkForward:
            forward = self.make_forward(attribute, net, dtype, ())
            originals[id(forward.net)] = net
            return forward

        recipe = Recipe(
            concepts=(Concept(TEST_PROMPT),),
            model=self.name,
            sampler=self.samplers[0],
            steps=2,
            seed=0,
            guidance=1.0,
            width=self.size,
            height=self.size,
            dtype=dtype,
            guidance_kind=self.guides,
        )
        try:
            clone = clone_pipeline(self.pipeline, record_call, lambda progress: None, record_forward)
            self.extract_latents(clone(**make_arguments(clone, recipe, 0, "pil", 1.0)).images, self.size, self.size)
        except Exception as error:
            log.info("the pipeline of %s failed at its first picture", self.name, exc_info=True)
            class_name = type(self.pipeline).__name__
            raise JobRejected(
                f"The model {self.name} is a {class_name}, which cannot draw from a prompt alone.", "model"
            ) from error
        return calls[0], originals[id(calls[0].forward.net)]


def _find_previewable_vae(pipeline: Any) -> Any:
    """Return the autoencoder whose latents previews can show; None where there is none."""
    vae = getattr(pipeline, "vae", None)
    config: Mapping[str, Any] = {} if vae is None else vae.config
    is_previewable = type(vae).__name__ in PREVIEWABLE_AUTOENCODERS and not config.get("latents_mean")
    return vae if is_previewable and config.get("latent_channels") != PIXEL_CHANNELS else None


def _to_pixels(picture: Image.Image) -> torch.Tensor:
    """Return `[3, height, width]` in 0…1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


DEFAULT_GUIDANCE = 5.0
MAX_GUIDANCE = 30.0
DEFAULT_SIDE = 512  # pixels, where the pipeline does not say
DEFAULT_TOKENS = 77
DEFAULT_STEPS = 25
MIN_MULTIPLE = 16  # pixels; sides are multiples of this


@dataclass(frozen=True)
class PipelineTraits:
    """Named as in `Family`."""

    size: int
    multiple: int
    tokens: int
    guides: GuidanceKind
    guidance: float
    samplers: tuple[Sampler, ...]
    steps: int

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str) -> PipelineTraits:
        """Read the traits. Raises `JobRejected` where it takes no prompt, or has no network that runs step by step."""
        parameters = inspect.signature(type(pipeline).__call__).parameters
        network = next((part for each in NETWORK_NAMES if (part := getattr(pipeline, each, None)) is not None), None)
        if "prompt" not in parameters or network is None:
            raise JobRejected(
                f"The model {name} is a {type(pipeline).__name__}, which cannot draw from a prompt.", "model"
            )
        config = network.config
        factor = int(getattr(pipeline, "vae_scale_factor", 8))
        multiple = math.lcm(MIN_MULTIPLE, factor * (_read_side(config, "patch_size") or 1))
        native_latents = _read_side(cast(dict[str, Any], vars(pipeline)), "default_sample_size") or _read_side(
            config, "sample_size"
        )
        side = native_latents * factor or DEFAULT_SIDE
        guidance = _read_default(parameters, DEFAULT_GUIDANCE, "true_cfg_scale", "guidance_scale")
        return cls(
            size=max(multiple, side // multiple * multiple),
            multiple=multiple,
            tokens=int(min(4096, _read_default(parameters, DEFAULT_TOKENS, "max_sequence_length"))),
            guides="network" if config.get("guidance_embeds") else "rows",
            guidance=min(MAX_GUIDANCE, max(1.0, guidance)),
            samplers=_list_samplers(pipeline),
            steps=int(min(1000, max(1, _read_default(parameters, DEFAULT_STEPS, "num_inference_steps")))),
        )


def _list_samplers(pipeline: Any) -> tuple[Sampler, ...]:
    """Return the pipeline's own sampler, and others unless it uses flow matching: noise pipelines use all alike."""
    scheduler = getattr(pipeline, "scheduler", None)
    config: Mapping[str, Any] = {} if scheduler is None else scheduler.config
    if not config or is_flow(config):
        return ("native",)
    return ("native", *(name for name in samplers_for(config) if name != "native"))


def _read_side(config: Mapping[str, Any], name: str) -> int:
    """Return a side, which may be a list of sides; 0 where the configuration does not say."""
    value = config.get(name)
    if isinstance(value, list | tuple) and value:
        value = cast(Sequence[Any], value)[-1]
    return value if isinstance(value, int) else 0


def _read_default(parameters: Mapping[str, inspect.Parameter], fallback: float, *names: str) -> float:
    defaults = (parameters[name].default for name in names if name in parameters)
    return next((float(value) for value in defaults if isinstance(value, int | float)), fallback)
