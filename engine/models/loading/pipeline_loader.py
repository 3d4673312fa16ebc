"""Loads a diffusers folder part by part as its pipeline; runs no code from the folder.

It accepts only safetensors: a pickle can run code when it is opened. It chooses the number format of each part before
it loads any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from engine.contract import Dtype, JobRejected, Quantization
from engine.models.family import TORCH_DTYPES
from engine.models.files.model_source import UNUSED_PARTS, find_model
from engine.models.files.pipeline_parts import Part, find_part_classes, find_pipeline_class, list_parts, read_index
from engine.models.files.tensor_reader import StreamedTensors, read_tensors
from engine.models.inpainting_conditioner import needs_mask
from engine.models.library_logging import silence_libraries
from engine.models.quantization import (
    PartQuantization,
    count_matrix_bytes,
    make_library_config,
    refuse_unavailable,
    refuse_unopenable,
    set_compute_format,
)
from engine.models.registry import has_family
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX
from engine.process.system import trim_heap

log = logging.getLogger(__name__)

ReadTensors = Callable[[Sequence[Path], torch.dtype, Collection[str]], dict[str, Any]]
OnProgress = Callable[[float], None]  # takes the loaded fraction; may raise, to stop the loading
LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
    ImportError,
    ArithmeticError,
    SafetensorError,
    StrictDataclassError,
)


def find_folder(source: str) -> Path:
    """Return a folder, or fetch a hub name into one. Raises `JobRejected`."""
    return Path(source) if Path(source).is_dir() else find_model(source, Path()).path


@dataclass(frozen=True)
class LoadedPipeline:
    """`single_format`: the number format of a large model. `reload` loads its pipeline in another one."""

    pipeline: Any
    single_format: Dtype | None
    reload: Callable[[Dtype], Any]
    quantization: PartQuantization = field(default_factory=PartQuantization)


def load_training_pipeline(folder: Path, name: str) -> Any:
    """Load a folder's pipeline for training. Raises `JobRejected` where it is no such model in safetensors."""
    parts = inspect_folder(folder, name)
    if (stored := next((part for part in parts if part.fixed_quantization), None)) is not None:
        sentence = f"The {stored.name} of the model {name} is quantised already, which cannot be trained here"
        raise JobRejected(f"{sentence}: take the unquantised model.", "model")
    pipeline = _load(folder, name, choose_training_formats(parts), None)
    if needs_mask(pipeline):
        raise JobRejected(f"The model {name} is for inpainting, which cannot be trained here.", "model")
    return pipeline


def load_folder_pipeline(
    folder: Path, name: str, format_chooser: FormatChooser, on_progress: OnProgress | None = None
) -> LoadedPipeline:
    """Load a folder's pipeline for generation. Raises `JobRejected` where it is no such model in safetensors."""
    parts = inspect_folder(folder, name)
    class_name = read_index(folder, name)["_class_name"]
    formats = format_chooser.choose_formats(class_name, parts)

    def reload(dtype: Dtype) -> Any:
        return _load(folder, name, format_chooser.make_single_formats(dtype, class_name, parts), None)

    pipeline = _load(folder, name, formats, on_progress)
    return LoadedPipeline(pipeline, formats.single_format, reload, formats.quantization)


def _load(folder: Path, name: str, formats: PartFormats, on_progress: OnProgress | None) -> Any:
    parts = inspect_folder(folder, name)
    return load_pipeline(folder, name, parts, lambda part: load_part(folder, part, formats, name), on_progress)


def load_pipeline(
    folder: Path, name: str, parts: Sequence[Part], load_one: Callable[[Part], Any], on_progress: OnProgress | None
) -> Any:
    """Load a folder's pipeline; `load_one` loads each part with weights. Raises `JobRejected`."""
    index = read_index(folder, name)
    pipeline_type = find_pipeline_class(index, name)
    loaded_parts = load_parts(parts, load_one, on_progress)
    try:
        with silence_libraries():
            pipeline = pipeline_type.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, **loaded_parts, **make_unused_arguments(index)
            )
    except LOAD_ERRORS as error:
        raise make_load_error(name) from error
    return prepare_pipeline(pipeline, name)


def inspect_folder(folder: Path, name: str) -> list[Part]:
    """Return the parts of a folder that have weights. Raises `JobRejected` where anything is wrong with them."""
    index = read_index(folder, name)
    find_pipeline_class(index, name)
    return list_parts(folder, find_part_classes(index, name))


def load_parts(
    parts: Sequence[Part], load_part: Callable[[Part], Any], on_progress: OnProgress | None
) -> dict[str, Any]:
    """Load every part, by name; report progress before each, and after the last.

    What a loader freed goes back to the system before the next part. After quantising, the heap keeps a fifth more than
    the weights take.
    """
    loaded_parts: dict[str, Any] = {}
    total_parameters = max(1, sum(part.parameters for part in parts))
    loaded_parameters = 0
    for part in parts:
        if on_progress is not None:
            on_progress(loaded_parameters / total_parameters)
        loaded_parts[part.name] = load_part(part)
        trim_heap()
        loaded_parameters += part.parameters
    if on_progress is not None:
        on_progress(1.0)
    return loaded_parts


def make_unused_arguments(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts that we do not use, as the pipeline's arguments: None."""
    arguments: dict[str, Any] = {part: None for part in UNUSED_PARTS if part in index}
    return arguments | {"requires_safety_checker": False} if "safety_checker" in index else arguments


def load_part(folder: Path, part: Part, formats: PartFormats, name: str) -> Any:
    """Load one part of a folder. Raises `JobRejected` where it is damaged, or cannot be quantised here."""
    dtype = TORCH_DTYPES[formats.by_part[part.name]]
    options = dict[str, Any]()
    if part.packed is not None and part.fixed_quantization:
        refuse_unopenable(part.packed, part.name, formats.device)
    elif (quantization := formats.find_quantization(part)) != "none":
        options["quantization_config"] = _make_quantization_config(part, quantization, dtype, formats.device)
    is_converted = bool(options) or dtype != TORCH_DTYPES[part.stored_dtype]
    converted_files = part.files if is_converted and not part.fixed_quantization else ()
    part_class = (
        part.part_class
        if dtype == torch.float32 and not converted_files
        else guard_default_dtype(part.part_class, dtype, converted_files, is_streamed=bool(options))
    )
    try:
        with silence_libraries():
            module = part_class.from_pretrained(
                str(folder / part.name),
                dtype=dtype,
                variant=part.variant,
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
    except LOAD_ERRORS as error:
        log.info("%s of %s cannot be loaded", part.name, name, exc_info=True)
        reason = f"its {part.name} is damaged"
        raise JobRejected(f"The model {name} is not a model that can be loaded: {reason}.", "model") from error
    module.__class__ = part.part_class
    if part.fixed_quantization:
        set_compute_format(module, dtype)
    return module


def _make_quantization_config(part: Part, quantization: Quantization, dtype: torch.dtype, device: torch.device) -> Any:
    refuse_unavailable(quantization, device)
    library = "diffusers" if issubclass(part.part_class, ModelMixin) else "transformers"
    return make_library_config(library, quantization, device, dtype, part.matrices)


def guard_default_dtype(
    part_class: Any, target_dtype: torch.dtype, converted_files: Sequence[Path] = (), *, is_streamed: bool = False
) -> Any:
    """Return the class as a subclass that leaves torch's default dtype alone while it is built.

    Both libraries change that default for the whole process, while another thread may be drawing noise with it.
    `converted_files`: files in another format, read a slice at a time, or where `is_streamed` one weight at a time.
    """
    guard = _guard_diffusers_part if hasattr(part_class, "_set_default_torch_dtype") else _guard_transformers_part
    guarded_class = guard(part_class, target_dtype, converted_files, StreamedTensors if is_streamed else read_tensors)
    for name in ("__name__", "__qualname__", "__module__"):
        setattr(guarded_class, name, getattr(part_class, name))
    return guarded_class


def _guard_diffusers_part(
    part_class: Any, target_dtype: torch.dtype, converted_files: Sequence[Path], read: ReadTensors
) -> Any:
    class DiffusersPart(part_class):
        @classmethod
        def _set_default_torch_dtype(cls, dtype: torch.dtype) -> torch.dtype:
            return torch.get_default_dtype()

        @classmethod
        def _load_pretrained_model(cls, model: Any, state_dict: Any, *others: Any, **options: Any) -> Any:
            if converted_files:
                sharded = state_dict is None
                state_dict = read(converted_files, target_dtype, _list_float32_names(model))
                if not sharded:
                    model._fix_state_dict_keys_on_load(state_dict)
            base: Any = super()
            return base._load_pretrained_model(model, state_dict, *others, **options)

    return DiffusersPart


def _guard_transformers_part(
    part_class: Any, target_dtype: torch.dtype, converted_files: Sequence[Path], read: ReadTensors
) -> Any:
    class TransformersPart(part_class):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            base: Any = super()
            base.__init__(*arguments, **options)
            for parameter in self.parameters():  # no memory yet; weights take the dtype of these
                parameter.data = parameter.data.to(target_dtype)

        @classmethod
        def get_init_context(cls, dtype: torch.dtype, *others: Any, **options: Any) -> Any:
            base: Any = super()
            return base.get_init_context(torch.get_default_dtype(), *others, **options)

        @staticmethod
        def _load_pretrained_model(model: Any, state_dict: Any, *others: Any, **options: Any) -> Any:
            if converted_files:
                state_dict = read(converted_files, target_dtype, _list_float32_names(model))
            return part_class._load_pretrained_model(model, state_dict, *others, **options)

    return TransformersPart


def _list_float32_names(model: Any) -> set[str]:
    """Return name fragments of weights that the library keeps in float32."""
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return {fragment for name in names for fragment in getattr(model, name, None) or ()}


def make_load_error(name: str) -> JobRejected:
    return JobRejected(f"The model {name} is not a model that can be loaded.", "model")


def prepare_pipeline(pipeline: Any, name: str) -> Any:
    """Turn off progress bars. Raises `JobRejected` where the pipeline needs more than a prompt."""
    _refuse_other_inputs(pipeline, name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _refuse_other_inputs(pipeline: Any, name: str) -> None:
    """Refuse networks that take a picture, such as depth. Those of inpainting have families."""
    if getattr(pipeline, "unet", None) is None or getattr(pipeline, "vae", None) is None:
        return
    network = pipeline.unet.config
    is_plain = network.in_channels == network.out_channels == pipeline.vae.config.latent_channels
    is_known = is_plain or (needs_mask(pipeline) and has_family(type(pipeline).__name__))
    if not is_known or pipeline.config.get("requires_aesthetics_score"):
        raise JobRejected(
            f"The model {name} needs more than a prompt (depth, a score), which is not supported.", "model"
        )


CPU = torch.device("cpu")
LARGE_PARAMETERS = 100_000_000  # parameters: a model with a larger part is in memory in one format
HUGE_PARAMETERS = 1_000_000_000  # parameters: a larger model never takes more bytes than its files
FLOAT32_PARTS = ("large_decoder",)  # parts in float32 in any model
HALF_FORMATS: tuple[Dtype, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class PartFormats:
    """The number format of each part, by name.

    `single_format`: the format of a large model; None: the model is small. `has_network_copy`: whether a float32
    network also has a copy. `quantization`: of matrices; the other weights of a part have its number format.
    """

    by_part: Mapping[str, Dtype]
    single_format: Dtype | None = None
    has_network_copy: bool = True
    quantization: PartQuantization = field(default_factory=PartQuantization)
    device: torch.device = CPU

    def count_bytes(self, parts: Sequence[Part]) -> int:
        """Return the bytes of a model of these parts, its network's copy included."""
        part_bytes = sum(self.count_part_bytes(part) for part in parts)
        return part_bytes + (
            sum(2 * part.parameters for part in parts if self._is_copied(part)) if self.has_network_copy else 0
        )

    def find_quantization(self, part: Part) -> Quantization:
        """Return how the part's matrices are stored."""
        return part.fixed_quantization or self.quantization.find_for(part.name)

    def count_part_bytes(self, part: Part) -> int:
        """Return the bytes of one part, without a copy."""
        itemsize = TORCH_DTYPES[self.by_part[part.name]].itemsize
        quantization = self.find_quantization(part)
        if quantization == "none":
            return itemsize * part.parameters
        if part.packed is not None and part.packed.quantization == quantization:
            return part.packed.bytes + itemsize * (part.parameters - part.packed.parameters)
        matrix_bytes = sum(count_matrix_bytes(each, quantization, self.device, itemsize) for each in part.matrices)
        return matrix_bytes + itemsize * (part.parameters - sum(each.parameters for each in part.matrices))

    def _is_copied(self, part: Part) -> bool:
        return part.name in NETWORK_NAMES and self.by_part[part.name] == "float32"


@dataclass(frozen=True)
class FormatChooser:
    """Chooses for one device. A part of more than `large_threshold` parameters makes a model large."""

    device: torch.device
    large_threshold: int = LARGE_PARAMETERS
    quantization: PartQuantization = field(default_factory=PartQuantization)

    def with_quantization(self, quantization: PartQuantization) -> FormatChooser:
        return replace(self, quantization=quantization)

    def with_stored(self, parts: Sequence[Part]) -> FormatChooser:
        """Return the chooser with the quantisation of parts that stay as their files store them."""
        networks: list[Quantization | None] = [part.fixed_quantization for part in parts if part.name in NETWORK_NAMES]
        texts = [part.fixed_quantization for part in parts if part.name.startswith(TEXT_ENCODER_PREFIX)]
        stored: list[Quantization] = [each for each in networks if each is not None]
        text: Quantization = "none" if texts and all(texts) else self.quantization.text
        return self.with_quantization(PartQuantization(stored[0] if stored else self.quantization.network, text))

    def is_large(self, parts: Sequence[Part]) -> bool:
        """Whether the model has a large part."""
        return any(part.parameters > self.large_threshold for part in parts)

    def choose_formats(self, class_name: str, parts: Sequence[Part]) -> PartFormats:
        """Choose for a pipeline class and its parts. An empty class name counts as one with a family."""
        largest = max(parts, key=lambda part: part.parameters, default=None)
        quantization = self.with_stored(parts).quantization
        if largest is None or not (self.is_large(parts) or quantization):
            return PartFormats({part.name: "float32" for part in parts})
        dtype = choose_single_format(self.device, largest.stored_dtype, prefers_bfloat16=bool(quantization))
        if dtype == "float32" and largest.parameters > HUGE_PARAMETERS:
            dtype = largest.stored_dtype
        return self.make_single_formats(dtype, class_name, parts)

    def make_single_formats(self, dtype: Dtype, class_name: str, parts: Sequence[Part]) -> PartFormats:
        """Return the formats of a large model in `dtype`. Without a family of ours only its large parts get it."""
        quantization = self.with_stored(parts).quantization
        if not class_name or has_family(class_name):
            formats: dict[str, Dtype] = {
                part.name: "float32" if part.name in FLOAT32_PARTS else dtype for part in parts
            }
            return PartFormats(formats, dtype, False, quantization, self.device)
        large_formats: dict[str, Dtype] = {
            part.name: dtype if part.parameters > self.large_threshold else "float32" for part in parts
        }
        return PartFormats(large_formats, dtype, not quantization, quantization, self.device)

    def estimate_sizes(self, class_name: str, parts: Sequence[Part]) -> dict[Dtype, int]:
        """Return the bytes in each format that the model may be loaded in; empty for a small model."""
        if self.choose_formats(class_name, parts).has_network_copy:
            return {}
        return {dtype: self.make_single_formats(dtype, class_name, parts).count_bytes(parts) for dtype in TORCH_DTYPES}


def choose_training_formats(parts: Sequence[Part]) -> PartFormats:
    """Return formats for training: float32, except for parts too large for that."""
    return PartFormats(
        {part.name: part.stored_dtype if part.parameters > HUGE_PARAMETERS else "float32" for part in parts}
    )


def choose_single_format(device: torch.device, stored_dtype: Dtype, *, prefers_bfloat16: bool = False) -> Dtype:
    """Return the format for a large model: half the bits where the device computes with them, else float32.

    On a GPU that is the files' half format, if the GPU supports it. On a processor it is bfloat16, whatever the files
    have. `prefers_bfloat16`: also on a GPU, since sums of quantised weights may be too large for float16.
    """
    if device.type == "cuda":
        supported: tuple[Dtype, ...] = HALF_FORMATS if torch.cuda.is_bf16_supported() else ("float16",)
        return stored_dtype if stored_dtype in supported and not prefers_bfloat16 else supported[0]
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions."""
    cpu: Any = torch.cpu  # no public name tells
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
