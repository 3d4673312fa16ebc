"""Loads a model by name or path as its model family, one file a family."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from engine.contract import Dtype
    from engine.models.families.diffusers_family import DiffusersFamily
    from engine.models.family import Family
    from engine.models.files.model_source import ModelSource
    from engine.models.loading.pipeline_loader import LoadedPipeline, OnProgress
    from engine.models.quantization import PartQuantization
    from engine.process.memory_requests import Offload
    from engine.upscaling.super_resolver import SuperResolver


def load_model(
    name_or_path: str,
    data: Path,
    *,
    device: torch.device | str = "cpu",
    resolver: SuperResolver | None = None,
    on_progress: OnProgress | None = None,
    large_threshold: int | None = None,
    offload: Offload = "none",
    quantization: PartQuantization | None = None,
) -> Family:
    """Load a model: `embedded`, a folder, a safetensors file, either's name in `<data>/models`, or a hub name.

    `resolver` upscales a small model's pictures. `on_progress` receives the progress. `large_threshold`: as in
    `FormatChooser`. `offload`: what stays off the device. `quantization`: None keeps the weights as they are. The
    embedded model is too small for either. Raises `JobRejected`.
    """
    from engine.models.families.embedded import EMBEDDED_MODEL, load_embedded
    from engine.models.files.model_source import find_model

    if name_or_path == EMBEDDED_MODEL:
        family = load_embedded(device, resolver=resolver)
        family.use_data_folder(data)
        return family
    source = find_model(name_or_path, data)
    return load_source(source, device, resolver, on_progress, large_threshold, offload, quantization, data)


def load_folder(
    source: str,
    name: str,
    device: torch.device | str = "cpu",
    resolver: SuperResolver | None = None,
    quantization: PartQuantization | None = None,
) -> Family:
    """Load a folder, or a hub name. Raises `JobRejected` where it is no model in safetensors."""
    from engine.models.files.model_source import ModelSource
    from engine.models.loading.pipeline_loader import find_folder

    return load_source(ModelSource(name, find_folder(source)), device, resolver, quantization=quantization)


def load_source(
    source: ModelSource,
    device: torch.device | str = "cpu",
    resolver: SuperResolver | None = None,
    on_progress: OnProgress | None = None,
    large_threshold: int | None = None,
    offload: Offload = "none",
    quantization: PartQuantization | None = None,
    data: Path | None = None,
) -> Family:
    """Load a located model. Raises `JobRejected` where it is no model in safetensors.

    `data`: the folder with LoRAs and other added files, and of offloaded layers; needed where something is offloaded.
    """
    import torch

    from engine.models.families.diffusers_family import DiffusersFamily
    from engine.models.family import CanBeOffloaded
    from engine.models.loading.pipeline_loader import LARGE_PARAMETERS, FormatChooser, load_folder_pipeline
    from engine.models.loading.single_file import is_network_file, load_file_pipeline, load_network_file_pipeline
    from engine.models.network.pipeline_offload import offload_parts
    from engine.models.quantization import HasQuantization, PartQuantization

    threshold = LARGE_PARAMETERS if large_threshold is None else large_threshold
    format_chooser = FormatChooser(torch.device(device), threshold, quantization or PartQuantization())
    if not source.is_file:
        load = load_folder_pipeline
    elif is_network_file(source.path, source.name):
        load = load_network_file_pipeline
    else:
        load = load_file_pipeline
    loaded = load(source.path, source.name, format_chooser, on_progress)
    if offload != "none":
        assert data is not None, "layers may wait there"
        offload_all = partial(offload_parts, mode=offload, device=torch.device(device), data=data)
        load_again = loaded.reload

        def reload(dtype: Dtype) -> Any:
            return offload_all(load_again(dtype))

        loaded = replace(loaded, pipeline=offload_all(loaded.pipeline), reload=reload)
    family = _make_family(loaded, source, device, resolver)
    if isinstance(family, CanBeOffloaded):
        family.offload = offload
    if isinstance(family, HasQuantization):
        family.quantization = loaded.quantization.network
    if isinstance(family, DiffusersFamily):
        family.model_folder = None if source.is_file else source.path
        add_conditioners(family)
        if loaded.single_format is not None:
            family.use_single_format(loaded.single_format, loaded.reload)
        if data is not None:
            family.use_data_folder(data)
    return family


def _make_family(
    loaded: LoadedPipeline, source: ModelSource, device: torch.device | str, resolver: SuperResolver | None
) -> Family:
    from engine.models.autoencoder.large_decoder import LargeDecoder
    from engine.models.families.stable_diffusion import StableDiffusion, as_stable_diffusion
    from engine.models.generic_family import GenericFamily
    from engine.models.registry import INPAINTING_PIPELINES, find_families

    read_pipeline = INPAINTING_PIPELINES.get(type(loaded.pipeline).__name__)
    pipeline = loaded.pipeline if read_pipeline is None else read_pipeline(loaded.pipeline)
    class_name = type(pipeline).__name__
    name = source.name
    revision = _make_revision(source, loaded.quantization)
    if class_name in StableDiffusion.pipelines:
        large_decoder = LargeDecoder.load(source.path, pipeline.vae)
        if class_name == "LatentConsistencyModelPipeline":
            pipeline = as_stable_diffusion(pipeline)
            return StableDiffusion(pipeline, name, revision, device, large_decoder=large_decoder)
        return StableDiffusion(pipeline, name, revision, device, None, resolver, large_decoder)
    return find_families().get(class_name, GenericFamily)(pipeline, name, revision, device)


def add_conditioners(family: DiffusersFamily) -> None:
    """Let a U-Net take reference pictures; and one of nine channels a picture with a mask, which it needs.

    A whole pipeline takes neither, so such a model loses the samplers that need one.
    """
    from engine.contract import PIPELINE_SAMPLERS
    from engine.models.inpainting_conditioner import InpaintingConditioner, needs_mask
    from engine.models.reference_pictures import ReferenceConditioner

    if family.network_name != "unet":
        return
    family.conditioners = (*family.conditioners, ReferenceConditioner(family))
    if needs_mask(family.pipeline):
        family.conditioners = (*family.conditioners, InpaintingConditioner(family))
        family.required = "mask"
        family.samplers = tuple(sampler for sampler in family.samplers if sampler not in PIPELINE_SAMPLERS)


def _make_revision(source: ModelSource, quantization: PartQuantization) -> str:
    """Return the fingerprint of the files; another one if text encoders are quantised, which no recipe names."""
    from engine.models.files.model_source import combine_fingerprints

    fingerprint = source.compute_fingerprint()
    if quantization.text == "none":
        return fingerprint
    return combine_fingerprints(fingerprint, f"text {quantization.text}")
