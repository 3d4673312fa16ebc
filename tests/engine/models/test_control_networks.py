"""Control networks in a folder: which fit a model, which are refused, and single files in both layouts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.loaders import single_file_utils
from diffusers.models.adapter import T2IAdapter
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file

from benchmarks.fixtures.small_controls import build_adapter, build_controlnet, save_control
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.contract import ControlImage, ControlModel, JobRejected
from engine.models.control_networks import CONTROL_KIND, MAX_KEPT, ControlCollection, TargetNetwork

CPU = torch.device("cpu")
SHA = "a" * 64
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
Collect = Callable[..., ControlCollection]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("sd", "sdxl"):
        save_small_pipeline(kind, folder / kind)
    return {kind: DiffusionPipeline.from_pretrained(folder / kind) for kind in ("sd", "sdxl")}


@pytest.fixture
def collect(pipelines: dict[str, Any], tmp_path: Path) -> Collect:
    """The control networks in `tmp_path` for a pipeline."""

    def make(kind: str = "sd") -> ControlCollection:
        pipeline = pipelines[kind]
        target = TargetNetwork("UNet2DConditionModel", pipeline.unet.config, 4, pipeline.vae_scale_factor)
        collection = ControlCollection(target, CPU)
        collection.folder = tmp_path
        return collection

    return make


def list_names(collection: ControlCollection) -> list[str]:
    return [each.name for each in collection.list_compatible()]


def test_a_model_lists_the_networks_of_its_kind(pipelines: dict[str, Any], collect: Collect, tmp_path: Path) -> None:
    save_control(build_controlnet(pipelines["sd"]), tmp_path / "sd-canny")
    save_control(build_controlnet(pipelines["sdxl"]), tmp_path / "xl-depth-midas")
    save_control(build_adapter(pipelines["sd"]), tmp_path / "sd-openpose")
    save_control(build_adapter(pipelines["sdxl"], kind="full_adapter_xl"), tmp_path / "xl-sketch")
    (tmp_path / "no network").mkdir()
    revisions = {name: CONTROL_KIND.find(tmp_path, name).revision for name in ("sd-canny", "sd-openpose")}
    assert collect("sd").list_compatible() == (
        ControlModel("sd-canny", revisions["sd-canny"], "canny"),
        ControlModel("sd-openpose", revisions["sd-openpose"], "pose", 0.0),
    )
    assert [(each.name, each.preprocessor) for each in collect("sdxl").list_compatible()] == [
        ("xl-depth-midas", "depth"),
        ("xl-sketch", "none"),
    ]


def test_a_revision_changes_with_the_weights(pipelines: dict[str, Any], collect: Collect, tmp_path: Path) -> None:
    save_control(build_controlnet(pipelines["sd"], 1), tmp_path / "one")
    first = CONTROL_KIND.find(tmp_path, "one").revision
    collect().find(ControlImage("one", SHA, revision=first))
    save_control(build_controlnet(pipelines["sd"], 2), tmp_path / "one")
    assert CONTROL_KIND.find(tmp_path, "one").revision != first
    with pytest.raises(JobRejected, match="another version of the control network one"):
        collect().find(ControlImage("one", SHA, revision=first))


def write_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cross_attention_dim": 48}, "its cross_attention_dim is 48"),
        ({"layers_per_block": 2}, "its blocks are not"),
        ({"layers_per_block": 10**6}, "its layers_per_block is 1000000"),
        ({"conditioning_channels": 1}, "it takes other latents or pictures"),
        ({"conditioning_embedding_out_channels": [8, 8, 16]}, "latents of another size"),
        ({"global_pool_conditions": True}, "pools its conditions"),
        ({"conditioning_embedding_out_channels": [8, 24]}, "has the shape"),
        ({"_class_name": "UNet2DModel"}, "a UNet2DModel is no control network"),
    ],
)
def test_an_unfit_configuration_is_left_out_with_its_reason(
    pipelines: dict[str, Any],
    collect: Collect,
    tmp_path: Path,
    fields: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_control(build_controlnet(pipelines["sd"]), tmp_path / "one")
    write_config(tmp_path / "one", **fields)
    with caplog.at_level(logging.WARNING):
        assert list_names(collect()) == []
    assert reason in caplog.text
    with pytest.raises(JobRejected, match="control network one does not fit this model"):
        collect().find(ControlImage("one", SHA))


def test_missing_weights_are_noticed_before_loading(
    pipelines: dict[str, Any], collect: Collect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_control(build_controlnet(pipelines["sd"]), tmp_path / "one")
    path = tmp_path / "one" / WEIGHTS_FILE
    tensors = load_file(path)
    del tensors["controlnet_mid_block.weight"]
    save_file(tensors, path)
    assert list_names(collect()) == []
    assert "it lacks controlnet_mid_block.weight" in caplog.text


def test_a_light_adapter_fits_where_its_features_do(
    pipelines: dict[str, Any], collect: Collect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A light adapter has one more place than widths, which the four blocks of real models have."""
    save_control(T2IAdapter(3, [16, 32, 64], 1, 8, "light_adapter"), tmp_path / "light")
    save_control(T2IAdapter(3, [16, 32, 64, 64], 1, 8), tmp_path / "full")
    save_control(build_adapter(pipelines["sd"]), tmp_path / "small")
    config = {
        "block_out_channels": (16, 32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    }
    collection = ControlCollection(TargetNetwork("UNet2DConditionModel", config, 4, 8), CPU)
    collection.folder = tmp_path
    assert list_names(collection) == ["full", "light"]
    assert "its features are [(16, 0), (32, 0)]" in caplog.text
    assert list_names(collect()) == ["small"]


def test_pickles_links_and_unreadable_files_are_refused(
    pipelines: dict[str, Any], collect: Collect, tmp_path: Path
) -> None:
    save_control(build_controlnet(pipelines["sd"]), tmp_path / "pickle")
    (tmp_path / "pickle" / WEIGHTS_FILE).rename(tmp_path / "pickle" / "diffusion_pytorch_model.bin")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    save_control(build_controlnet(pipelines["sd"]), outside)
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "empty").mkdir()
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(" " * 100_000)
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    reasons = {
        "pickle": "only as a pickle",
        "link": "leads out of the folder",
        "empty": "no config.json",
        "large": "no config.json",
        "../x": "no control network called",
        "damaged": "does not fit",
        "absent": "no control network called absent",
    }
    for name, reason in reasons.items():
        with pytest.raises(JobRejected, match=reason):
            collect().find(ControlImage(name, SHA))
    assert list_names(collect()) == []


def test_single_files_of_both_layouts_are_the_folders_network(pipelines: dict[str, Any], tmp_path: Path) -> None:
    widths = (16, 32, 96, 256)  # of the original program
    save_control(build_controlnet(pipelines["sd"], 3, widths), tmp_path / "folder")
    weights = load_file(tmp_path / "folder" / WEIGHTS_FILE)
    save_file(weights, tmp_path / "diffusers-layout.safetensors")
    save_file(to_original_layout(weights), tmp_path / "original-layout.safetensors")
    collection = ControlCollection(TargetNetwork("UNet2DConditionModel", pipelines["sd"].unet.config, 4, 8), CPU)
    collection.folder = tmp_path
    assert list_names(collection) == ["diffusers-layout", "folder", "original-layout"]
    networks = [collection.load(collection.find(ControlImage(name, SHA)), "float32") for name in list_names(collection)]
    states = [cast(Any, network).network.state_dict() for network in networks]
    for state in states:
        assert state.keys() == states[1].keys()
        assert all(torch.equal(state[name], states[1][name]) for name in state)


def to_original_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights as the original program names them, by diffusers' own conversion read backwards."""
    candidates = [*(f"time_embed.{n}" for n in (0, 2)), *(f"input_hint_block.{n}" for n in range(0, 15, 2))]
    candidates += [f"zero_convs.{n}.0" for n in range(8)] + ["middle_block_out.0"]
    resnet = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
    block = (
        "norm1",
        "norm2",
        "norm3",
        "ff.net.0.proj",
        "ff.net.2",
        *(f"{attn}.{part}" for attn in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")),
    )
    attention = ("norm", "proj_in", "proj_out", *(f"transformer_blocks.0.{name}" for name in block))
    candidates += [f"middle_block.{n}.{name}" for n in (0, 2) for name in resnet]
    candidates += [f"middle_block.1.{name}" for name in attention]
    for number in range(8):
        names = ("0.op", *(f"0.{name}" for name in resnet), *(f"1.{name}" for name in attention))
        candidates += [f"input_blocks.{number}.{name}" for name in names] + [f"input_blocks.{number}.0"]
    keys = [f"{name}.{kind}" for name in candidates for kind in ("weight", "bias")]
    marked = {key: torch.tensor(number) for number, key in enumerate(keys)}
    converted: dict[str, torch.Tensor] = cast(Any, single_file_utils).convert_controlnet_checkpoint(
        {f"control_model.{key}": value for key, value in marked.items()}, {"layers_per_block": 1}
    )
    originals = {name: keys[int(value)] for name, value in converted.items()}
    return {f"control_model.{originals[name]}": tensor for name, tensor in weights.items()}


def test_only_the_newest_networks_stay_in_memory(pipelines: dict[str, Any], collect: Collect, tmp_path: Path) -> None:
    collection = collect()
    for number in range(MAX_KEPT + 1):
        save_control(build_adapter(pipelines["sd"], number), tmp_path / f"a{number}")
    files = [collection.find(ControlImage(f"a{number}", SHA)) for number in range(MAX_KEPT + 1)]
    first = collection.load(files[0], "float32")
    assert collection.load(files[0], "float32") is first
    for file in files[1:]:
        collection.load(file, "float32")
    assert collection.load(files[0], "float32") is not first


def test_networks_of_other_recipes_are_counted_apart_and_can_go(
    pipelines: dict[str, Any], collect: Collect, tmp_path: Path
) -> None:
    collection = collect()
    for number, name in enumerate(("canny", "depth")):
        save_control(build_controlnet(pipelines["sd"], number), tmp_path / name)
    canny, depth = (collection.find(ControlImage(name, SHA)) for name in ("canny", "depth"))
    network = collection.load(canny, "float32")
    own = collection.count_bytes([depth], "float32", with_kept=False)
    assert own == network.nbytes
    assert collection.count_bytes([depth], "float32") == 2 * own
    collection.release_others([canny], "float32")
    assert collection.load(canny, "float32") is network
    collection.release_others([depth], "float32")
    assert collection.count_bytes([depth], "float32") == own
