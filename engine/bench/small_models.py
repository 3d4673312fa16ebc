"""Builds very small pipelines with random weights in the diffusers layout: real code paths, no downloads.

    python -m engine.bench.small_models sdxl out/small-sdxl

Knows nothing of the engine. A kind is the same model every time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from engine.bench.small_tokenizers import (
    build_chat_tokenizer,
    build_clip_tokenizer,
    build_gemma_tokenizer,
    build_t5_tokenizer,
)

diffusers: Any = import_module("diffusers")  # their lazy modules export nothing that a type checker sees
transformers: Any = import_module("transformers")

DECODER_CONFIG = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8
}  # fmt: skip
NOISE_SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_small_pipeline(kind: str, folder: Path) -> None:
    """Save a small pipeline of this kind as safetensors. Raises KeyError if `KINDS` has no such kind."""
    torch.manual_seed(0)
    PIPELINE_BUILDERS[kind]().save_pretrained(folder, safe_serialization=True)


def sd(sample_size: int = 16, max_tokens: int = 16, **fields: Any) -> Any:
    """Stable Diffusion 1.x: CLIP, epsilon prediction, "leading" spacing, 32 pixels."""
    vae = _build_autoencoder(4, (16, 32))
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, sample_size=sample_size, in_channels=4,
        out_channels=4, attention_head_dim=8, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **fields,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=build_scheduler("PNDMScheduler", skip_prk_steps=True, steps_offset=1, **NOISE_SCHEDULE),
        text_encoder=transformers.CLIPTextModel(_make_clip_config(max_tokens)), tokenizer=build_clip_tokenizer(max_tokens),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd_lcm() -> Any:
    """Stable Diffusion 1.x as a latent consistency model, 64 pixels."""
    return sd(sample_size=32, max_tokens=77, time_cond_proj_dim=16)


def latent_consistency() -> Any:
    """The same in the pipeline class that such models are published with."""
    parts = sd_lcm().components | {"scheduler": build_scheduler("LCMScheduler", **NOISE_SCHEDULE)}
    return diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def sdxl(**fields: Any) -> Any:
    """Two CLIPs, the second with a pooled text; size conditioning; 64 pixels."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, sample_size=16, in_channels=4,
        out_channels=4, attention_head_dim=(2, 4), norm_num_groups=8, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32, **fields,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=_build_autoencoder(4, (16, 32, 32), scaling_factor=0.13025), unet=unet,
        text_encoder=transformers.CLIPTextModel(_make_clip_config()),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_make_clip_config()),
        tokenizer=build_clip_tokenizer(), tokenizer_2=build_clip_tokenizer(),
        scheduler=build_scheduler("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading", **NOISE_SCHEDULE),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def lcm() -> Any:
    """SDXL as a latent consistency model: guidance is an input of the network."""
    return sdxl(time_cond_proj_dim=16)


def sd3() -> Any:
    """Two CLIPs and T5, joint attention, flow matching with a fixed shift; 64 pixels."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, pos_embed_max_size=32,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=_build_shifted_autoencoder(16, 1.5305, 0.0609),
        scheduler=build_flow_scheduler(shift=3.0),
        text_encoder=transformers.CLIPTextModelWithProjection(_make_clip_config()), tokenizer=build_clip_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_make_clip_config()), tokenizer_2=build_clip_tokenizer(),
        text_encoder_3=_build_t5(64), tokenizer_3=build_t5_tokenizer(),
    )  # fmt: skip


def flux(guidance_embeds: bool = True) -> Any:
    """CLIP's pooled text and T5, packed latents, guidance as an input, a shift by the picture's size; 256 pixels."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=_build_shifted_autoencoder(4, 0.3611, 0.1159, (16, 32)),
        scheduler=build_flow_scheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        text_encoder=transformers.CLIPTextModel(_make_clip_config()), tokenizer=build_clip_tokenizer(),
        text_encoder_2=_build_t5(32), tokenizer_2=build_t5_tokenizer(),
    )  # fmt: skip


def schnell() -> Any:
    """Flux without the guidance input and with a fixed shift."""
    return flux(guidance_embeds=False)


def zimage() -> Any:
    """Qwen3's next to last states in their own length, one stream of tokens, the output negated; 256 pixels."""
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[768, 128, 128],
    )  # fmt: skip
    for pad_token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad_token, std=0.02)  # the class leaves them uninitialised
    text_config = transformers.Qwen3Config(
        vocab_size=300,
        num_hidden_layers=3,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=0,
        **DECODER_CONFIG,
    )
    return diffusers.ZImagePipeline(
        transformer=transformer, vae=_build_shifted_autoencoder(16, 0.3611, 0.1159, (16, 32)),
        scheduler=build_flow_scheduler(shift=3.0),
        text_encoder=transformers.Qwen3Model(text_config), tokenizer=build_chat_tokenizer(),
    )  # fmt: skip


def sana() -> Any:
    """Gemma with a mask, linear attention, a deep-compression autoencoder, DPM++ on flow matching; 64 pixels."""
    transformer = diffusers.SanaTransformer2DModel(
        sample_size=16, in_channels=8, out_channels=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=8, attention_head_dim=4, scaling_factor=0.41407,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 16, 16),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), decoder_block_out_channels=(8, 16, 16),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
    )  # fmt: skip
    solver = build_scheduler(
        "DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(build_gemma_tokenizer(), _build_gemma(), vae, transformer, solver)


def pixart() -> Any:
    """PixArt-Σ, which has no family here: T5 with a mask, a learned variance; 256 pixels."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, caption_channels=32, cross_attention_dim=16, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        transformer=transformer, vae=_build_autoencoder(4, (8, 16, 16, 16)), text_encoder=_build_t5(32), tokenizer=build_t5_tokenizer(),
        scheduler=build_scheduler("DPMSolverMultistepScheduler", **NOISE_SCHEDULE),
    )  # fmt: skip


def lumina2() -> Any:
    """Lumina Image 2, which has no family here: Gemma, a time that runs backwards; 64 pixels."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=16, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(512, 512, 512), cap_feat_dim=16,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=transformer, vae=_build_shifted_autoencoder(4, 0.3611, 0.1159, (8, 16, 16, 16)),
        scheduler=build_flow_scheduler(shift=3.0),
        text_encoder=_build_gemma(), tokenizer=build_gemma_tokenizer(),
    )  # fmt: skip


PIPELINE_BUILDERS: dict[str, Callable[[], Any]] = {
    kind.__name__: kind
    for kind in (sd, sd_lcm, latent_consistency, sdxl, lcm, sd3, flux, schnell, zimage, sana, pixart, lumina2)
}


def build_scheduler(class_name: str, **fields: Any) -> Any:
    """Build a scheduler whose tables are real values, even if a network is built on the meta device."""
    with torch.device("cpu"):
        return getattr(diffusers, class_name)(**fields)


def build_flow_scheduler(**fields: Any) -> Any:
    return build_scheduler("FlowMatchEulerDiscreteScheduler", **fields)


def _make_clip_config(max_tokens: int = 77) -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
        max_position_embeddings=max_tokens, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=32,
    )  # fmt: skip


def _build_t5(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=32, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        is_encoder_decoder=False, use_cache=False, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def _build_gemma() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=40, num_hidden_layers=2, max_position_embeddings=4096, pad_token_id=0, eos_token_id=1,
        bos_token_id=2, **DECODER_CONFIG,
    )  # fmt: skip
    return transformers.Gemma2Model(config)


def _build_autoencoder(latent_channels: int, widths: tuple[int, ...], **fields: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths), latent_channels=latent_channels, norm_num_groups=8, sample_size=32,
        **fields,
    )  # fmt: skip


def _build_shifted_autoencoder(
    latent_channels: int, scaling_factor: float, shift_factor: float, widths: tuple[int, ...] = (16, 32, 32)
) -> Any:
    """Build an autoencoder without quant convolutions, with latents that are not centred."""
    fields = {
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return _build_autoencoder(latent_channels, widths, **fields)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in PIPELINE_BUILDERS:
        sys.exit(f"usage: python -m engine.bench.small_models {{{','.join(PIPELINE_BUILDERS)}}} FOLDER")
    save_small_pipeline(sys.argv[1], Path(sys.argv[2]))
