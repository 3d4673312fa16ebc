"""Writes a small Stable Diffusion folder as one file with the keys of the original program (CompVis, LDM).

It maps the names of diffusers back. It knows 1.x with one layer per block and uses nothing of the engine.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
LAYERS = 1  # in each block of the network

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_ENDS = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
)
_AUTOENCODER = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("downsamplers.0.conv", "downsample.conv"),
    ("upsamplers.0.conv", "upsample.conv"),
    ("group_norm", "norm"),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
    ("resnets.", "block."),
)


def write_ldm_checkpoint(folder: Path, path: Path, *, configs: bool = True) -> None:
    """Writes all weights of the folder's pipeline to `path`, and with `configs` its configurations beside it."""
    network = {
        f"model.diffusion_model.{_network_key(key)}": value for key, value in _load_weights(folder / "unet").items()
    }
    autoencoder = _load_weights(folder / "vae")
    blocks = 1 + max(int(match[1]) for key in autoencoder if (match := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    vae = {
        f"first_stage_model.{_autoencoder_key(key, blocks)}": _as_convolution(key, value)
        for key, value in autoencoder.items()
    }
    texts = {
        f"cond_stage_model.transformer.{_text_key(key)}": value
        for key, value in _load_weights(folder / "text_encoder").items()
    }
    save_file({key: value.contiguous() for key, value in (network | vae | texts).items()}, path)
    if configs:
        shutil.copytree(folder, path.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))


def _load_weights(folder: Path) -> State:
    return load_file(next(folder.glob("*.safetensors")))


def _network_key(key: str) -> str:
    for diffusers_name, original_name in _ENDS:
        key = re.sub(rf"^{re.escape(diffusers_name)}\.", f"{original_name}.", key)
    key = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(conv\.)?", _rename_block, key)
    if re.match(r"(input|output)_blocks\.\d+\.0\.|middle_block\.[02]\.", key):
        for diffusers_name, original_name in _RESNET:
            key = key.replace(f".{diffusers_name}.", f".{original_name}.")
    return key


def _rename_block(match: re.Match[str]) -> str:
    direction = match[1]
    block = int(match[2])
    kind = match[3]
    number = int(match[4])
    conv = match[5] or ""
    start = (LAYERS + 1) * block
    if kind == "downsamplers":
        return f"input_blocks.{start + LAYERS + 1}.0.op."
    if kind == "upsamplers":  # after the attention, if the block has it: the first block of this network has none
        return f"output_blocks.{start + LAYERS}.1.conv."
    index = start + number + (direction == "down")
    return f"{'input' if direction == 'down' else 'output'}_blocks.{index}.{int(kind == 'attentions')}.{conv}"


def _autoencoder_key(key: str, blocks: int) -> str:
    for diffusers_name, original_name in _AUTOENCODER:
        key = key.replace(diffusers_name, original_name)
    key = re.sub(r"^encoder\.down_blocks\.", "encoder.down.", key)
    return re.sub(r"^decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{blocks - 1 - int(match[1])}", key)


def _as_convolution(key: str, value: torch.Tensor) -> torch.Tensor:
    """The original attention uses convolutions of one pixel instead of linear layers."""
    is_linear = "attentions" in key and key.endswith("weight") and value.ndim == 2
    return value[:, :, None, None] if is_linear else value


def _text_key(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"
