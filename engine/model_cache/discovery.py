"""Model discovery: from the names on the command line to entries of the model cache. Loads the models it must.

Blocks for seconds to minutes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec.structs import replace

from engine import models
from engine.calibration.calibration import Calibration, calibrate, store_calibration
from engine.contract import Dtype, JobRejected, ModelProfile, ModelProgress
from engine.device.memory import model_budget
from engine.model_cache import catalog_file
from engine.model_cache.cache import ModelEntry, free_memory, make_too_large_error
from engine.model_cache.catalog_file import CalibratedModel
from engine.model_cache.loaded_models import LoadedModels
from engine.models.autoencoder.autoencoder_files import AUTOENCODER_KIND
from engine.models.control_networks import CONTROL_KIND
from engine.models.embedding_files import find_embeddings
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.families.embedded import EMBEDDED_MODEL
from engine.models.family import Family
from engine.models.files.added_kind import (
    AUTOENCODER_FOLDER,
    CONTROL_FOLDER,
    EMBEDDING_FOLDER,
    LORA_FOLDER,
    PREPROCESSOR_FOLDER,
    REFERENCE_FOLDER,
)
from engine.models.files.model_source import ModelSource, combine_fingerprints, find_model, fingerprint_folder
from engine.models.loading.memory_estimate import InspectedModel, LoadChoice, estimate_embedded_bytes
from engine.models.loading.pipeline_loader import FormatChooser, OnProgress
from engine.models.loading.single_file import find_configs, is_network_file
from engine.models.lora_files import find_loras
from engine.models.network.pipeline_offload import remove_stale_folders
from engine.models.preprocessors import Preprocessors
from engine.models.quantization import PartQuantization, SizedQuantization, choose_quantizations
from engine.models.reference_pictures import REFERENCE_KIND
from engine.process.load_progress import format_size
from engine.process.memory_requests import UNQUANTIZED, OffloadRequest, QuantizationRequests
from engine.process.model_settings import (
    WEIGHTS_FOLDER,
    ModelSettings,
    ModelSettingsError,
    find_requests,
    read_model_settings,
)
from engine.upscaling.super_resolver import SuperResolver

log = logging.getLogger(__name__)

ReportProgress = Callable[[ModelProgress], None]
CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class LoadContext:
    """Model directory, device and settings.

    `use_cuda_graphs`, `offload`: as `cuda_graphs` and `offload` of `engine.process.settings.WorkerSettings`. `budget`:
    bytes for models, by which `offload` and `quantize` choose.
    """

    data: Path
    device: torch.device
    resolver: SuperResolver | None
    build: str
    use_cuda_graphs: bool = False
    offload: OffloadRequest = "none"
    budget: int = sys.maxsize
    autoencoder: str = ""  # in place of each model's own that it fits
    quantize: QuantizationRequests = UNQUANTIZED


@dataclass(frozen=True)
class _FoundModel:
    """A model's files and their fingerprint, and its quantisations with their sizes, best first.

    `inspected` is None for the embedded model.
    """

    name: str
    fingerprint: str
    inspected: InspectedModel | None
    quantizations: tuple[SizedQuantization, ...]

    def choose_load(self, chosen: SizedQuantization, context: LoadContext) -> LoadChoice:
        """Choose what stays off the device. Other quantisations count only where the chosen one does not fit alone."""
        if self.inspected is None:
            return LoadChoice(chosen.quantization, "none", chosen.size)
        candidates = (chosen,) if chosen.size <= context.budget else self.quantizations
        chooser = FormatChooser(context.device)
        return self.inspected.choose_load(chooser, candidates, context.offload, context.budget)


@dataclass(frozen=True)
class DiscoveredModel:
    """A discovered model: its size, its catalog key and entry (None: unknown), and how to load it.

    `size_by_format`: as in `engine.model_cache.cache.ModelEntry`.
    """

    name: str
    size: int
    catalog_key: str
    load: Callable[[OnProgress | None], Family]
    catalog_entry: CalibratedModel | None
    size_by_format: Mapping[Dtype, int]


def discover_models(names: Sequence[str], context: LoadContext) -> list[DiscoveredModel]:
    """Find every model, and choose its quantisation. Raises `JobRejected` where one is missing, or two have one name.

    A name may end in a quantisation of its own: `sdxl=int8`.
    """
    remove_stale_folders(context.data)
    if context.autoencoder:
        AUTOENCODER_KIND.find(context.data / AUTOENCODER_FOLDER, context.autoencoder)
    found = list[_FoundModel]()
    for name_or_path in names:
        model = _find(*find_requests(name_or_path, context.quantize, context.data), context)
        if any(model.name == other.name for other in found):
            raise JobRejected(f"Two models are called {model.name}; rename the folder of one.", "worker")
        found.append(model)
    chosen = choose_quantizations([model.quantizations for model in found], context.budget)
    catalog = catalog_file.read_catalog(context.data)
    return [_describe(model, choice, context, catalog) for model, choice in zip(found, chosen, strict=True)]


def load_models(
    discovered: Sequence[DiscoveredModel],
    context: LoadContext,
    loaded_models: LoadedModels,
    report: ReportProgress = lambda _: None,
) -> list[tuple[ModelEntry, Calibration]]:
    """Load the first model, which most jobs use, and before it every model without a catalog entry.

    It calls `report` at each stage, in this thread. Raises `JobRejected`.
    """
    for model in discovered:
        if model.size > loaded_models.budget:
            raise make_too_large_error(model.name, model.size, loaded_models.budget)
    entries = {
        model.name: _load_or_read_entry(model, context, loaded_models, report, must_load=model is discovered[0])
        for model in (*discovered[1:], discovered[0])
    }
    _write_catalog(discovered, entries, context.data)
    return [
        (_make_model_entry(model, entries[model.name], context), entries[model.name].calibration)
        for model in discovered
    ]


def _find(name_or_path: str, requests: QuantizationRequests, context: LoadContext) -> _FoundModel:
    """Find one model's files; fetch what it needs from the hub now, never while jobs run."""
    if name_or_path == EMBEDDED_MODEL:
        embedded = SizedQuantization(PartQuantization(), estimate_embedded_bytes())
        return _FoundModel(EMBEDDED_MODEL, fingerprint_folder(WEIGHTS_FOLDER), None, (embedded,))
    source = find_model(name_or_path, context.data)
    inspected = InspectedModel.from_source(source)  # first: its errors say what is wrong with the files
    quantizations = inspected.list_quantizations(FormatChooser(context.device), requests, context.offload)
    if source.is_file and not is_network_file(source.path, source.name):
        find_configs(source.path, source.name)
    return _FoundModel(source.name, source.compute_fingerprint(), inspected, quantizations)


def _describe(
    model: _FoundModel, chosen: SizedQuantization, context: LoadContext, catalog: dict[str, CalibratedModel]
) -> DiscoveredModel:
    choice = model.choose_load(chosen, context)
    source = model.inspected and model.inspected.source
    _log_quantization(model, choice, context)
    upscaler = context.resolver.fingerprint if context.resolver else ""
    added_files = fingerprint_added_files(context.data, source.path if source else WEIGHTS_FOLDER, context.autoencoder)
    build = context.build if choice.offload == "none" else f"{context.build}, offload {choice.offload}"
    revision = f"{model.fingerprint} {choice.quantization}" if choice.quantization else model.fingerprint
    catalog_key = catalog_file.make_key(model.name, revision, context.device, upscaler, build, added_files)

    def load(on_progress: OnProgress | None) -> Family:
        family = _load_family(source, context, choice, on_progress)
        if source is not None and source.compute_fingerprint() != model.fingerprint:
            raise JobRejected(f"The files of the model {model.name} have changed: restart this worker.", "worker")
        return _configure_family(family, context)

    chooser = FormatChooser(context.device, quantization=choice.quantization)
    size_by_format = dict[Dtype, int]()
    if model.inspected is not None:
        size_by_format = model.inspected.count_bytes_by_format(chooser, choice.offload)
    return DiscoveredModel(model.name, choice.size, catalog_key, load, catalog.get(catalog_key), size_by_format)


def _log_quantization(model: _FoundModel, choice: LoadChoice, context: LoadContext) -> None:
    """Log a quantisation that `auto` chose, or that was asked for, in one sentence."""
    if not choice.quantization or model.inspected is None:
        return
    log.info(
        "%s is loaded with its %s: it takes about %s, and unquantised %s",
        model.name,
        choice.quantization,
        format_size(choice.size),
        format_size(model.inspected.count_bytes(FormatChooser(context.device))),
    )


def _load_family(
    source: ModelSource | None, context: LoadContext, choice: LoadChoice, on_progress: OnProgress | None
) -> Family:
    """Load the files found at the start: a hub name is not looked up again."""
    if source is None:
        return models.load_model(EMBEDDED_MODEL, context.data, device=context.device, resolver=context.resolver)
    family = models.load_source(
        source,
        context.device,
        context.resolver,
        on_progress,
        quantization=choice.quantization,
        offload=models.make_pipeline_offload(choice.offload, context.device, context.data),
    )
    if isinstance(family, DiffusersFamily):
        family.use_data_folder(context.data)
    return family


def _configure_family(family: Family, context: LoadContext) -> Family:
    """Apply another autoencoder and CUDA graphs where the model supports them."""
    if isinstance(family, DiffusersFamily):
        if context.autoencoder:
            _replace_autoencoder(family, context.autoencoder)
        if context.use_cuda_graphs:
            family.forward_runner.enable_cuda_graphs()
    return family


def _replace_autoencoder(family: DiffusersFamily, name: str) -> None:
    try:
        family.use_autoencoder(name)
    except JobRejected as rejection:
        log.warning("%s keeps its own autoencoder: %s", family.name, rejection.sentence)


def _load_or_read_entry(
    model: DiscoveredModel,
    context: LoadContext,
    loaded_models: LoadedModels,
    report: ReportProgress,
    *,
    must_load: bool,
) -> CalibratedModel:
    """Return the entry of a model; load it where there is none, or if it `must_load`."""
    if model.catalog_entry is not None and not must_load:
        log.info("%s is loaded when a job needs it", model.name)
        return model.catalog_entry
    loaded_models.reserve(model.name, model.size)
    free_memory()
    loading = ModelProgress(model=model.name, phase="load", size=model.size)
    report(loading)
    family = model.load(lambda fraction: report(replace(loading, done=min(1.0, fraction))))
    loaded_models.add(model.name, family)
    if model.catalog_entry is None:
        report(replace(loading, phase="measure", done=1.0))
    calibration = calibrate(family, context.data / CALIBRATION_FILE)
    report(replace(loading, phase="ready", done=1.0))
    return CalibratedModel(calibration.to_model_profile(family), calibration, model.size)


def _make_model_entry(model: DiscoveredModel, entry: CalibratedModel, context: LoadContext) -> ModelEntry:
    """The operator's defaults are no part of the stored entry, which says what was measured."""
    entries = [entry]
    settings = _read_settings(context.data, model.name)

    def make_info(family: Family) -> ModelProfile:
        return settings.apply(entries[-1].calibration.to_model_profile(family))

    def save_calibration(calibration: Calibration, family: Family) -> None:
        entries[:] = [
            CalibratedModel(calibration.with_current_costs(entries[-1].model_profile), calibration, model.size)
        ]
        store_calibration(context.data / CALIBRATION_FILE, family, calibration)
        catalog_file.write_entries(context.data, {model.catalog_key: entries[-1]})

    model_profile = settings.apply(entry.model_profile)
    return ModelEntry(
        model.name, model.size, model_profile, model.load, make_info, save_calibration, model.size_by_format
    )


def _read_settings(data: Path, name: str) -> ModelSettings:
    try:
        return read_model_settings(data).get(name)
    except ModelSettingsError as error:
        raise JobRejected(str(error), "worker") from error


def _write_catalog(discovered: Sequence[DiscoveredModel], entries: dict[str, CalibratedModel], data: Path) -> None:
    catalog_file.write_entries(data, {model.catalog_key: entries[model.name] for model in discovered})


def fingerprint_added_files(data: Path, model_folder: Path, autoencoder: str = "") -> str:
    """Return a fingerprint of the data folder's files for a model, by name and content; empty where there are none.

    `autoencoder`: the one that is to take the place of the model's own.
    """
    loras = find_loras(data / LORA_FOLDER, model_folder)
    parts = [f"{each.name} {each.revision}" for each in loras]
    parts += [f"embedding {each.name} {each.revision}" for each in find_embeddings(data / EMBEDDING_FOLDER)]
    parts += [f"vae {each.name} {each.revision}" for each in AUTOENCODER_KIND.find_all(data / AUTOENCODER_FOLDER)]
    parts += [f"control {each.name} {each.revision}" for each in CONTROL_KIND.find_all(data / CONTROL_FOLDER)]
    parts += [f"reference {each.name} {each.revision}" for each in REFERENCE_KIND.find_all(data / REFERENCE_FOLDER)]
    preprocessors = Preprocessors(torch.device("cpu"), data / PREPROCESSOR_FOLDER).list_available()
    parts += [f"preprocessor {name}" for name in preprocessors if name not in ("none", "canny")]
    parts += [f"own vae {autoencoder}"] if autoencoder else []
    return combine_fingerprints(*parts) if parts else ""


def choose_for_one(
    model: str, requests: QuantizationRequests, data: Path, device: torch.device, offload: OffloadRequest = "none"
) -> tuple[str, LoadChoice]:
    """Return the model without its own request, and the way to load it (embedded: as it is, 0 bytes).

    Raises `JobRejected` where something is wrong with its files, or where weights cannot be stored so here.
    """
    name_or_path, own_requests = find_requests(model, requests, data)
    if name_or_path == EMBEDDED_MODEL:
        return name_or_path, LoadChoice(PartQuantization(), "none", 0)
    inspected = InspectedModel.from_source(find_model(name_or_path, data))
    chooser = FormatChooser(device)
    candidates = inspected.list_quantizations(chooser, own_requests, offload)
    budget = model_budget(device)
    [chosen] = choose_quantizations([candidates], budget)
    considered = (chosen,) if chosen.size <= budget else candidates
    return name_or_path, inspected.choose_load(chooser, considered, offload, budget)
