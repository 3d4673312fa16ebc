"""Base of the families on a diffusers pipeline: its autoencoder, copies of its network, cached texts.

Reuses the pipeline's parts, but never its `__call__`. Subclasses hold what differs between models.
"""

from __future__ import annotations

import copy
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from typing import Any, ClassVar, Self

import msgspec
import torch
from PIL import Image

from engine.contract import Dtype, GuidanceKind, Lora, ModelPart, Quantization, Recipe, Sampler, find_embeddings
from engine.models.autoencoder.autoencoder import decode_latents, encode_pixels, make_latent_space
from engine.models.autoencoder.autoencoder_files import AutoencoderCollection, AutoencoderFile
from engine.models.embedding_files import EmbeddingCollection, EmbeddingFile, EmbeddingSlot, spell_words
from engine.models.family import TORCH_DTYPES, Conditioning
from engine.models.files.added_kind import AUTOENCODER_FOLDER, EMBEDDING_FOLDER, LORA_FOLDER
from engine.models.files.model_source import combine_fingerprints
from engine.models.lora_files import LoraCollection
from engine.models.network.forward_runner import ForwardRunner
from engine.models.network.network_copies import (
    NetworkCopies,
    Networks,
    Reload,
    SingleNetwork,
    detach_from_file,
    drop_modules,
    replace_modules,
)
from engine.models.network.pipeline_offload import is_offloaded
from engine.models.picture_conditions import (
    Additions,
    ForwardInputs,
    PictureConditioner,
    PictureRows,
    PictureSupport,
    UsesAutoencoder,
)
from engine.models.pipeline_support import WholePipelineSupport
from engine.models.prompt_chunks import PromptKey, TextCache, list_texts
from engine.preview_maps.latent_map import MODEL_MAP_FILE, LatentSpace
from engine.process.memory_requests import Offload
from engine.prompt.emphasis import strip_emphasis
from engine.prompt.style_guide import replace_nouns
from engine.sampling import Plan, plan, samplers_for


class AddedFiles:
    """Implements `TakesEmbeddings`, `TakesAutoencoders` and the files of `TakesLoras` (`engine.models.family`)."""

    network_name: ClassVar[str]
    embedding_slots: ClassVar[tuple[EmbeddingSlot, ...]] = ()  # of textual inversions; none: it takes none
    device: torch.device
    revision: str
    pipeline: Any
    conditioners: tuple[PictureConditioner, ...]
    _vae: Any
    _chosen_autoencoder: ModelPart | None = None  # in place of the model's own, for every recipe

    def _init_added_files(self, pipeline: Any, name: str) -> None:
        self._loras = LoraCollection(pipeline, self.network_name)
        self._embeddings = EmbeddingCollection(pipeline, self.embedding_slots, name)
        self._autoencoders = AutoencoderCollection(pipeline.vae, name)

    def list_loras(self) -> tuple[Lora, ...]:
        """Return the LoRAs that fit this model."""
        return self._loras.list_compatible()

    def use_data_folder(self, data: Path) -> None:
        """Find LoRAs, textual inversions and autoencoders in a worker's data folder."""
        self.lora_folder = data / LORA_FOLDER
        self._embeddings.folder = data / EMBEDDING_FOLDER
        self._autoencoders.folder = data / AUTOENCODER_FOLDER

    @property
    def lora_folder(self) -> Path | None:
        """Folder of the LoRAs; None: there are none."""
        return self._loras.folder

    @lora_folder.setter
    def lora_folder(self, folder: Path | None) -> None:
        self._loras.folder = folder

    @property
    def model_folder(self) -> Path | None:
        """The model's own folder, which may hold its turbo LoRA and its preview map; None: it has no folder."""
        return self._loras.model_folder

    @model_folder.setter
    def model_folder(self, folder: Path | None) -> None:
        self._loras.model_folder = folder

    @property
    def preview_map_file(self) -> Path | None:
        """Where the map of the model's own autoencoder may be; None where another one decodes, or without a folder."""
        if self.model_folder is None or self._chosen_autoencoder is not None:
            return None
        return self.model_folder / MODEL_MAP_FILE

    def list_embeddings(self) -> tuple[ModelPart, ...]:
        """Return the textual inversions that fit this model."""
        return self._embeddings.list_fitting()

    def with_embeddings(self, recipe: Recipe) -> Recipe:
        return msgspec.structs.replace(recipe, embeddings=self._embeddings.resolve(recipe.embeddings))

    def list_autoencoders(self) -> tuple[ModelPart, ...]:
        """Return the autoencoders that fit this model."""
        return self._autoencoders.list_fitting()

    def explain_embedding(self, file: EmbeddingFile) -> str:
        """Return why a textual inversion does not fit, as the end of a sentence; empty: it fits."""
        return self._embeddings.find_mismatch(file)

    def explain_autoencoder(self, file: AutoencoderFile) -> str:
        """Return why an autoencoder does not fit, as the end of a sentence; empty: it fits."""
        return self._autoencoders.find_mismatch(file)

    def count_autoencoder_bytes(self, part: ModelPart | None, *, with_kept: bool = True) -> int:
        return self._autoencoders.count_bytes(part, self._vae.dtype, with_kept=with_kept)

    def release_other_autoencoders(self, part: ModelPart | None) -> None:
        self._autoencoders.release_others(part)

    def with_autoencoder(self, part: ModelPart) -> Self:
        """Return a copy that shares all but the autoencoder. Raises `JobRejected`."""
        view = copy.copy(self)
        view._vae = self._autoencoders.load(part, self._vae, self.device)
        view.pipeline = copy.copy(self.pipeline)
        vars(view.pipeline)["vae"] = view._vae
        view.conditioners = tuple(
            each.with_family(view) if isinstance(each, UsesAutoencoder) else each for each in self.conditioners
        )
        return view

    def use_autoencoder(self, name: str) -> None:
        """From now on take this autoencoder as the model's own. The revision covers it. Raises `JobRejected`."""
        file = self._autoencoders.resolve(ModelPart(name))
        self._chosen_autoencoder = ModelPart(file.name, file.revision)
        self._load_chosen_autoencoder()
        self.revision = combine_fingerprints(self.revision, file.revision)

    def _load_chosen_autoencoder(self) -> None:
        if self._chosen_autoencoder is not None:
            self._vae = self._autoencoders.load_alone(self._chosen_autoencoder, self._vae, self.device)
            self.pipeline.vae = self._vae


LCM_STEPS = 8
DISTILLED_STEPS = 4
_DISTILLED_NAME = re.compile(r"(^|[^a-z])(turbo|lightning|hyper|lcm|schnell|dmd2?)([^a-z]|$)", re.IGNORECASE)


def choose_guidance(name: str, family_default: float) -> float:
    """Return the default guidance: 1, which is none, for a distilled model, else `family_default`."""
    return 1.0 if _DISTILLED_NAME.search(name) else family_default


def find_few_step_sampling(
    name: str, scheduler_config: Mapping[str, Any], samplers: Sequence[Sampler]
) -> tuple[int, Sampler] | None:
    """Return steps and sampler of a model made for few steps; None for others."""
    match = _DISTILLED_NAME.search(name)
    is_lcm = scheduler_config.get("_class_name") == "LCMScheduler" or (match and match[2].lower() == "lcm")
    if is_lcm and "lcm" in samplers:
        return LCM_STEPS, "lcm"
    return (DISTILLED_STEPS, "euler") if match and "euler" in samplers else None


class DiffusersFamily(AddedFiles, WholePipelineSupport, PictureSupport, ABC):
    """A `Family` over a pipeline: small, in float32 with a copy of its network for each dtype, or large.

    A large one is in memory in one dtype (`use_single_format`). `guidance` is the default. A subclass sets `size`,
    `multiple` and `tokens`.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()  # names of the classes of diffusers that this class itself runs
    network_name: ClassVar[str] = "transformer"  # the pipeline's attribute
    channels_last: ClassVar[bool] = False  # memory format of a small model's autoencoder
    supports_emphasis: ClassVar[bool] = False  # supports emphasis brackets (`emphasis`); else they are removed
    prompt_arguments: ClassVar[tuple[str, ...]] = (
        "prompt_embeds",
        "pooled_prompt_embeds",
    )  # conditions, as arguments of its call
    max_clip_skip: int = 0  # how many last layers its text encoder may skip
    guides: GuidanceKind = "rows"
    offload: Offload = "none"
    interval: tuple[float, float] = (0.0, 1.0)
    substitutes: Mapping[str, str] = MappingProxyType({})  # for nouns that it never learned
    quantization: Quantization = "none"
    size: int
    multiple: int
    tokens: int

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float = 7.5
    ) -> None:
        self.name = name
        self.revision = revision
        self.device = torch.device(device)
        self.guidance = guidance
        self.pipeline = pipeline
        self.pipeline_lock = RLock()
        self.scheduler_config: Mapping[str, Any] = dict(pipeline.scheduler.config)
        self.samplers: tuple[Sampler, ...] = tuple(
            name for name in samplers_for(self.scheduler_config) if name not in self.unsupported_samplers
        )
        self.default_sampling = find_few_step_sampling(self.name, self.scheduler_config, self.samplers)
        self.upscale_factor = 1
        self.upscaler = ""
        self._move_to_device()
        self.latent_channels = int(self._vae.config.latent_channels)  # of the latents
        self.latent_space: LatentSpace = make_latent_space(self._vae.config, self.pixels_per_latent)
        self.forward_runner = ForwardRunner(self._loaded_network, self.device)
        if is_offloaded(self._loaded_network):
            self.forward_runner.disable_optimizations()  # they keep weights, which come and go
        self._networks: Networks = NetworkCopies(self._loaded_network, self.device)
        self.text_cache = TextCache()
        self._init_added_files(pipeline, name)

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """Number formats worth timing."""
        return self._networks.dtypes

    def has_format(self, dtype: Dtype) -> bool:
        """Whether the network is available in this format without loading."""
        return self._networks.has_format(dtype)

    @property
    def is_single_format(self) -> bool:
        """Whether the model is in memory in one number format at a time."""
        return isinstance(self._networks, SingleNetwork)

    def use_single_format(self, dtype: Dtype, reload: Reload) -> None:
        """Keep a large model in memory once, in `dtype`; `reload` loads the pipeline in another format."""

        def reload_network(new_dtype: Dtype) -> Any:
            replace_modules(self.pipeline, reload(new_dtype))
            self._move_to_device()
            self._load_chosen_autoencoder()
            detach_from_file(self._vae)
            return self._loaded_network

        self.forward_runner.release()
        detach_from_file(self._vae)
        self._networks = SingleNetwork(self._loaded_network, dtype, self.device, reload_network, self._release_weights)

    def _move_to_device(self) -> None:
        """Move the pipeline's parts to the device; a network moves only when a dtype is used."""
        self._loaded_network = getattr(self.pipeline, self.network_name).eval().requires_grad_(False)
        self._vae: Any = self._adapt_autoencoder(self.pipeline.vae).eval().requires_grad_(False).to(self.device)
        if self.channels_last:
            self._vae.to(memory_format=torch.channels_last)
        for encoder in self._list_text_encoders():
            encoder.eval().requires_grad_(False)
            if not is_offloaded(encoder):
                encoder.to(self.device)

    def _adapt_autoencoder(self, autoencoder: Any) -> Any:
        """Return the pipeline's autoencoder in the form of AutoencoderKL."""
        return autoencoder

    def _release_weights(self) -> None:
        self._loras.release()
        self._autoencoders.release()
        for conditioner in self.conditioners:
            conditioner.release()
        self.forward_runner.release()
        self.text_cache.clear()
        self._loaded_network = self._vae = None
        drop_modules(self.pipeline)

    def _list_text_encoders(self) -> list[Any]:
        """Return the pipeline's text encoders."""
        parts = self.pipeline.components.items()
        return [module for part, module in parts if part.startswith("text_encoder") and module is not None]

    def use_data_folder(self, data: Path) -> None:
        """Find LoRAs, control networks and other added files in a worker's data folder."""
        super().use_data_folder(data)
        self._use_picture_folders(data)

    @property
    def max_pixels(self) -> int:
        return (2 * self.size) ** 2

    @property
    def pixels_per_latent(self) -> int:
        """Pixels a latent, along a side."""
        return int(self.pipeline.vae_scale_factor)

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        return plan(self.scheduler_config, sampler, steps, eta)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.latent_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    def with_loras(self, recipe: Recipe) -> Recipe:
        loras = self._loras.resolve(recipe.loras)
        self.get_network(recipe.dtype, loras)  # errors appear before the first step
        return msgspec.structs.replace(recipe, loras=loras)

    def make_lora_pipeline(self, recipe: Recipe) -> Any:
        return self._loras.apply(recipe.loras, ("whole", recipe.dtype, recipe.loras), self.get_network(recipe.dtype))

    def get_text_pipeline(self, loras: tuple[Lora, ...]) -> Any:
        """Return the pipeline whose text encoders have these LoRAs; without LoRAs this pipeline."""
        return self._loras.apply_to_text_encoders(loras, self._loaded_network) if loras else self.pipeline

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        if self.is_single_format:
            self.get_network(recipe.dtype)  # the text encoders are in the recipe's dtype too
        with self.pipeline_lock:  # tokenizers are not thread-safe
            prompt = PromptKey(
                text,
                negative,
                self._count_chunks(recipe),
                recipe.loras,
                find_embeddings([text], recipe.embeddings),
                0 if negative else recipe.clip_skip,
            )
        return (*self._get_conditioning(prompt), *self._make_extra_conditioning(recipe))

    def encode_prompt_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the arguments of the pipeline's call for a recipe's prompts."""
        positive, *negatives = list_texts(recipe)
        arguments = self._make_prompt_arguments(self.encode_conditioning(positive, recipe))
        for negative in negatives:
            negative_arguments = self._make_prompt_arguments(self.encode_conditioning(negative, recipe, negative=True))
            arguments |= {f"negative_{name}": part for name, part in negative_arguments.items()}
        parameters = inspect.signature(type(self.pipeline).__call__).parameters
        arguments = {"prompt": None, "negative_prompt": None, **arguments}
        return {name: value for name, value in arguments.items() if name in parameters}

    def _make_prompt_arguments(self, conditions: Conditioning) -> dict[str, Any]:
        return {name: part[None] for name, part in zip(self.prompt_arguments, conditions, strict=False)}

    @abstractmethod
    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        """Encode a text with the pipeline's text encoders."""

    def _count_chunks(self, recipe: Recipe) -> int:
        """Return the number of chunks of the recipe's longest text."""
        return 1

    def _make_expansion(self, pipeline: Any, tokenizer: Any, embeddings: tuple[ModelPart, ...]) -> Callable[[str], str]:
        """Return what writes the tokens of textual inversions in place of their names; several vectors, several."""
        return (
            (lambda text: pipeline.maybe_convert_prompt(spell_words(text, embeddings), tokenizer))
            if embeddings
            else str
        )

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        """Return the conditions beside the prompt; none by default."""
        return ()

    def _get_conditioning(self, prompt: PromptKey) -> Conditioning:
        """Return a text's conditions, encoded at their first use."""
        if (kept := self.text_cache.find(prompt)) is not None:
            return kept
        text = prompt.text if self.supports_emphasis else strip_emphasis(prompt.text)
        inversion_names = {embedding.name.lower() for embedding in prompt.embeddings}
        supported_prompt = prompt._replace(text=replace_nouns(text, self.substitutes, inversion_names))
        with torch.inference_mode(), self.pipeline_lock:
            text_pipeline = self.get_text_pipeline(prompt.loras)
            with self._embeddings.with_words(text_pipeline, prompt.embeddings) as pipeline:
                return self.text_cache.keep(prompt, self._encode_text(pipeline, supported_prompt))

    @torch.inference_mode()
    def denoise(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        conditioning: Conditioning,
        dtype: Dtype,
        loras: tuple[Lora, ...] = (),
        pictures: tuple[PictureRows, ...] = (),
    ) -> torch.Tensor:
        torch_dtype = TORCH_DTYPES[dtype]
        inputs = (x.to(torch_dtype), t, *self.forward_runner.cast_conditioning(conditioning, torch_dtype))
        net = self.get_network(dtype, loras)
        layout = ()
        predict = self._run_network_on
        if pictures:
            forward_inputs = ForwardInputs(inputs[0], t, inputs[2:], dtype)
            inputs, layout, predict = self._flatten(forward_inputs, self._make_additions(forward_inputs, pictures))
        if loras:  # other weights than those packed or recorded
            return predict(net, inputs).float()
        return self.forward_runner.run(net, dtype, inputs, predict, layout).float()

    def _run_network_on(self, net: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, t, *conditioning = inputs
        return self._run_network(net, x, t, tuple(conditioning))

    @abstractmethod
    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Run one forward of the network; every input but the timesteps is in its dtype."""

    def _run_network_with(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, additions: Additions
    ) -> torch.Tensor:
        raise TypeError(f"a {type(self).__name__} has no conditioners")

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Image.Image:
        return self._decode_with(self._vae, latents)

    def _decode_with(self, decoder: Any, latents: torch.Tensor) -> Image.Image:
        pixels = decode_latents(decoder, latents, self.device)
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        return self.encode_pixels(self.pipeline.image_processor.preprocess(picture))

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scaled latents `[channels, height, width]` of pixels `[1, 3, height, width]` in -1…1."""
        return encode_pixels(self._vae, pixels, self.device)

    def get_network(self, dtype: Dtype, loras: tuple[Lora, ...] = ()) -> Any:
        """Return the network in this format, with `loras` in a copy that shares its weights. Raises `JobRejected`."""
        if loras:
            return getattr(self._loras.apply(loras, dtype, self.get_network(dtype)), self.network_name)
        return self._networks.get_network(dtype)
