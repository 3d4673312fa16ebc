"""Small models of every family beside their unmodified pipelines: recipes, runs, differences, and files of parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from benchmarks.fixtures.small_pipelines import USUAL_SAMPLERS
from engine.batching.engine import Engine
from engine.contract import Recipe
from engine.models.autoencoder.large_decoder import LargeDecoder
from engine.models.family import Family

Make = Callable[..., Any]


def build_recipe(make: Make, family: Any, text: str = "a cat", **fields: Any) -> Recipe:
    """A short recipe that fits the family, by the fixture `recipe`."""
    side = min(64, family.size)
    defaults: dict[str, Any] = {
        "model": family.name,
        "sampler": USUAL_SAMPLERS.get(family.name, "ddim" if family.name == "sd" else "euler"),
        "steps": 3,
        "guidance": 3.0,
        "width": side,
        "height": side,
        "guidance_kind": family.guides,
        "quantization": family.quantization,
    }
    return make(text, **(defaults | fields))


def by_engine(family: Family, recipe: Recipe, job: Make, finish: Make) -> list[torch.Tensor]:
    engine = Engine({family.name: family})
    each = job(recipe)
    engine.add(each)
    latents = finish(engine)
    return [latents[each.id, image] for image in range(recipe.count)]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference; above 1 relative to the largest latent."""
    return float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def write_turbo(model_folder: Path, pipeline: Any, seed: int = 1) -> None:
    """Writes a random LoRA for the pipeline's network as the model's own."""
    network = pipeline.unet
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"]))
    matrices = get_peft_model_state_dict(network)
    generator = torch.Generator().manual_seed(seed)
    matrices = {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in matrices.items()}
    type(pipeline).save_lora_weights(str(model_folder / "turbo"), unet_lora_layers=matrices)
    network.delete_adapters("default")


def write_decoder(model_folder: Path, seed: int = 3, **fields: Any) -> None:
    config: dict[str, Any] = json.loads((model_folder / "vae" / "config.json").read_text())
    groups = int(config["norm_num_groups"])
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "latent_channels": config["latent_channels"],
        "norm_num_groups": groups,
        "use_post_quant_conv": True,
        "block_out_channels": [groups, groups, *config["block_out_channels"]],
        "scaling_factor": config.get("scaling_factor", 0.18215),
    }
    LargeDecoder(**(defaults | fields)).half().save_pretrained(model_folder / "decoder")


ATTENTION = (".to_q", ".to_k", ".to_v")


CLIP = (".q_proj", ".v_proj")


def random_matrices(module: Any, endings: tuple[str, ...], seed: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """Random matrices for the layers with these name endings, under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(endings):
            matrices[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator) * 0.3
            matrices[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) * 0.3
    assert matrices
    return matrices


def write_family_lora(path: Path, family: Any, seed: int, *, network: bool = True, texts: tuple[str, ...] = ()) -> Path:
    """Writes a LoRA for parts of a family in diffusers' format."""
    tensors: dict[str, torch.Tensor] = {}
    if network:
        matrices = random_matrices(family.get_network("float32"), ATTENTION, seed)
        tensors |= {f"{family.network_name}.{name}": value for name, value in matrices.items()}
    for number, part in enumerate(texts):
        matrices = random_matrices(getattr(family.pipeline, part), CLIP, seed + 100 * (number + 1))
        tensors |= {f"{part}.{name}": value for name, value in matrices.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
