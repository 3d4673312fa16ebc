"""Networks that draw control pictures: depth maps (DPT …) and line drawings (Chan et al. 2022)."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from engine.contract import JobRejected
from engine.models.library_logging import silence_libraries


class DepthEstimator:
    """A depth estimator, float32."""

    def __init__(self, network: VisionNetwork, device: torch.device) -> None:
        self._network = network
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> DepthEstimator:
        """Load a folder with the estimator and its image processor. Raises `JobRejected`."""
        return cls(load_vision_network(folder, "AutoModelForDepthEstimation", "depth estimator", device), device)

    @property
    def nbytes(self) -> int:
        return self._network.nbytes

    @torch.inference_mode()
    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the depth of a picture (RGB) as grey RGB from 0 to 255, at the same size."""
        inputs = self._network.processor(images=picture, return_tensors="pt")
        depth: torch.Tensor = self._network.model(inputs["pixel_values"].to(self._device)).predicted_depth
        size = picture.height, picture.width
        depth = torch.nn.functional.interpolate(depth[:, None].float(), size, mode="bicubic", align_corners=False)
        low = depth.min()
        high = depth.max()
        if not bool(torch.isfinite(depth).all()):
            raise JobRejected("The depth of the picture came out as numbers that are not finite.", "model")
        grey = ((depth - low) / (high - low).clamp_min(1e-12) * 255)[0, 0].round()
        return Image.fromarray(grey.cpu().numpy().astype(np.uint8)).convert("RGB")


WEIGHTS_FILE = "model.safetensors"
MAX_WEIGHTS_BYTES = 256 * 2**20
WIDTHS = (64, 128, 256)


RESIDUAL_BLOCKS = 3
FACTOR = 2 ** (len(WIDTHS) - 1)  # the sides of its pictures are multiples of this


class LineDrawer(nn.Module):
    """From pixels `[n, 3, height, width]` to lines `[n, 1, height, width]`, both from 0 to 1; lines are dark."""

    def __init__(self) -> None:
        super().__init__()
        first, *_, last = WIDTHS
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, first, 7), nn.InstanceNorm2d(first), nn.ReLU())
        pairs = list(pairwise(WIDTHS))
        self.model1 = nn.Sequential(
            *(layer for narrow, wide in pairs for layer in _surround(nn.Conv2d(narrow, wide, 3, 2, 1), wide))
        )
        self.model2 = nn.Sequential(*(_ResidualBlock(last) for _ in range(RESIDUAL_BLOCKS)))
        self.model3 = nn.Sequential(
            *(
                layer
                for narrow, wide in reversed(pairs)
                for layer in _surround(nn.ConvTranspose2d(wide, narrow, 3, 2, 1, 1), narrow)
            )
        )
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(first, 1, 7), nn.Sigmoid())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model4(self.model3(self.model2(self.model1(self.model0(pixels)))))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> LineDrawer:
        """Load the weights of a folder. Raises `JobRejected`."""
        path = folder / WEIGHTS_FILE
        try:
            if path.stat().st_size > MAX_WEIGHTS_BYTES:
                raise ValueError("it is too large")
            network = cls()
            network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise JobRejected(
                f"The line art preprocessor of this worker has no {WEIGHTS_FILE} that fits.", "worker"
            ) from error
        return network.eval().requires_grad_(False).to(device)

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    @torch.inference_mode()
    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the lines of a picture (RGB), white on black, as RGB of the same size."""
        device = next(self.parameters()).device
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None].to(device)
        height = picture.height
        width = picture.width
        padding = (0, -width % FACTOR, 0, -height % FACTOR)
        lines = self(nn.functional.pad(pixels, padding, mode="replicate"))[0, 0, :height, :width]
        grey = ((1 - lines) * 255).clamp(0, 255).round().cpu().numpy().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


def _surround(convolution: nn.Module, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, nn.InstanceNorm2d(width), nn.ReLU()


MAX_CONFIG_BYTES = 256 * 1024
CONFIG_FILE = "config.json"


class VisionNetwork(NamedTuple):
    """A network in float32 that does not train, and the image processor that was saved with it."""

    model: Any
    processor: Any

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))


def load_vision_network(
    folder: Path, class_name: str, noun: str, device: torch.device, model_types: Collection[str] = ()
) -> VisionNetwork:
    """Load a folder as this class of transformers. `noun` names it in sentences. Raises `JobRejected`.

    `model_types`: the kinds that are opened, as the configuration names them; none: all that the class knows.
    """
    config = _read_config(folder, noun)
    if model_types and config.get("model_type") not in model_types:
        raise reject_network(noun, f"is none of these kinds: {', '.join(model_types)}")
    _refuse_other_files(folder, config, noun)
    try:
        with silence_libraries():
            return _open_network(folder, class_name, device)
    except Exception as error:  # untrusted files, many classes: any error is possible
        raise reject_network(noun, "is none that transformers can open") from error


def reject_network(noun: str, reason: str) -> JobRejected:
    return JobRejected(f"The {noun} of this worker {reason}.", "worker")


def _open_network(folder: Path, class_name: str, device: torch.device) -> VisionNetwork:
    transformers: Any = import_module("transformers")  # by name: its own list of names costs the type checker a minute
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = transformers.AutoImageProcessor.from_pretrained(str(folder), **options)
    model = getattr(transformers, class_name).from_pretrained(
        str(folder), use_safetensors=True, dtype=torch.float32, **options
    )
    return VisionNetwork(model.eval().requires_grad_(False).to(device), processor)


def _read_config(folder: Path, noun: str) -> dict[str, Any]:
    try:
        path = folder / CONFIG_FILE
        config: object = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise reject_network(noun, f"has no {CONFIG_FILE} that can be read") from error
    if not isinstance(config, dict):
        raise reject_network(noun, f"has no {CONFIG_FILE} that can be read")
    return cast(dict[str, Any], config)


def _refuse_other_files(folder: Path, config: dict[str, Any], noun: str) -> None:
    """Refuse a configuration that names weights besides the folder's own. Raises `JobRejected`."""
    backbone = config.get("backbone_config")
    for entries in (config, cast(dict[str, Any], backbone) if isinstance(backbone, dict) else {}):
        if entries.get("backbone") or entries.get("use_timm_backbone") or "auto_map" in entries:
            raise reject_network(noun, "names weights or code besides its own")
    if not any(folder.glob("*.safetensors")):
        raise reject_network(noun, "has no weights in safetensors")


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
