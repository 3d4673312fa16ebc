"""Skeletons as OpenPose (Cao et al. 2017) colours them, which ControlNets of poses were trained with. Pure.

Its body has COCO's 17 joints in another order, and a neck between the shoulders. Each joint is a disc, each limb an
ellipse of 60 % of its colour's brightness, both of four pixels' radius in a picture of 512 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

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
