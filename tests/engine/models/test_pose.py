"""The pose preprocessor with small networks of random weights, through the loader of a worker's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.contract import JobRejected
from engine.models.preprocessors import Preprocessors
from engine.models.vision_networks import MAX_PEOPLE, Joints, PersonDetector, draw_skeletons, order_joints
from shared.init_image_jobs import draw_scene

transformers: Any = import_module("transformers")
CPU = torch.device("cpu")
PICTURE = draw_scene((192, 160))
WHOLE = [0.0, 0.0, 192.0, 160.0]
PERSON_LABELS = {0: "cat", 1: "person"}


def save_pose_estimator(
    folder: Path, *, scale: float = 3.0, experts: int = 1, labels: int = 17, sides: Any = (64, 48)
) -> None:
    """Save a small ViTPose; `scale`: how certain it is of what it sees."""
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=sides,
        patch_size=(16, 16),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_experts=experts,
        part_features=4 if experts > 1 else 256,
        out_indices=[2],
    )
    model = transformers.VitPoseForPoseEstimation(
        transformers.VitPoseConfig(backbone_config=backbone, num_labels=labels)
    )
    torch.nn.init.normal_(model.head.conv.weight, std=scale)
    model.save_pretrained(folder)
    transformers.VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)


def save_detector(folder: Path, label: int, names: dict[int, str] = PERSON_LABELS) -> None:
    """Save a small RT-DETR that takes everything for what this label says."""
    torch.manual_seed(0)
    resnet = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    config = transformers.RTDetrConfig(
        backbone_config=resnet,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 8, 8],
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=24,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        id2label=names,
    )
    model = transformers.RTDetrForObjectDetection(config)
    for head in (model.model.enc_score_head, *model.model.decoder.class_embed):
        torch.nn.init.constant_(head.bias, -8.0)
        head.bias.data[label] = 3.0
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preprocessors")
    save_pose_estimator(path / "pose")
    return path


def draw_expected(folder: Path, boxes: list[list[float]], **arguments: Any) -> Image.Image:
    """Draw what transformers itself finds in these boxes of the picture."""
    model = transformers.VitPoseForPoseEstimation.from_pretrained(folder / "pose").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "pose")
    with torch.inference_mode():
        outputs = model(**processor(PICTURE, boxes=[boxes], return_tensors="pt"), **arguments)
    people: list[Joints] = []
    for pose in processor.post_process_pose_estimation(outputs, boxes=[boxes])[0]:
        scored = zip(pose["keypoints"].tolist(), pose["scores"].tolist(), strict=True)
        people.append(order_joints([(x, y) if score > 0.3 else None for (x, y), score in scored]))
    return draw_skeletons(people, PICTURE.size)


def is_same(image: Image.Image, expected: Image.Image) -> bool:
    """Whether the pictures are equal, and not black."""
    return image.getbbox() is not None and np.array_equal(np.asarray(image), np.asarray(expected))


def test_the_whole_picture_is_a_person_where_there_is_no_detector(folder: Path) -> None:
    preprocessors = Preprocessors(CPU, folder)
    assert preprocessors.list_available() == ("none", "canny", "pose")
    image = preprocessors.run("pose", PICTURE)
    assert (image.mode, image.size) == ("RGB", PICTURE.size)
    assert is_same(image, draw_expected(folder, [WHOLE]))


def test_its_memory_is_predicted_from_headers(folder: Path, tmp_path: Path) -> None:
    preprocessors = Preprocessors(CPU, folder)
    alone = sum(preprocessors.list_bytes(["pose"]).values())
    preprocessors.run("pose", PICTURE)
    assert sum(preprocessors.list_bytes([]).values()) == alone
    save_pose_estimator(tmp_path / "pose")
    save_detector(tmp_path / "pose" / "detector", 1)
    with_detector = Preprocessors(CPU, tmp_path)
    predicted = sum(with_detector.list_bytes(["pose"]).values())
    assert predicted > alone
    with_detector.run("pose", PICTURE)
    assert abs(sum(with_detector.list_bytes([]).values()) / predicted - 1) < 0.02


def test_experts_of_several_data_sets_answer_with_cocos(tmp_path: Path) -> None:
    save_pose_estimator(tmp_path / "pose", experts=3)
    image = Preprocessors(CPU, tmp_path).run("pose", PICTURE)
    assert is_same(image, draw_expected(tmp_path, [WHOLE], dataset_index=torch.zeros(1, dtype=torch.long)))


def test_each_person_that_a_detector_finds_has_a_skeleton(tmp_path: Path) -> None:
    save_pose_estimator(tmp_path / "pose")
    save_detector(tmp_path / "pose" / "detector", 1)
    boxes = PersonDetector.load(tmp_path / "pose" / "detector", CPU).find_people(PICTURE)
    assert len(boxes) == MAX_PEOPLE < 24
    for left, top, width, height in boxes:
        assert 0 <= left < left + width <= 192
        assert 0 <= top < top + height <= 160
    image = Preprocessors(CPU, tmp_path).run("pose", PICTURE)
    assert is_same(image, draw_expected(tmp_path, boxes))


def test_a_picture_without_people_is_refused(tmp_path: Path) -> None:
    save_pose_estimator(tmp_path / "pose")
    save_detector(tmp_path / "pose" / "detector", 0)  # it sees cats
    with pytest.raises(JobRejected, match="nobody in the control picture") as refusal:
        Preprocessors(CPU, tmp_path).run("pose", PICTURE)
    assert refusal.value.blame == "member"


def test_a_picture_without_joints_is_refused(tmp_path: Path) -> None:
    save_pose_estimator(tmp_path / "pose", scale=0.0)
    with pytest.raises(JobRejected, match="nobody in the control picture"):
        Preprocessors(CPU, tmp_path).run("pose", PICTURE)


def rename_labels(folder: Path) -> None:
    save_detector(folder / "detector", 0, {0: "cat", 1: "dog"})


def change_kind(folder: Path) -> None:
    (folder / "detector").mkdir()
    (folder / "detector" / "config.json").write_text(json.dumps({"model_type": "detr", "backbone": "some/hub-name"}))


def name_other_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"backbone_config": {"backbone": "some/hub-name"}}))


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def name_the_shortest_side(folder: Path) -> None:
    change_json(folder / "preprocessor_config.json", size={"shortest_edge": 64})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rename_labels, "person detector of this worker has no label that is called person"),
        (change_kind, "person detector of this worker is none of these kinds: rt_detr, rt_detr_v2, d_fine"),
        (name_other_weights, "pose estimator of this worker names weights or code besides its own"),
        (lambda folder: save_pose_estimator(folder, labels=5), "does not find COCO's 17 joints"),
        (
            lambda folder: transformers.VitPoseImageProcessor().save_pretrained(folder),
            "has an image processor that does not fit",
        ),
        (lambda folder: save_pose_estimator(folder, sides=64), "has an image processor that does not fit"),
        (name_the_shortest_side, "has an image processor that does not fit"),
    ],
)
def test_a_foreign_network_is_refused(tmp_path: Path, change: Callable[[Path], object], reason: str) -> None:
    save_pose_estimator(tmp_path / "pose")
    change(tmp_path / "pose")
    with pytest.raises(JobRejected, match=reason):
        Preprocessors(CPU, tmp_path).run("pose", PICTURE)
