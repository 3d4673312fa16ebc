"""The published configurations of Stable Diffusion 1.5 and SDXL base, and Flux cut to three blocks of full width.

Each is built on torch's current device; on the meta device it takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tokenizers import pre_tokenizers

from benchmarks.fixtures import small_pipelines
from benchmarks.fixtures.small_parts import build_t5, build_t5_tokenizer
from benchmarks.fixtures.small_pipelines import build_flow_scheduler, build_scheduler

diffusers: Any = import_module("diffusers")  # their lazy modules export nothing that a type checker sees
transformers: Any = import_module("transformers")

NOISE_SCHEDULE = small_pipelines.NOISE_SCHEDULE
# of CLIP's vocabulary; CLIP pools at the token with the largest id
CLIP_VOCABULARY_SIZE = 49408
CLIP_START_ID = 49406
CLIP_END_ID = 49407
T5_VOCABULARY_SIZE = 32128
REDUCED_FLUX_NOTE = "Flux cut to one double and two single blocks, and T5 to two layers, all of full width"
SMALLER_SIZE_NOTE = "512² instead of 1024², so that it fits into the time"


@dataclass(frozen=True)
class BenchmarkModel:
    """A model to measure, and the job that both sides run. `sampler` None means the model's own sampler.

    `user_counts` are the numbers of simultaneous users besides one.
    """

    name: str
    build_pipeline: Callable[[], Any]
    side: int
    steps: int
    guidance: float
    sampler: str | None = None
    user_counts: tuple[int, ...] = (2, 4)
    note: str = ""
    takes_controls: bool = True


def list_real_models(on_gpu: bool) -> tuple[BenchmarkModel, ...]:
    """Return all models; on a processor with fewer steps and pixels, to fit into 40 minutes on two cores."""
    sdxl_side, sdxl_note = (1024, "") if on_gpu else (512, SMALLER_SIZE_NOTE)
    steps, user_counts = (6, (2, 4)) if on_gpu else (2, (2,))
    return (
        BenchmarkModel("sd15", build_sd15, 512, 6, 7.5, "dpmpp_2m"),
        BenchmarkModel("sdxl", lambda: build_sdxl(sdxl_side), sdxl_side, steps, 7.5, "dpmpp_2m", note=sdxl_note),
        BenchmarkModel(
            "flux", build_flux, 1024, steps, 3.5, user_counts=user_counts, note=REDUCED_FLUX_NOTE, takes_controls=False
        ),
    )


def list_tiny_models() -> tuple[BenchmarkModel, ...]:
    """Return the same families with tiny widths, for a short run of every row."""
    return (
        BenchmarkModel("sd15", small_pipelines.sd, 32, 4, 7.5, "dpmpp_2m"),
        BenchmarkModel("sdxl", small_pipelines.sdxl, 64, 4, 7.5, "dpmpp_2m"),
        BenchmarkModel("flux", small_pipelines.flux, 256, 4, 3.5, takes_controls=False),
    )


def build_sd15() -> Any:
    """Build SD 1.5; its network has 860 million parameters."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )
    solver = build_scheduler(
        "PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **NOISE_SCHEDULE
    )
    return diffusers.StableDiffusionPipeline(
        vae=_build_autoencoder(4, 512, scaling_factor=0.18215),
        unet=unet,
        scheduler=solver,
        text_encoder=transformers.CLIPTextModel(_make_clip_config(768, 12)),
        tokenizer=build_clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sdxl(image_side: int = 1024) -> Any:
    """Build SDXL; its network has 2.6 billion parameters. `image_side` is its native size in pixels."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=image_side // 8,
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    larger_clip_config = _make_clip_config(1280, 20, hidden_act="gelu", projection_dim=1280)
    return diffusers.StableDiffusionXLPipeline(
        vae=_build_autoencoder(4, 1024, scaling_factor=0.13025, force_upcast=True),
        unet=unet,
        text_encoder=transformers.CLIPTextModel(_make_clip_config(768, 12)),
        tokenizer=build_clip_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(larger_clip_config),
        tokenizer_2=build_clip_tokenizer(),
        scheduler=build_scheduler(
            "EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading", **NOISE_SCHEDULE
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def build_flux() -> Any:
    """Build a Flux with 0.8 instead of 12 billion parameters; each of its blocks is Flux.1-dev's."""
    transformer = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=2, guidance_embeds=True)
    vae = _build_autoencoder(
        16, 1024, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )
    solver = build_flow_scheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    return diffusers.FluxPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=solver,
        text_encoder=transformers.CLIPTextModel(_make_clip_config(768, 12)),
        tokenizer=build_clip_tokenizer(),
        text_encoder_2=build_t5(4096, vocab_size=T5_VOCABULARY_SIZE, d_kv=64, d_ff=10240, num_heads=64),
        tokenizer_2=build_t5_tokenizer(),
    )


def _make_clip_config(width: int, layers: int, **fields: Any) -> Any:
    """Return a CLIP text configuration: heads of 64, feed-forward four times the width."""
    return transformers.CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY_SIZE,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **fields,
    )


def build_clip_tokenizer() -> Any:
    """Build a tokenizer with one token a byte, in a vocabulary of CLIP's size."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    token_texts = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {token: token_id for token_id, token in enumerate(token_texts)}
    vocabulary |= {"<|startoftext|>": CLIP_START_ID, "<|endoftext|>": CLIP_END_ID}
    return transformers.CLIPTokenizer(vocabulary, [], model_max_length=77)


def _build_autoencoder(latent_channels: int, sample_size: int, **fields: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        sample_size=sample_size,
        **fields,
    )
