"""Control networks of one model: which fit, and those in memory."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from diffusers.loaders import single_file_utils
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from PIL import Image
from safetensors import SafetensorError

from engine.contract import ControlImage, ControlModel, Dtype, JobRejected, Preprocessor
from engine.models.family import TORCH_DTYPES
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged
from engine.models.files.model_source import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import count_parameters, find_weight_files, read_header
from engine.models.files.tensor_reader import read_tensors
from engine.models.network.network_copies import place_network, substitute_layers
from engine.models.picture_conditions import SlotKind

log = logging.getLogger(__name__)


class ControlNetwork(Protocol):
    """A control network in one number format. `kind`: of its slots."""

    kind: SlotKind
    nbytes: int

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        """Return what a forward needs of a control image (RGB): tensors `[channels, height, width]`."""
        ...


class ControlNet:
    """A ControlNet (Zhang et al. 2023). Its embedding of the control image runs once, not at every step."""

    kind: SlotKind = "control"

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._embedding = network.controlnet_cond_embedding
        self._device = device
        self._dtype = dtype
        self._is_bgr = network.config.controlnet_conditioning_channel_order == "bgr"
        self.nbytes = _count_bytes(network)
        network.controlnet_cond_embedding = torch.nn.Identity()
        network.register_to_config(controlnet_conditioning_channel_order="rgb")
        self.network = network

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        pixels = _to_pixels(control_image).to(self._device, self._dtype)
        return (self._embedding(pixels.flip(1) if self._is_bgr else pixels)[0],)

    def compute_residuals(
        self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor, arguments: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Return the residuals of the way down, and last that of the middle, each `[rows, …]`.

        `embedding`: of each row's control image. `arguments`: the texts, as the network's forward names them.
        """
        down, middle = self.network(x, t, controlnet_cond=embedding, return_dict=False, **arguments)
        return [*down, middle]


class TransformerControlNet:
    """A ControlNet of Flux or Stable Diffusion 3; it reads latents."""

    kind: SlotKind = "control"

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.network = network
        self.dtype = dtype
        self.nbytes = _count_bytes(network)

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        raise TypeError("the model's autoencoder encodes its control images")


class Adapter:
    """A T2I-Adapter (Mou et al. 2023): features that are the same at every step."""

    kind: SlotKind = "adapter"

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.network = network
        self._device = device
        self._dtype = dtype
        self.nbytes = _count_bytes(network)

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        is_grey = self.network.config.in_channels == 1
        pixels = _to_pixels(control_image.convert("L") if is_grey else control_image)
        return tuple(feature[0] for feature in self.network(pixels.to(self._device, self._dtype)))


WRAPPERS: dict[type[Any], Callable[[Any, torch.device, torch.dtype], ControlNetwork]] = {
    ControlNetModel: ControlNet,
    T2IAdapter: Adapter,
}


@torch.inference_mode(False)
def load_control_network(
    file: ControlFile, target: TargetNetwork, dtype: Dtype, device: torch.device
) -> ControlNetwork:
    """Load a control network's weights. Raises `JobRejected` where they are damaged or do not fit."""
    torch_dtype = TORCH_DTYPES[dtype]
    try:
        network = build_empty_network(file, target)
        weights = convert_weights(file, read_tensors(file.weights, torch_dtype), network)
        cast(torch.nn.Module, network).load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise JobRejected(f"The control network {file.name} cannot be loaded.", "worker") from error
    if device.type == "cpu" and dtype == "bfloat16" and isinstance(network, ControlNetModel):
        substitute_layers(network)
    placed = place_network(network, device, dtype)
    wrap = WRAPPERS.get(cast(type[Any], type(network)), TransformerControlNet)
    return wrap(placed, device, torch_dtype)


def _to_pixels(picture: Image.Image) -> torch.Tensor:
    """Return `[1, channels, height, width]` from 0 to 1, as diffusers' control pipelines do."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1))[None]


def _count_bytes(network: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


MAX_CONTROLS = 64  # announced control networks, the limit of `engine.contract.ModelProfile`
MAX_KEPT = 4  # networks that stay in memory after their last picture


class ControlCollection:
    """The control networks in `folder` for one model; None: there is no such folder. Any thread may use it."""

    def __init__(self, target: TargetNetwork, device: torch.device) -> None:
        self.folder: Path | None = None
        self.target = target
        self._device = device
        self._lock = RLock()
        self._compatible_revisions: dict[str, bool] = {}
        self._kept: OrderedDict[tuple[str, Dtype], ControlNetwork] = OrderedDict()

    def list_compatible(self) -> tuple[ControlModel, ...]:
        """Return all that fit this model. Each is checked once."""
        files = [file for file in CONTROL_KIND.find_all(self.folder) if self._is_compatible(file)]
        return tuple(
            ControlModel(file.name, file.revision, file.usual_preprocessor, file.row_share)
            for file in files[:MAX_CONTROLS]
        )

    def find(self, control: ControlImage) -> ControlFile:
        """Return a control picture's network. Raises `JobRejected`: missing, unfit or of another revision."""
        file = CONTROL_KIND.find(self.folder, control.name, control.revision)
        if not self._is_compatible(file):
            raise JobRejected(f"The control network {control.name} does not fit this model.", "model")
        return file

    def load(self, file: ControlFile, dtype: Dtype) -> ControlNetwork:
        """Return the network in this format, loaded at its first use. Raises `JobRejected`."""
        with self._lock:
            key = file.revision, dtype
            if key not in self._kept:
                self._kept[key] = load_control_network(file, self.target, dtype, self._device)
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def count_bytes(self, files: Sequence[ControlFile], dtype: Dtype, *, with_kept: bool = True) -> int:
        """Return the bytes of these networks, `with_kept`: and of those in memory. They are read from headers."""
        wanted = {(file.revision, dtype): file for file in files}
        with self._lock:
            kept_bytes = {key: network.nbytes for key, network in self._kept.items() if with_kept or key in wanted}
        added = [file for key, file in wanted.items() if key not in kept_bytes]
        predicted = sum(count_parameters(list(file.weights))[0] for file in added)
        return sum(kept_bytes.values()) + predicted * TORCH_DTYPES[dtype].itemsize

    def release_others(self, files: Sequence[ControlFile], dtype: Dtype) -> None:
        """Drop all networks but these."""
        wanted = {(file.revision, dtype) for file in files}
        with self._lock:
            for key in self._kept.keys() - wanted:
                del self._kept[key]

    def release(self) -> None:
        """Drop all networks."""
        with self._lock:
            self._kept.clear()

    def _is_compatible(self, file: ControlFile) -> bool:
        with self._lock:
            if file.revision not in self._compatible_revisions:
                self._compatible_revisions[file.revision] = is_compatible(file, self.target)
            return self._compatible_revisions[file.revision]


MAX_CONFIG_BYTES = 64 * 1024
# What names of published control networks say about the control image that they were trained with.
_PREPROCESSORS_BY_WORD: tuple[tuple[str, Preprocessor], ...] = (
    ("canny", "canny"),
    ("depth", "depth"),
    ("midas", "depth"),
    ("pose", "pose"),
    ("lineart", "lineart"),
)


class ControlFile(NamedTuple):
    """A control network's files. `revision` changes with them; `config_json` is empty for a single file."""

    name: str
    weights: tuple[Path, ...]
    config_json: str
    revision: str

    @property
    def config(self) -> Mapping[str, Any]:
        return json.loads(self.config_json) if self.config_json else {}

    @property
    def class_name(self) -> str:
        """The network's class in diffusers; a single file is a ControlNet."""
        return str(self.config.get("_class_name", "ControlNetModel"))

    @property
    def row_share(self) -> float | None:
        """Which share of a row's time it adds: none for an adapter, which runs once for a picture; None: unknown."""
        return 0.0 if self.class_name == "T2IAdapter" else None

    @property
    def usual_preprocessor(self) -> Preprocessor:
        """What makes its control images, as far as its name says so."""
        name = self.name.lower()
        usual: list[Preprocessor] = [preprocessor for word, preprocessor in _PREPROCESSORS_BY_WORD if word in name]
        return usual[0] if usual else "none"


def _read_control(entry: AddedEntry) -> ControlFile:
    config_json = _read_config(entry) if entry.is_folder else ""
    entry.list_weights()  # refuses a folder of pickles
    weights = find_weight_files(entry.path)[0] if entry.is_folder else [entry.path]
    entry.check_links(weights)
    revision = combine_fingerprints(config_json, *(_fingerprint_weights(path) for path in weights))
    return ControlFile(entry.name, tuple(weights), config_json, revision)


def _read_config(entry: AddedEntry) -> str:
    try:
        text = entry.read_config(MAX_CONFIG_BYTES).decode()
        config: object = json.loads(text)
        is_usable = isinstance(config, dict) and isinstance(cast(dict[str, object], config).get("_class_name"), str)
    except (ValueError, RecursionError):
        is_usable = False
        text = ""
    if not is_usable:
        raise entry.reject_config()
    return text


_fingerprint_weights = cache_while_unchanged(fingerprint_file)
CONTROL_KIND = AddedKind("control network", _read_control)


MAX_REPEATS = 64  # layers or blocks of one kind in a row: a wrong configuration must not build millions of modules
Tensors = dict[str, torch.Tensor]
NETWORK_CLASSES: Mapping[str, Mapping[str, Any]] = {  # of control networks, by the class of a model's network
    "UNet2DConditionModel": {"ControlNetModel": ControlNetModel, "T2IAdapter": T2IAdapter},
    "FluxTransformer2DModel": {"FluxControlNetModel": FluxControlNetModel},
    "SD3Transformer2DModel": {"SD3ControlNetModel": SD3ControlNetModel},
}


class TargetNetwork(NamedTuple):
    """What a control network has to fit: the class and configuration of a model's network, and its latents."""

    class_name: str
    config: Mapping[str, Any]
    latent_channels: int
    pixels_per_latent: int


def is_compatible(file: ControlFile, target: TargetNetwork) -> bool:
    """Whether the control network fits; logs why not."""
    if mismatch := explain_mismatch(file, target):
        log.warning("left out: the control network %s does not fit the model: %s", file.name, mismatch)
    return not mismatch


def explain_mismatch(file: ControlFile, target: TargetNetwork) -> str:
    """Return why the control network does not fit, as the end of a sentence; empty: it fits."""
    try:
        return _find_mismatch(file, target)[:500]
    except Exception as error:  # untrusted files, many configurations: any error is possible
        return str(error).partition("\n")[0][:500] or type(error).__name__


def build_empty_network(file: ControlFile, target: TargetNetwork) -> Any:
    """Build the network on the meta device. Raises ValueError where its configuration is not to be built."""
    config = dict(file.config) or _guess_config(file, target)
    _refuse_many_repeats(config)
    network_class = NETWORK_CLASSES.get(target.class_name, {}).get(file.class_name)
    if network_class is None:
        raise ValueError(f"a {file.class_name[:80]} is no control network of such a model")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' own, of an import in its ControlNet of Flux
        return network_class.from_config(config).eval().requires_grad_(False)


def convert_weights(file: ControlFile, weights: Tensors, network: Any) -> Tensors:
    """Return the weights by the network's own names: a single file may have those of the original program."""
    if file.config_json:
        return weights
    return cast(Any, single_file_utils).convert_controlnet_checkpoint(weights, network.config)


def _find_mismatch(file: ControlFile, target: TargetNetwork) -> str:
    """Return the first mismatch; empty: none."""
    network = build_empty_network(file, target)
    if isinstance(network, T2IAdapter):
        mismatch = _find_adapter_mismatch(network, target)
    elif isinstance(network, ControlNetModel):
        mismatch = _find_controlnet_mismatch(network.config, target)
    else:
        mismatch = _find_transformer_mismatch(network.config, target.config)
    if mismatch:
        return mismatch
    expected = cast(Tensors, network.state_dict())
    stored = convert_weights(file, _read_headers(file), network)
    if missing := sorted(expected.keys() - stored.keys()):
        return f"it lacks {missing[0]}"
    wrong = [name for name, tensor in expected.items() if stored[name].shape != tensor.shape]
    return f"{wrong[0]} has the shape {list(stored[wrong[0]].shape)}" if wrong else ""


def _find_controlnet_mismatch(config: Mapping[str, Any], target: TargetNetwork) -> str:
    names = ("cross_attention_dim", "addition_embed_type", "projection_class_embeddings_input_dim")
    wrong = [name for name in names if config.get(name) != target.config.get(name)]
    if wrong:
        return f"its {wrong[0]} is {config.get(wrong[0])}, not {target.config.get(wrong[0])}"
    if _list_residuals(config) != _list_residuals(target.config):
        return "its blocks are not the model's"
    if config["in_channels"] != target.latent_channels or config["conditioning_channels"] != 3:
        return "it takes other latents or pictures"
    if 2 ** (len(config["conditioning_embedding_out_channels"]) - 1) != target.pixels_per_latent:
        return "it is for latents of another size"
    if config["global_pool_conditions"] or config.get("class_embed_type") or config.get("encoder_hid_dim_type"):
        return "it pools its conditions, or takes others besides"
    return ""


def _find_transformer_mismatch(config: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Return why a ControlNet does not fit a transformer of its own kind."""
    names = ("in_channels", "pooled_projection_dim", "num_attention_heads", "attention_head_dim", "patch_size")
    wrong = [name for name in names if config.get(name) != target.get(name)]
    if config["joint_attention_dim"] not in (target["joint_attention_dim"], None):
        wrong.append("joint_attention_dim")
    if wrong:
        return f"its {wrong[0]} is {config.get(wrong[0])}, not {target.get(wrong[0])}"
    if any((config.get(name) or 0) > target.get(name, 0) for name in ("num_layers", "num_single_layers")):
        return "it has more blocks than the model"
    if config.get("guidance_embeds") and not target.get("guidance_embeds"):
        return "it takes guidance, unlike the model"
    others = ("num_mode", "conditioning_embedding_channels", "extra_conditioning_channels")
    if config.get("use_pos_embed") is False or any(config.get(name) for name in others):
        return "it takes a mode, pixels or the model's own embedding besides"
    return ""


def _list_residuals(config: Mapping[str, Any]) -> list[int]:
    widths: Sequence[int] = config["block_out_channels"]
    layers: Any = config["layers_per_block"]
    per_block: Sequence[int] = [layers] * len(widths) if isinstance(layers, int) else layers
    residuals = [widths[0]]
    for number, (width, count) in enumerate(zip(widths, per_block, strict=True)):
        residuals += [width] * (count + (number < len(widths) - 1))
    return residuals


def _find_adapter_mismatch(network: T2IAdapter, target: TargetNetwork) -> str:
    """Compare the features of an empty picture with the places that they are added at."""
    channels: int = cast(Any, network.config).in_channels
    if channels not in (1, 3):
        return f"it takes pictures of {channels} channels"
    expected = _list_adapter_places(target.config)
    side = target.pixels_per_latent * 2 ** len(target.config["block_out_channels"])
    features = network(torch.empty(1, channels, side, side, device="meta"))
    latent_side = side // target.pixels_per_latent
    actual = [(feature.shape[1], latent_side // feature.shape[2]) for feature in features]
    return "" if actual == expected[: len(actual)] else f"its features are {actual}, not {expected}"


def _list_adapter_places(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return channels and reduction of each place where diffusers' U-Net adds features, in sequence."""
    widths = config["block_out_channels"]
    places = list[tuple[int, int]]()
    for number, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
        is_reduced_first = "CrossAttn" not in kind and number < len(widths) - 1
        places.append((width, 2 ** (number + is_reduced_first)))
    return [*places, (widths[-1], 2 ** (len(widths) - 1))]


def _guess_config(file: ControlFile, target: TargetNetwork) -> dict[str, Any]:
    """Return the configuration of a ControlNet that is a copy of the model's way down, as all single files are."""
    names = inspect.signature(ControlNetModel.__init__).parameters.keys() & target.config.keys()
    config = {name: target.config[name] for name in names} | {"in_channels": target.latent_channels}
    headers = _read_headers(file)
    prefix = "controlnet_cond_embedding."
    if f"{prefix}conv_in.weight" in headers:
        widths = [headers[f"{prefix}conv_in.weight"].shape[0]]
        while f"{prefix}blocks.{2 * len(widths) - 1}.weight" in headers:
            widths.append(headers[f"{prefix}blocks.{2 * len(widths) - 1}.weight"].shape[0])
        config["conditioning_embedding_out_channels"] = tuple(widths)
    return config


def _refuse_many_repeats(config: Mapping[str, Any]) -> None:
    repeated = ("layers_per_block", "transformer_layers_per_block", "num_res_blocks", "num_layers", "num_single_layers")
    for name in repeated:
        value: Any = config.get(name, 1)
        counts: Sequence[Any] = cast(Sequence[Any], value) if isinstance(value, list | tuple) else [value]
        if any(not isinstance(count, int) or count > MAX_REPEATS for count in counts):
            raise ValueError(f"its {name} is {str(cast(object, value))[:80]}")
    for name in ("block_out_channels", "channels", "conditioning_embedding_out_channels"):
        if len(config.get(name) or ()) > MAX_REPEATS:
            raise ValueError(f"its {name} has too many entries")


def _read_headers(file: ControlFile) -> Tensors:
    """Return each weight as a tensor without memory. Raises `SafetensorError` or OSError."""
    headers = (entry for path in file.weights for entry in read_header(path).items())
    return {name: torch.empty(each.shape, device="meta") for name, each in headers}
