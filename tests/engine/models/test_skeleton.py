"""Skeletons: COCO's joints in OpenPose's order, and where which colour is drawn."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

from engine.models.vision_networks import COLOURS, LIMBS, Joints, Point, draw_skeletons, order_joints

# A person who stands and looks at the viewer: what is to the viewer's left is the right arm. COCO's order.
COCO: list[Point | None] = [
    (256, 90), (270, 78), (242, 78), (288, 84), (224, 84), (310, 150), (202, 150), (340, 230), (172, 230), (352, 310),
    (160, 310), (290, 300), (222, 300), (294, 390), (218, 390), (296, 480), (216, 480),
]  # fmt: skip


def read_pixel(image: Image.Image, point: Point) -> tuple[int, ...]:
    pixel = image.getpixel((round(point[0]), round(point[1])))
    assert isinstance(pixel, tuple)
    return pixel


def halfway(joints: Joints, limb: tuple[int, int]) -> Point:
    start = joints[limb[0]]
    end = joints[limb[1]]
    assert start is not None
    assert end is not None
    return (start[0] + end[0]) / 2, (start[1] + end[1]) / 2


def test_joints_have_openposes_order() -> None:
    joints = order_joints(COCO)
    assert len(joints) == 18
    assert joints[:3] == ((256, 90), (256, 150), (202, 150)), "nose, neck, right shoulder"
    assert (joints[4], joints[7]) == ((160, 310), (352, 310))
    assert (joints[10], joints[13]) == ((216, 480), (296, 480))
    assert joints[14:] == ((242, 78), (270, 78), (224, 84), (288, 84)), "right eye, left eye, right ear, left ear"


def test_a_neck_needs_both_shoulders() -> None:
    unseen = [None if index == 5 else point for index, point in enumerate(COCO)]
    joints = order_joints(unseen)
    assert joints[1] is joints[5] is None
    image = draw_skeletons([joints], (512, 512))
    assert read_pixel(image, (202, 150)) == COLOURS[2], "the other shoulder is there without its limb to the neck"
    assert read_pixel(image, (229, 150)) == (0, 0, 0)


def test_joints_and_limbs_have_openposes_colours() -> None:
    joints = order_joints(COCO)
    image = draw_skeletons([joints], (512, 512))
    assert (image.mode, image.size) == ("RGB", (512, 512))
    for joint, colour in zip(joints, COLOURS, strict=True):
        assert joint is not None
        assert read_pixel(image, joint) == colour
    for limb, colour in zip(LIMBS, COLOURS, strict=False):
        assert read_pixel(image, halfway(joints, limb)) == tuple(value * 6 // 10 for value in colour), limb
    assert read_pixel(image, (20, 20)) == (0, 0, 0)


def test_colours_go_around_the_hues() -> None:
    hues = [colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0] * 360 for colour in COLOURS]
    assert max(abs(hue - 20 * index) for index, hue in enumerate(hues)) < 0.1
    assert all(max(colour) == 255 and min(colour) == 0 for colour in COLOURS)


def test_lines_grow_with_the_picture() -> None:
    small, large = (draw_skeletons([order_joints(_scale(factor))], (512 * factor, 512 * factor)) for factor in (1, 2))
    painted = [np.count_nonzero(np.asarray(image).any(axis=2)) for image in (small, large)]
    assert 3.6 < painted[1] / painted[0] < 4.4
    upright = np.asarray(draw_skeletons([order_joints(COCO)], (512, 512)))[265, 140:190].any(axis=1)
    assert 6 <= np.count_nonzero(upright) <= 10, "a limb is about eight pixels wide in its middle"


def test_two_people_and_points_outside_fit_into_a_picture() -> None:
    both = [order_joints(COCO), order_joints([(point[0] + 300, point[1] - 60) for point in COCO if point])]
    image = draw_skeletons(both, (512, 300))
    assert read_pixel(image, (256, 90)) == read_pixel(draw_skeletons(both[:1], (512, 300)), (256, 90))
    assert draw_skeletons([], (3, 2)).getextrema() == ((0, 0),) * 3


def _scale(factor: int) -> list[Point | None]:
    return [(point[0] * factor, point[1] * factor) for point in COCO if point]
