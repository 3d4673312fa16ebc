"""Base of the families on a diffusers pipeline: its autoencoder, copies of its network, cached texts.

Reuses the pipeline's parts, but never its `__call__`. Subclasses hold what differs between models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar

import msgspec
import torch
from PIL import Image

from engine.emphasis import plain
from engine.families.autoencoder import decode_latents, encode_pixels
from engine.families.distilled import few_steps
from engine.families.family import TORCH, Conditions
from engine.families.forwards import Forwards
from engine.families.latents import space_of
from engine.families.loras import Loras
from engine.families.nets import Copies, Nets, OneCopy, Reopen, drop_modules, own_copy, take_modules
from engine.families.visiting import visits
from engine.families.wholly import Wholly
from engine.families.wording import Wording, bytes_of, texts_of
from engine.job import Dtype, Guides, Lora, Recipe, Sampler
from engine.known_maps import LatentSpace
from engine.plan import Plan, plan, samplers_for

TEXTS_KEPT, TEXT_BYTES_KEPT = 256, 256 * 2**20


class Pipelined(Wholly, ABC):
    """A `Family` over a pipeline: small, in float32 with a copy of its network for each dtype, or large.

    A large one is held in one dtype (`hold_one`). `guidance` is the default. A subclass sets `size`, `multiple` and
    `tokens`.
    """

    network: ClassVar[str] = "transformer"  # the pipeline's attribute
    channels_last: ClassVar[bool] = False  # memory format of a small model's autoencoder
    weighs: ClassVar[bool] = False  # supports emphasis brackets (`emphasis`); else they are removed
    spellings: ClassVar[tuple[str, ...]] = (
        "prompt_embeds",
        "pooled_prompt_embeds",
    )  # conditions, as arguments of its call
    guides: Guides = "rows"
    interval: tuple[float, float] = (0.0, 1.0)
    size: int
    multiple: int
    tokens: int

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float = 7.5
    ) -> None:
        self.name, self.revision, self.device, self.guidance = name, revision, torch.device(device), guidance
        self.pipeline, self.alone = pipeline, RLock()
        self.scheduler_config: Mapping[str, Any] = dict(pipeline.scheduler.config)
        self.samplers: tuple[Sampler, ...] = tuple(
            name for name in samplers_for(self.scheduler_config) if name not in self.unable
        )
        self.usual = few_steps(self.name, self.scheduler_config, self.samplers)
        self.enlargement, self.upscaler = 1, ""
        self.channels = int(pipeline.vae.config.latent_channels)  # of the latents
        self.latent_space: LatentSpace = space_of(pipeline.vae.config, int(pipeline.vae_scale_factor))
        self._offloads = False
        self._settle()
        self.forwards = Forwards(self._master, self.device)
        self._nets: Nets = Copies(self._master, self.device)
        self._texts: OrderedDict[Wording, Conditions] = OrderedDict()
        self._loras = Loras(pipeline, self.network)

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """Number formats worth timing."""
        return self._nets.dtypes

    def holds(self, dtype: Dtype) -> bool:
        """Whether the network is available in this format without loading."""
        return self._nets.holds(dtype)

    @property
    def held_once(self) -> bool:
        """Whether the model is held in one number format at a time."""
        return isinstance(self._nets, OneCopy)

    def hold_one(self, dtype: Dtype, reopen: Reopen) -> None:
        """Hold a large model once, in `dtype`; `reopen` loads the pipeline in another format."""

        def again(other: Dtype) -> Any:
            take_modules(self.pipeline, reopen(other))
            self._settle()
            own_copy(self._vae)
            return self._master

        self.forwards.forget()
        own_copy(self._vae)
        self._nets = OneCopy(self._master, dtype, self.device, again, self._let_go)

    def _settle(self) -> None:
        """Move the pipeline's parts to the device; a network moves only when a dtype is used."""
        self._master = getattr(self.pipeline, self.network).eval().requires_grad_(False)
        self._vae: Any = self.pipeline.vae.eval().requires_grad_(False).to(self.device)
        if self.channels_last:
            self._vae.to(memory_format=torch.channels_last)
        for encoder in self._encoders():
            encoder.eval().requires_grad_(False).to(self.device)
            if self._offloads:
                visits(encoder, self.device)

    def _let_go(self) -> None:
        self._loras.forget()
        self.forwards.forget()
        self._texts.clear()
        self._master = self._vae = None
        drop_modules(self.pipeline)

    def offload(self) -> None:
        """From now on, keep the text encoders, the larger half of large models, on the host between their forwards."""
        self._offloads = True
        for encoder in self._encoders():
            visits(encoder, self.device)

    def _encoders(self) -> list[Any]:
        """Return the pipeline's text encoders."""
        parts = self.pipeline.components.items()
        return [module for part, module in parts if part.startswith("text_encoder") and module is not None]

    @property
    def max_pixels(self) -> int:
        return (2 * self.size) ** 2

    @property
    def factor(self) -> int:
        """Pixels a latent, along a side."""
        return int(self.pipeline.vae_scale_factor)

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        return plan(self.scheduler_config, sampler, steps, eta)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.channels, height // self.factor, width // self.factor

    def loras(self) -> tuple[Lora, ...]:
        """Return the LoRAs that fit this model."""
        return self._loras.offered()

    @property
    def lora_folder(self) -> Path | None:
        """Folder of the LoRAs; None: there are none."""
        return self._loras.folder

    @lora_folder.setter
    def lora_folder(self, folder: Path | None) -> None:
        self._loras.folder = folder

    def with_loras(self, recipe: Recipe) -> Recipe:
        known = self._loras.known(recipe.loras)
        self.net(recipe.dtype, known)  # errors appear before the first step
        return msgspec.structs.replace(recipe, loras=known)

    def for_good(self, recipe: Recipe) -> Any:
        return self._loras.added(recipe.loras, ("whole", recipe.dtype, recipe.loras), self.net(recipe.dtype))

    def told_by(self, loras: tuple[Lora, ...]) -> Any:
        """Return the pipeline whose text encoders have these LoRAs; without LoRAs this pipeline."""
        return self._loras.spoken(loras, self._master) if loras else self.pipeline

    def condition(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditions:
        if self.held_once:
            self.net(recipe.dtype)  # the text encoders are in the recipe's dtype too
        with self.alone:  # tokenizers are not thread-safe
            wording = Wording(text, negative, self._chunks(recipe), recipe.loras)
        return (*self._told(wording), *self._circumstances(recipe))

    def spelt(self, recipe: Recipe) -> dict[str, Any]:
        """Return the arguments of the pipeline's call for a recipe's prompts."""
        first, *rest = texts_of(recipe)
        told = self._spelling(self.condition(first, recipe))
        for negative in rest:
            against = self._spelling(self.condition(negative, recipe, negative=True))
            told |= {f"negative_{name}": part for name, part in against.items()}
        return {"prompt": None, "negative_prompt": None, **told}

    def _spelling(self, conditions: Conditions) -> dict[str, Any]:
        return {name: part[None] for name, part in zip(self.spellings, conditions, strict=False)}

    @abstractmethod
    def _words(self, pipeline: Any, wording: Wording) -> Conditions:
        """Encode a text with the pipeline's text encoders."""

    def _chunks(self, recipe: Recipe) -> int:
        """Return the number of chunks of the recipe's longest text."""
        return 1

    def _circumstances(self, recipe: Recipe) -> Conditions:
        """Return the conditions beside the prompt; none by default."""
        return ()

    def _told(self, wording: Wording) -> Conditions:
        """Return a text's conditions, encoded at their first use."""
        if wording not in self._texts:
            read = wording if self.weighs else wording._replace(text=plain(wording.text))
            with torch.inference_mode(), self.alone:
                self._texts[wording] = self._words(self.told_by(wording.loras), read)
        self._texts.move_to_end(wording)
        while len(self._texts) > 1 and (len(self._texts) > TEXTS_KEPT or bytes_of(self._texts) > TEXT_BYTES_KEPT):
            self._texts.popitem(last=False)
        return self._texts[wording]

    def forget_texts(self) -> None:
        """Drop the cache of encoded texts."""
        self._texts.clear()

    @torch.inference_mode()
    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        kind = TORCH[dtype]
        inputs = (x.to(kind), t, *self.forwards.tell(texts, kind))
        net = self.net(dtype, loras)
        if loras:  # other weights than those packed or recorded
            return self._predicted(net, inputs).float()
        return self.forwards.run(net, dtype, inputs, self._predicted).float()

    def _predicted(self, net: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, t, *texts = inputs
        return self._predict(net, x, t, tuple(texts))

    @abstractmethod
    def _predict(self, net: Any, x: torch.Tensor, t: torch.Tensor, texts: Conditions) -> torch.Tensor:
        """Run one forward of the network; every input but the timesteps is in its dtype."""

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Image.Image:
        pixels = decode_latents(self._vae, latents, self.device)
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        return encode_pixels(self._vae, self.pipeline.image_processor.preprocess(picture), self.device)

    def net(self, dtype: Dtype, loras: tuple[Lora, ...] = ()) -> Any:
        """Return the network in this format, with `loras` in a copy that shares its weights. Raises `Unfit`."""
        if loras:
            return getattr(self._loras.added(loras, dtype, self.net(dtype)), self.network)
        return self._nets.of(dtype)
