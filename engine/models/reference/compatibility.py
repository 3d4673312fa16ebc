"""Checks whether an IP-Adapter fits a U-Net and its own image encoder, by names and shapes in headers.

Plain adapters read the encoder's pooled output; "plus" and "full" ones read the states before its last layer. Adapters
of faces are refused: they read the output of other networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.models.network.reference_attention import list_attention_layers
from engine.models.reference.adapter_files import AdapterFile, EncoderConfig, read_shapes

Shapes = Mapping[str, tuple[int, ...]]
# The matrix that reads the image encoder's output, by the kind of adapter: pooled output, or states. In the sequence in
# which diffusers' loader tells them apart, with what only that kind has.
PLAIN_KEY = "image_proj.proj.weight"
FULL_KEY = "image_proj.proj.0.weight"
PLUS_KEY = "image_proj.proj_in.weight"
FULL_MARK = "image_proj.proj.3.weight"
FACE_MARKS = ("image_proj.perceiver_resampler", "image_proj.norm.")
MATRICES = ("to_k_ip", "to_v_ip")  # of each layer: to keys, to values


def find_mismatch(net: Any, adapter: AdapterFile) -> str:
    """Return why the adapter does not fit `net`; empty: it fits. Raises `JobRejected` for unreadable files."""
    shapes = read_shapes(adapter)
    return _find_layer_mismatch(net, shapes) or _find_encoder_mismatch(adapter.encoder_config, shapes)


def list_layer_keys(net: Any) -> list[str]:
    """Return the adapter's names for the matrices of each layer of `net`: to its keys, to its values."""
    count = sum(1 for _ in list_attention_layers(net))
    return [f"ip_adapter.{2 * number + 1}.{part}.weight" for number in range(count) for part in MATRICES]


def is_plain(layer: Any) -> bool:
    """Whether an attention layer only attends: no norms inside, no residual."""
    norms = layer.spatial_norm, layer.group_norm, layer.norm_q, layer.norm_k, layer.norm_cross
    return not any(norms) and not layer.residual_connection and layer.rescale_output_factor == 1


def _find_layer_mismatch(net: Any, shapes: Shapes) -> str:
    """Compare each matrix `[width, features of a token]` with its layer."""
    layers = list(list_attention_layers(net))
    keys = list_layer_keys(net)
    adapter_layers = {key.split(".")[1] for key in shapes if key.startswith("ip_adapter.")}
    if len(adapter_layers) != len(layers):
        return f"it has {len(adapter_layers)} layers, and the model {len(layers)}"
    for number, key in enumerate(keys):
        name, layer = layers[number // len(MATRICES)]
        if not is_plain(layer) or shapes.get(key) != (layer.inner_dim, layer.cross_attention_dim):
            return f"its {key} does not fit {name}"
    return ""


def _find_encoder_mismatch(config: EncoderConfig, shapes: Shapes) -> str:
    if PLAIN_KEY in shapes:
        key = PLAIN_KEY
        width = config.projection_dim
    elif FULL_MARK not in shapes and any(key.startswith(FACE_MARKS) for key in shapes):
        return "it is for faces, and reads the output of a network that recognises them"
    else:
        key = FULL_KEY if FULL_MARK in shapes else PLUS_KEY
        width = config.hidden_size
    if config.model_type != "clip_vision_model":
        return "its image encoder is no CLIP"
    if key not in shapes:
        return "it has no image projection that is known"
    return "" if shapes[key][-1] == width else f"its image encoder has the width {width}, not {shapes[key][-1]}"
