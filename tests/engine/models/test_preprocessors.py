"""Preprocessors: canny against OpenCV's edges, depth against transformers' pipeline, and what a worker lacks."""

from __future__ import annotations

import hashlib
import json
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from engine.contract import JobRejected
from engine.models.preprocessors import Preprocessors, draw_canny_edges
from engine.models.vision_networks import LineDrawer
from shared.init_image_jobs import draw_scene

transformers: Any = import_module("transformers")
CPU = torch.device("cpu")


def draw_noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


# By OpenCV 5.0.0: cv2.Canny(pixels, 100, 200), as packed bits.
EDGES_BY_PICTURE = {
    "scene": (draw_scene((200, 150)), "a2a6708485d4055d"),
    "noise": (draw_noise(), "831207e6e78a2b12"),
    "soft": (draw_noise().filter(ImageFilter.BoxBlur(1)), "70fe55bc224937aa"),
}


@pytest.mark.parametrize("name", EDGES_BY_PICTURE)
def test_canny_edges_are_opencvs(name: str) -> None:
    picture, expected = EDGES_BY_PICTURE[name]
    edges = draw_canny_edges(picture)
    assert (edges.mode, edges.size) == ("RGB", picture.size)
    bits = np.packbits(np.asarray(edges)[..., 0] > 0).tobytes()
    assert hashlib.sha256(bits).hexdigest().startswith(expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_a_tiny_picture_has_edges_too(size: tuple[int, int]) -> None:
    assert draw_canny_edges(Image.new("RGB", size, "white")).getextrema() == ((0, 0),) * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preprocessors with a small depth estimator of random weights."""
    path = tmp_path_factory.mktemp("preprocessors")
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[8, 8],
        reassemble_factors=[2, 1],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    model = transformers.DepthAnythingForDepthEstimation(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path / "depth")
    processor = transformers.DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14)
    processor.save_pretrained(path / "depth")
    return path


def test_depth_equals_transformers_pipeline(folder: Path) -> None:
    picture = draw_scene((96, 64))
    depth = Preprocessors(CPU, folder).run("depth", picture)
    oracle = transformers.pipeline(
        "depth-estimation",
        model=transformers.AutoModelForDepthEstimation.from_pretrained(folder / "depth"),
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder / "depth"),
    )
    expected = np.asarray(oracle(picture)["depth"].convert("L"), dtype=np.int16)
    assert (depth.mode, depth.size) == ("RGB", picture.size)
    actual = np.asarray(depth, dtype=np.int16)[..., 0]
    assert np.abs(actual - expected).max() <= 1, "the pipeline cuts its levels off, where we round them"
    assert np.ptp(actual) == 255


def test_models_share_a_network_which_counts_and_goes_with_the_last(folder: Path) -> None:
    one = Preprocessors(CPU, folder)
    other = Preprocessors(CPU, folder)
    predicted = one.list_bytes(["depth", "canny", "none", "depth"])
    assert list(predicted) == [f"{folder}/depth cpu"]
    assert one.list_bytes([]) == {}
    one.run("depth", draw_scene())
    other.run("depth", draw_scene())
    drawer = one._drawers["depth"]
    assert other._drawers["depth"] is drawer
    assert one.list_bytes([]) == one.list_bytes(["depth"], with_kept=False) == other.list_bytes([]) == predicted
    assert list(predicted.values()) == [drawer.nbytes]
    assert one.list_bytes([], with_kept=False) == {}
    one.release_others(["depth"])
    assert one._drawers
    alive = weakref.ref(drawer)
    del drawer
    one.release()
    assert alive() is not None
    other.release_others(["canny"])
    assert alive() is None


def test_a_worker_lists_only_what_it_can_run(folder: Path, tmp_path: Path) -> None:
    assert Preprocessors(CPU).list_available() == ("none", "canny")
    assert Preprocessors(CPU, tmp_path).list_available() == ("none", "canny")
    assert Preprocessors(CPU, folder).list_available() == ("none", "canny", "depth")
    with pytest.raises(JobRejected, match="cannot make pose control images of pictures: give it the finished pose"):
        Preprocessors(CPU, folder).run("pose", draw_scene())


def test_lines_are_white_where_the_network_draws(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = LineDrawer()
    (tmp_path / "lineart").mkdir()
    save_file(network.state_dict(), tmp_path / "lineart" / "model.safetensors")
    preprocessors = Preprocessors(CPU, tmp_path)
    assert preprocessors.list_available() == ("none", "canny", "lineart")
    picture = draw_scene((50, 37))
    drawn = preprocessors.run("lineart", picture)
    assert (drawn.mode, drawn.size) == ("RGB", picture.size)
    pixels = torch.from_numpy(np.asarray(draw_scene((52, 40)), dtype=np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        whole = network.eval()(pixels)
    assert whole.shape == (1, 1, 40, 52)
    assert 0 < float(whole.min()) < float(whole.max()) < 1
    even = draw_scene((52, 40))
    expected = (255 * (1 - whole[0, 0])).round().numpy().astype(np.uint8)
    assert np.array_equal(np.asarray(preprocessors.run("lineart", even))[..., 0], expected)


def test_foreign_weights_of_the_line_drawer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lineart").mkdir()
    (tmp_path / "lineart" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(JobRejected, match="weights of this worker's lineart preprocessor cannot be read"):
        Preprocessors(CPU, tmp_path).list_bytes(["lineart"])
    save_file({"other": torch.zeros(1)}, tmp_path / "lineart" / "model.safetensors")
    with pytest.raises(JobRejected, match=r"has no model\.safetensors that fits"):
        Preprocessors(CPU, tmp_path).run("lineart", draw_scene())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "no config.json that can be read"),
        ("[]", "no config.json that can be read"),
        (json.dumps({"model_type": "dpt", "backbone": "some/hub-name"}), "names weights or code besides its own"),
        (json.dumps({"model_type": "dpt", "auto_map": {"AutoModel": "code.py"}}), "names weights or code"),
        (json.dumps({"model_type": "dpt"}), "no weights in safetensors"),
    ],
)
def test_a_foreign_depth_estimator_is_refused(tmp_path: Path, config: str, reason: str) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "config.json").write_text(config)
    with pytest.raises(JobRejected, match=reason):
        Preprocessors(CPU, tmp_path).run("depth", draw_scene())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "config.json").write_text(json.dumps({"model_type": "depth_anything"}))
    (tmp_path / "depth" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(JobRejected, match="none that transformers can open"):
        Preprocessors(CPU, tmp_path).run("depth", draw_scene())
