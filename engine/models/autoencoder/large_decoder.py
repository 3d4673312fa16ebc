"""The large decoder: turns a small model's latents into a picture four times as wide, in one pass.

It is diffusers' own `Decoder` with two more levels than the autoencoder's. A model's folder holds it in `decoder/`, as
`config.json` and one file of safetensors. Everything in the folder is checked before it takes memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self, cast

import msgspec
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.modeling_utils import ModelMixin
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.contract import JobRejected

LARGE_DECODER_FOLDER = "decoder"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MAX_CONFIG_BYTES = 1 << 16
MAX_WEIGHTS_BYTES = 100 << 20
ADDED_LEVELS = 2  # beyond the autoencoder's; each doubles the sides
LARGE_FACTOR = 2**ADDED_LEVELS  # the picture's sides in those of the autoencoder's

Width = Annotated[int, Meta(ge=1, le=1024)]


class _Config(msgspec.Struct, forbid_unknown_fields=False):
    """The fields of `config.json`, with bounds."""

    latent_channels: Annotated[int, Meta(ge=1, le=64)]
    block_out_channels: Annotated[list[Width], Meta(min_length=1 + ADDED_LEVELS, max_length=6 + ADDED_LEVELS)]
    layers_per_block: Annotated[int, Meta(ge=1, le=4)]
    norm_num_groups: Annotated[int, Meta(ge=1, le=64)]
    mid_block_add_attention: bool
    use_post_quant_conv: bool
    scaling_factor: Annotated[float, Meta(gt=0, le=1e3)]
    shift_factor: Annotated[float, Meta(ge=-1e3, le=1e3)] | None


class LargeDecoder(ModelMixin, ConfigMixin):
    """The network. `block_out_channels` are the widths from the pixels' end; scale and shift are the autoencoder's."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        block_out_channels: list[int],
        layers_per_block: int = 1,
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = False,
        use_post_quant_conv: bool = True,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.post_quant_conv = torch.nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.decoder = Decoder(
            latent_channels,
            3,
            ("UpDecoderBlock2D",) * len(block_out_channels),
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
            mid_block_add_attention=mid_block_add_attention,
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pixels `[n, 3, height, width]`, about −1…1, of unscaled latents `[n, channels, h, w]`."""
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Return pixels `[n, 3, 4·…]` as diffusers' autoencoders do; see `forward`."""
        return (self(latents),)

    @classmethod
    def load(cls, model_folder: Path, autoencoder: Any) -> Self | None:
        """Return the large decoder of a model's folder, float32; None where it has none.

        Raises `JobRejected` where the files are broken, or for latents of another shape or scale.
        """
        folder = model_folder / LARGE_DECODER_FOLDER
        if not folder.is_dir():
            return None
        config = _read_config(folder)
        _refuse_other_latents(config, autoencoder.config)
        path = folder / WEIGHTS_FILE
        if not path.is_file() or path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise _reject(f"has no {WEIGHTS_FILE} of at most {MAX_WEIGHTS_BYTES >> 20} MiB")
        try:
            tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
            with torch.device("meta"):  # a wrong configuration takes no memory
                network = cls(**msgspec.to_builtins(config))
            cast(Any, network).load_state_dict(tensors, assign=True)
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise _reject("has weights that are damaged or do not fit its config.json") from error
        network.eval().requires_grad_(False)
        _test_network(network)
        return network


def _read_config(folder: Path) -> _Config:
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise _reject("has no config.json that can be read") from error
    if any(width % config.norm_num_groups for width in config.block_out_channels):
        raise _reject("has widths that its groups do not divide")
    return config


def _refuse_other_latents(config: _Config, autoencoder_config: Any) -> None:
    levels = len(autoencoder_config.get("block_out_channels") or ()) + ADDED_LEVELS
    own_latents = config.latent_channels, len(config.block_out_channels), config.scaling_factor, config.shift_factor
    names = "scaling_factor", "shift_factor"
    if own_latents != (autoencoder_config.get("latent_channels"), levels, *map(autoencoder_config.get, names)):
        raise _reject("is not for the latents of its autoencoder")


@torch.inference_mode()
def _test_network(network: LargeDecoder) -> None:
    if not bool(network(torch.zeros(1, network.config["latent_channels"], 2, 2)).isfinite().all()):
        raise _reject("does not give pictures")


def _reject(reason: str) -> JobRejected:
    return JobRejected(f"The large decoder of the model {reason}.", "model")
