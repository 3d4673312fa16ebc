"""Control networks in a data folder, and whether one fits a model, by its configuration and its headers."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.loaders import single_file_utils
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from safetensors import safe_open

from engine.contract import Preprocessor
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged
from engine.models.files.model_source import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import find_weight_files

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
    """Return the configuration as text."""
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


log = logging.getLogger(__name__)

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
    """Return the channels of each residual of the way down."""
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
    tensors: Tensors = {}
    for path in file.weights:
        with cast(Any, safe_open)(path, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                tensors[key] = torch.empty(handle.get_slice(key).get_shape(), device="meta")
    return tensors
