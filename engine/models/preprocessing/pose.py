"""Poses by ViTPose (Xu et al. 2022) of transformers, drawn as skeletons.

Without a person detector the whole picture counts as one person. A detector is a folder `detector` beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from engine.contract import JobRejected
from engine.models.preprocessing.vision_networks import CONFIG_FILE, VisionNetwork, load_vision_network, reject_network

DETECTOR_FOLDER = "detector"
MAX_PEOPLE = 16  # in a picture, the most certain ones
MIN_JOINT_SCORE = 0.3  # the peak of a joint's heat map, from 0 to 1
MIN_PERSON_SCORE = 0.3
# Detectors that bring their whole network: others name a backbone on a hub.
_DETECTOR_TYPES = ("rt_detr", "rt_detr_v2", "d_fine")
_NOUN = "pose estimator"
_DETECTOR_NOUN = "person detector"
Box = list[float]  # left, top, width, height in pixels


class PoseEstimator:
    """ViTPose of COCO's 17 joints, and where it is there a detector, float32."""

    def __init__(self, network: VisionNetwork, detector: PersonDetector | None, device: torch.device) -> None:
        self._network = network
        self._detector = detector
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> PoseEstimator:
        """Load a folder with ViTPose and its image processor. Raises `JobRejected`."""
        network = load_vision_network(folder, "VitPoseForPoseEstimation", _NOUN, device, ("vitpose",))
        if getattr(network.model.config, "num_labels", 0) != COCO_JOINTS:
            raise reject_network(_NOUN, f"does not find COCO's {COCO_JOINTS} joints")
        if not _has_fitting_processor(network):
            raise reject_network(_NOUN, "has an image processor that does not fit")
        detector = PersonDetector.load(folder / DETECTOR_FOLDER, device) if has_detector(folder) else None
        return cls(network, detector, device)

    @property
    def nbytes(self) -> int:
        return self._network.nbytes + (self._detector.nbytes if self._detector else 0)

    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the skeletons of the people in a picture (RGB), at the same size. Raises `JobRejected` for none."""
        whole: list[Box] = [[0.0, 0.0, float(picture.width), float(picture.height)]]
        boxes = self._detector.find_people(picture) if self._detector else whole
        people = [joints for joints in self._find_joints(picture, boxes) if any(joints)] if boxes else []
        if not people:
            raise JobRejected("There is nobody in the control picture whose pose can be seen.", "member")
        return draw_skeletons(people, picture.size)

    @torch.inference_mode()
    def _find_joints(self, picture: Image.Image, boxes: list[Box]) -> list[Joints]:
        """Return the joints of the person in each box, in pixels of the picture."""
        model, processor = self._network
        pixels: torch.Tensor = processor(images=picture, boxes=[boxes], return_tensors="pt")["pixel_values"]
        # A network of several data sets has an expert for each; the first one is COCO's.
        has_experts = model.config.backbone_config.num_experts > 1
        data_set = torch.zeros(len(boxes), dtype=torch.long, device=self._device) if has_experts else None
        outputs = model(pixels.to(self._device), dataset_index=data_set)
        if not bool(torch.isfinite(outputs.heatmaps).all()):
            raise JobRejected("The pose in the picture came out as numbers that are not finite.", "model")
        poses = processor.post_process_pose_estimation(outputs, boxes=[boxes])[0]
        return [_select_joints(pose["keypoints"].tolist(), pose["scores"].tolist()) for pose in poses]


class PersonDetector:
    """An object detector that knows people, float32."""

    def __init__(self, network: VisionNetwork, person: int, device: torch.device) -> None:
        self._network = network
        self._person = person
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> PersonDetector:
        """Load a folder with the detector and its image processor. Raises `JobRejected`."""
        network = load_vision_network(folder, "AutoModelForObjectDetection", _DETECTOR_NOUN, device, _DETECTOR_TYPES)
        names: dict[int, str] = network.model.config.id2label
        person = next((label for label, name in names.items() if str(name).lower() == "person"), None)
        if person is None or not hasattr(network.processor, "post_process_object_detection"):
            raise reject_network(_DETECTOR_NOUN, "has no label that is called person")
        return cls(network, person, device)

    @property
    def nbytes(self) -> int:
        return self._network.nbytes

    @torch.inference_mode()
    def find_people(self, picture: Image.Image) -> list[Box]:
        """Return the box of each person inside the picture, the most certain ones first."""
        model, processor = self._network
        pixels: torch.Tensor = processor(images=picture, return_tensors="pt")["pixel_values"]
        found = processor.post_process_object_detection(
            model(pixels.to(self._device)), threshold=MIN_PERSON_SCORE, target_sizes=[(picture.height, picture.width)]
        )[0]
        certain = sorted(
            zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True), reverse=True
        )
        corners = [corners for _, label, corners in certain if label == self._person]
        boxes = (_clip_box(each, picture.size) for each in corners)
        return [box for box in boxes if box is not None][:MAX_PEOPLE]


def has_detector(folder: Path) -> bool:
    """Whether the folder of a pose estimator holds a person detector."""
    return (folder / DETECTOR_FOLDER / CONFIG_FILE).is_file()


def _has_fitting_processor(network: VisionNetwork) -> bool:
    """Whether the image processor finds poses, in pictures of the size that the network reads."""
    try:
        size: int | list[int] = network.model.config.backbone_config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        sides = network.processor.size
        has_size = (sides["height"], sides["width"]) == (height, width)
    except (AttributeError, KeyError, TypeError, ValueError):  # others name the shortest side, or something else
        return False
    return has_size and hasattr(network.processor, "post_process_pose_estimation")


def _select_joints(points: list[tuple[float, float]], scores: list[float]) -> Joints:
    return order_joints(
        [(x, y) if score > MIN_JOINT_SCORE else None for (x, y), score in zip(points, scores, strict=True)]
    )


def _clip_box(corners: list[float], size: tuple[int, int]) -> Box | None:
    """Return left, top, width and height of the part inside the picture; None for less than a pixel."""
    left, top = (max(0.0, value) for value in corners[:2])
    right, bottom = (min(float(side), value) for side, value in zip(size, corners[2:], strict=True))
    return [left, top, right - left, bottom - top] if min(right - left, bottom - top) >= 1 else None


Point = tuple[float, float]
Joints = tuple[Point | None, ...]  # 18, in OpenPose's order; None: not seen

COCO_JOINTS = 17
NECK = 1
# For each joint of OpenPose the one of COCO: nose, neck (none), right arm, left arm, right leg, left leg, eyes, ears.
_COCO_INDEXES = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_COCO_SHOULDERS = (5, 6)
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
# One for each joint, in the same order for limbs: around the circle of hues in steps of 20°.
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
LIMB_BRIGHTNESS = 0.6
_RADIUS = 4
_RADIUS_SIDE = 512
_CORNERS = 36  # of the polygon that stands for an ellipse


def order_joints(points: Sequence[Point | None]) -> Joints:
    """Return COCO's 17 joints in OpenPose's order, with the neck; None for a joint that is not seen."""
    left, right = (points[index] for index in _COCO_SHOULDERS)
    neck = None if left is None or right is None else ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return tuple(neck if index is None else points[index] for index in _COCO_INDEXES)


def draw_skeletons(people: Iterable[Joints], size: tuple[int, int]) -> Image.Image:
    """Return the skeletons on black, as RGB of this size (width, height)."""
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    radius = max(1, round(_RADIUS * min(size) / _RADIUS_SIDE))
    for joints in people:
        for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
            _draw_limb(draw, joints[start], joints[end], colour, radius)
        for joint, colour in zip(joints, COLOURS, strict=True):
            if joint is not None:
                draw.circle(joint, radius, fill=colour)
    return image


def _draw_limb(
    draw: ImageDraw.ImageDraw, start: Point | None, end: Point | None, colour: tuple[int, int, int], radius: int
) -> None:
    if start is None or end is None:
        return
    dark = tuple(int(value * LIMB_BRIGHTNESS) for value in colour)
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    half = math.dist(start, end) / 2
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    cosine = math.cos(angle)
    sine = math.sin(angle)
    turns = (2 * math.pi * corner / _CORNERS for corner in range(_CORNERS))
    along_and_across = ((half * math.cos(turn), radius * math.sin(turn)) for turn in turns)
    draw.polygon(
        [
            (middle[0] + along * cosine - across * sine, middle[1] + along * sine + across * cosine)
            for along, across in along_and_across
        ],
        fill=dark,
    )
