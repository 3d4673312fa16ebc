"""Another autoencoder for single recipes: the oracle is the unmodified pipeline with that autoencoder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.fixtures.reference_pipeline import call_pipeline as by_pipeline
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from benchmarks.report.measures import psnr
from engine.batching.engine import Engine
from engine.batching.input_pictures import load_init_latents
from engine.calibration.calibration import Calibration
from engine.contract import ImageToImage, InitImage, JobRejected, ModelPart
from engine.models import load_folder
from engine.models.autoencoder import autoencoder_files
from engine.models.family import with_autoencoder
from engine.output.decode_worker import DecodeWorker
from engine.worker.local_run import run_locally
from shared.small_families import write_decoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})
SIDES = {"sd": 32, "sdxl": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp("small") / kind for kind in SIDES}
    for kind, folder in made.items():
        save_small_pipeline(kind, folder)
    return made


@pytest.fixture
def load(folders: dict[str, Path], tmp_path: Path) -> Make:
    """Loads a family of a kind, with `tmp_path` as its worker's data folder."""

    def family(kind: str) -> Any:
        model: Any = load_folder(str(folders[kind]), kind)
        model.use_data_folder(tmp_path)
        return model

    return family


def build_autoencoder(family: Any, seed: int = 5, **fields: Any) -> Any:
    """Builds another autoencoder of the family's configuration."""
    torch.manual_seed(seed)
    return type(family._vae).from_config({**family._vae.config, **fields}).eval()


def to_original_layout(network: Any) -> dict[str, torch.Tensor]:
    """Returns the weights under the names of the original program (CompVis), as sites offer them."""
    levels = len(network.config.block_out_channels)
    renames = (
        (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
    )
    up = re.compile(r"\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.")
    tensors: dict[str, torch.Tensor] = {}
    for key, value in network.state_dict().items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        key = up.sub(
            lambda match: f".up.{levels - 1 - int(match[1])}." + (f"block.{match[2]}." if match[2] else "upsample."),
            key,
        )
        tensors[key] = value[..., None, None] if ".attn_1." in key and value.dim() == 2 else value
    return {f"first_stage_model.{key}": value.contiguous() for key, value in tensors.items()}


def build_recipe(make: Make, kind: str, **fields: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": kind,
        "sampler": {"sd": "ddim", "sdxl": "euler"}[kind],
        "steps": 2,
        "guidance": 3.0,
        "width": SIDES[kind],
        "height": SIDES[kind],
    }
    return make("a cat", **(defaults | fields))


def draw(family: Any, recipe: Any, job: Make, blobs: Any = None) -> Image.Image:
    (png,) = run_locally(job(recipe), {family.name: family}, blobs or {}).pictures
    return Image.open(BytesIO(png)).convert("RGB")


@pytest.mark.sampled
@pytest.mark.parametrize("kind", SIDES)
def test_pictures_equal_those_of_a_pipeline_with_that_autoencoder(
    load: Make, folders: dict[str, Path], tmp_path: Path, recipe: Make, job: Make, kind: str
) -> None:
    family = load(kind)
    other = build_autoencoder(load(kind))
    other.save_pretrained(tmp_path / "vaes" / "fine", safe_serialization=True)
    assert [part.name for part in family.list_autoencoders()] == ["fine"]
    pipeline: Any = import_module("diffusers").DiffusionPipeline.from_pretrained(folders[kind])
    pipeline.set_progress_bar_config(disable=True)
    plain_recipe, one = (build_recipe(recipe, kind, autoencoder=each) for each in (None, ModelPart("fine")))
    plain = draw(family, plain_recipe, job)
    pipeline.vae = other
    (expected,) = by_pipeline(pipeline, family, plain_recipe, "pil")
    actual = draw(family, one, job)
    assert psnr(actual, expected) >= 60
    assert psnr(actual, plain) < 40
    assert draw(family, plain_recipe, job).tobytes() == plain.tobytes()


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_single_file_is_read_with_the_models_configuration(
    load: Make, tmp_path: Path, recipe: Make, job: Make, layout: str
) -> None:
    family = load("sd")
    other = build_autoencoder(load("sd"))
    (tmp_path / "vaes").mkdir()
    tensors = to_original_layout(other) if layout == "original" else other.state_dict()
    save_file(tensors, tmp_path / "vaes" / "one.safetensors")
    (part,) = family.list_autoencoders()
    latents = torch.randn(4, 16, 16, generator=torch.manual_seed(0))
    with torch.inference_mode():
        pixels = other.decode(latents[None] / other.config.scaling_factor, return_dict=False)[0]
    expected = family.pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
    assert psnr(family.with_autoencoder(part).decode(latents), expected) >= 60


def test_init_images_are_encoded_with_it_and_the_latents_are_another_picture(
    load: Make, tmp_path: Path, recipe: Make, job: Make
) -> None:
    family = load("sd")
    other = build_autoencoder(load("sd"))
    other.save_pretrained(tmp_path / "vaes" / "fine", safe_serialization=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    start = ImageToImage((InitImage("a" * 64),), 0.5)
    one = build_recipe(recipe, "sd", start=start, autoencoder=ModelPart("fine"))
    decode_worker = DecodeWorker({"sd": family})
    init_latents = decode_worker.encode_init_images(job(one), {"a" * 64: buffer.getvalue()}).result()
    decode_worker.close()
    pixels = family.pipeline.image_processor.preprocess(picture)
    with torch.inference_mode():
        expected = other.encode(pixels).latent_dist.mean[0] * other.config.scaling_factor
    assert init_latents is not None
    torch.testing.assert_close(init_latents.latents, expected, rtol=1e-4, atol=1e-4)
    own = load_init_latents(build_recipe(recipe, "sd", start=start), {"a" * 64: buffer.getvalue()}, family)
    assert own is not None
    assert float((own.latents - expected).abs().max()) > 1e-2


def test_it_is_loaded_once_and_counted_in_memory(load: Make, tmp_path: Path, recipe: Make) -> None:
    family = load("sd")
    for number, name in enumerate(("one", "two", "three")):
        build_autoencoder(family, number).save_pretrained(tmp_path / "vaes" / name, safe_serialization=True)
    one, three, two = family.list_autoencoders()
    size = sum(each.nbytes for each in family._vae.parameters())
    assert family.count_autoencoder_bytes(one) == size
    network = family.with_autoencoder(one)._vae
    assert family.with_autoencoder(ModelPart("one"))._vae is network
    assert family.count_autoencoder_bytes(one) == size
    assert family.count_autoencoder_bytes(two) == 2 * size
    assert family.count_autoencoder_bytes(None) == size
    assert family.count_autoencoder_bytes(None, with_kept=False) == 0
    assert family.count_autoencoder_bytes(two, with_kept=False) == size
    family.release_other_autoencoders(one)
    assert family.with_autoencoder(one)._vae is network
    family.release_other_autoencoders(two)
    assert family.count_autoencoder_bytes(None) == 0
    network = family.with_autoencoder(one)._vae
    family.with_autoencoder(two)
    assert family.count_autoencoder_bytes(three) == 2 * size
    family.with_autoencoder(three)  # two are kept: the first is dropped
    assert family.with_autoencoder(one)._vae is not network
    assert family._vae is not family.with_autoencoder(one)._vae


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"latent_channels": 16}, "its latents have 16 channels, and those of sd 4"),
        ({"scaling_factor": 0.13025}, "its latents are scaled or shifted otherwise"),
        ({"shift_factor": 0.1}, "its latents are scaled or shifted otherwise"),
        (
            {
                "block_out_channels": (16, 32, 32),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
            },
            "its latents have another size than those of sd",
        ),
    ],
)
def test_another_latent_space_is_refused(
    load: Make, tmp_path: Path, recipe: Make, job: Make, fields: dict[str, Any], reason: str
) -> None:
    family = load("sd")
    build_autoencoder(family, **fields).save_pretrained(tmp_path / "vaes" / "other", safe_serialization=True)
    assert family.list_autoencoders() == ()
    with pytest.raises(JobRejected, match=f"The autoencoder other does not fit sd: {re.escape(reason)}"):
        Engine({"sd": family}).add(job(build_recipe(recipe, "sd", autoencoder=ModelPart("other"))))


def test_spoilt_and_foreign_files_are_refused_with_a_sentence(
    load: Make, tmp_path: Path, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load("sd")
    folder = tmp_path / "vaes"
    other = build_autoencoder(family)
    for name in ("large", "cut", "huge", "nan"):
        other.save_pretrained(folder / name, safe_serialization=True)
    (folder / "cut" / "config.json").write_text("{")
    (folder / "huge" / "config.json").write_text('{"block_out_channels": [9000, 9000]}')
    weights = {**other.state_dict(), "decoder.conv_out.bias": torch.full((3,), torch.nan)}
    save_file(weights, folder / "nan" / "diffusion_pytorch_model.safetensors")
    save_file({"lora_A": torch.zeros(2)}, folder / "none.safetensors")
    (folder / "spoilt.safetensors").write_bytes(b"rubbish")
    torch.save({}, folder / "old.ckpt")
    save_file({**other.state_dict(), "encoder.more": torch.zeros(3)}, folder / "other.safetensors")
    (folder / "out").symlink_to(tmp_path)
    assert [part.name for part in CALIBRATION.to_model_profile(family).autoencoders] == ["large", "nan"]
    for name, sentence in {
        "absent": "This worker has no autoencoder called absent.",
        "old": "The autoencoder old exists only as a pickle",
        "spoilt": "The autoencoder spoilt cannot be read as safetensors.",
        "none": "The autoencoder none is no autoencoder of at most a billion parameters.",
        "cut": "The autoencoder cut has no config.json that can be read.",
        "huge": "The autoencoder huge has no config.json that can be read.",
        "nan": "The autoencoder nan cannot be loaded: its weights are damaged, or of another kind.",
        "other": "The autoencoder other does not fit sd: it is built otherwise than the model's own",
        "out": "This worker has no autoencoder called out.",
    }.items():
        with pytest.raises(JobRejected) as rejection:
            Engine({"sd": family}).add(job(build_recipe(recipe, "sd", autoencoder=ModelPart(name))))
        assert rejection.value.sentence.startswith(sentence)
    with pytest.raises(JobRejected, match="another version of the autoencoder large"):
        with_autoencoder(family, build_recipe(recipe, "sd", autoencoder=ModelPart("large", "old")))
    monkeypatch.setattr(autoencoder_files, "MAX_PARAMETERS", 10)
    with pytest.raises(JobRejected, match="at most a billion parameters"):
        family.with_autoencoder(ModelPart("large"))


def test_a_model_of_another_kind_of_autoencoder_takes_none(tmp_path: Path, recipe: Make) -> None:
    save_small_pipeline("sana", tmp_path / "sana")
    family: Any = load_folder(str(tmp_path / "sana"), "sana")
    family.use_data_folder(tmp_path)
    assert family.list_autoencoders() == ()


def test_a_model_with_a_large_decoder_draws_with_another_autoencoder_at_the_recipes_size(
    folders: dict[str, Path], tmp_path: Path, recipe: Make, job: Make
) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    write_decoder(folder)
    family: Any = load_folder(str(folder), "sd")
    family.use_data_folder(tmp_path)
    family._vae.save_pretrained(tmp_path / "vaes" / "own", safe_serialization=True)
    assert draw(family, build_recipe(recipe, "sd"), job).size == (128, 128)
    assert draw(family, build_recipe(recipe, "sd", autoencoder=ModelPart("own")), job).size == (32, 32)
    assert family.upscale_factor == 4


def test_a_chosen_autoencoder_becomes_the_models_own(load: Make, tmp_path: Path, recipe: Make, job: Make) -> None:
    """It decodes every recipe and is part of the revision. A model that it does not fit keeps its own."""
    family = load("sd")
    build_autoencoder(family).save_pretrained(tmp_path / "vaes" / "fine", safe_serialization=True)
    one = build_recipe(recipe, "sd", autoencoder=ModelPart("fine"))
    expected = draw(family, one, job)
    own = draw(family, build_recipe(recipe, "sd"), job)
    revision = family.revision
    family.use_autoencoder("fine")
    assert family.revision != revision
    assert family.pipeline.vae is family._vae
    assert draw(family, build_recipe(recipe, "sd"), job).tobytes() == expected.tobytes() != own.tobytes()
    with pytest.raises(JobRejected, match="The autoencoder fine does not fit sdxl"):
        load("sdxl").use_autoencoder("fine")


def test_control_images_of_transformers_are_encoded_with_it(tmp_path: Path) -> None:
    save_small_pipeline("flux", tmp_path / "flux")
    family: Any = load_folder(str(tmp_path / "flux"), "flux")
    family.use_data_folder(tmp_path)
    other = build_autoencoder(family)
    other.save_pretrained(tmp_path / "vaes" / "fine", safe_serialization=True)
    view = family.with_autoencoder(ModelPart("fine"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert torch.equal(view.conditioners[0]._encode_image(picture), view.encode_image(picture))
    assert torch.equal(family.conditioners[0]._encode_image(picture), family.encode_image(picture))
    assert not torch.equal(view.encode_image(picture), family.encode_image(picture))
    assert view.pipeline.vae is view._vae
    assert family.pipeline.vae is family._vae
