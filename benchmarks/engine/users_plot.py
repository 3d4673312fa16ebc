"""Plots: first preview and throughput against the number of users; likeness against the number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.engine.workload import (
    Workload,
    time_diffusers,
    time_engine,
    time_engine_previews,
    time_pipeline_previews,
)
from benchmarks.report.figure_row import print_progress
from engine.models.family import Family

USER_COUNTS = (1, 2, 4, 8, 16)
STEPS = 30
ROUNDS = 3
DARKROOM_COLOUR = "#c2410c"
DIFFUSERS_COLOUR = "#475569"
TEXT_COLOUR = "#1e293b"
GRID_COLOUR = "#cbd5e1"
BACKGROUND_COLOUR = "#ffffff"
PANEL_SIZE = (560, 380)
AXIS_MARGIN = (86, 64)
PANEL_GAP = 40


@dataclass(frozen=True)
class UserMeasurement:
    """One number of users: pictures a second, and seconds until the last of them sees the preview at a tenth."""

    users: int
    darkroom: tuple[float, float]
    diffusers: tuple[float, float]


def measure_user_counts(family: Family, pipeline: Any, load: Workload) -> list[UserMeasurement]:
    """Measure both systems; `pipeline` is in the number format to compare."""
    measurements = list[UserMeasurement]()
    for users in USER_COUNTS:
        print_progress(f"{users} at once")
        user_load = replace(load, users=users)
        time_engine(family, replace(user_load, steps=4))  # builds kernels and packs weights
        ours = [(time_engine(family, user_load), time_engine_previews(family, user_load)[-1]) for _ in range(ROUNDS)]
        theirs = [_time_diffusers(family, pipeline, user_load) for _ in range(ROUNDS)]
        measurements.append(UserMeasurement(users, _find_medians(users, ours), _find_medians(users, theirs)))
    return measurements


def _time_diffusers(family: Family, pipeline: Any, load: Workload) -> tuple[float, float]:
    seconds = time_diffusers(pipeline, family, load)
    return seconds, time_pipeline_previews(pipeline, family, load)[-1]


def _find_medians(users: int, rounds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the medians: pictures a second of so many users, and the last one's seconds to its preview."""
    seconds, preview_seconds = zip(*rounds, strict=True)
    return users / median(seconds), median(preview_seconds)


def plot_measurements(measurements: list[UserMeasurement], path: Path, caption: str) -> None:
    """Draw two panels as a PNG with this caption. Raises OSError if it cannot be written."""
    width = 2 * PANEL_SIZE[0] + PANEL_GAP
    height = PANEL_SIZE[1] + 44
    image = Image.new("RGB", (width, height), BACKGROUND_COLOUR)
    draw = ImageDraw.Draw(image)
    for panel_number, title in enumerate(("pictures a second", "seconds to the last one's preview at a tenth")):
        system_values = [
            [each.darkroom[panel_number] for each in measurements],
            [each.diffusers[panel_number] for each in measurements],
        ]
        user_counts = [each.users for each in measurements]
        _draw_panel(draw, panel_number * (PANEL_SIZE[0] + PANEL_GAP), title, user_counts, system_values)
    write_text(draw, (width // 2, height - 22), caption)
    image.quantize(64).save(path, optimize=True)


def _draw_panel(
    draw: ImageDraw.ImageDraw, left_edge: int, title: str, user_counts: list[int], system_values: list[list[float]]
) -> None:
    """Draw axes from zero and a line for each system; users are evenly spaced, since they double."""
    (panel_width, panel_height), (left_margin, bottom_margin) = PANEL_SIZE, AXIS_MARGIN
    max_value = max(max(system_line) for system_line in system_values) * 1.12
    x_positions = [
        left_edge + left_margin + (panel_width - left_margin - 20) * number / max(1, len(user_counts) - 1)
        for number in range(len(user_counts))
    ]
    write_text(draw, (left_edge + left_margin, 8), title, size=18, anchor="la")

    def to_y(value: float) -> float:
        return panel_height - bottom_margin - (panel_height - bottom_margin - 44) * value / max_value

    for tick in _choose_ticks(max_value):
        draw.line([(left_edge + left_margin, to_y(tick)), (left_edge + panel_width - 20, to_y(tick))], fill=GRID_COLOUR)
        write_text(draw, (left_edge + left_margin - 10, to_y(tick)), f"{tick:g}", anchor="rm")
    for x_position, user_count in zip(x_positions, user_counts, strict=True):
        write_text(draw, (x_position, panel_height - bottom_margin + 16), str(user_count))
    write_text(draw, (left_edge + (panel_width + left_margin) // 2, panel_height - 20), "users at once")
    for values, colour, name in zip(
        system_values, (DARKROOM_COLOUR, DIFFUSERS_COLOUR), ("Darkroom", "diffusers, in turn"), strict=True
    ):
        _draw_line(draw, list(zip(x_positions, map(to_y, values), strict=True)), colour, name)


def _draw_line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: str, name: str) -> None:
    """Draw a line with a dot at each point and its name beside the last one."""
    draw.line(points, fill=colour, width=3)
    for x, y in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    x, y = points[-1]
    label_offset = 18 if points[-2][1] < y else -18  # on the side where the line does not cross its name
    write_text(draw, (x - 10, y + label_offset), name, size=16, colour=colour, anchor="rm")


def _choose_ticks(max_value: float) -> list[float]:
    """Return about five round numbers from zero."""
    step = next(
        size * 10**power for power in range(-3, 6) for size in (1, 2, 5) if max_value / (size * 10.0**power) <= 6
    )
    return [number * step for number in range(int(max_value / step) + 1)]


def write_text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    *,
    size: int = 15,
    colour: str = TEXT_COLOUR,
    anchor: str = "mm",
) -> None:
    """Write text at its anchor: "mm" is its centre."""
    draw.text(position, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)


def plot_curve(curve: Mapping[int, Sequence[float]], path: Path, caption: str) -> None:
    """Draw mean, and the lowest and highest tenth, against the evaluations as a PNG. Raises OSError."""
    width = 720
    height = 420
    left = 86
    bottom = 80
    image = Image.new("RGB", (width, height), BACKGROUND_COLOUR)
    draw = ImageDraw.Draw(image)
    counts = list(curve)
    low = 20.0
    high = 60.0

    def place(count: float, value: float) -> tuple[float, float]:
        x = left + (width - left - 30) * (np.log(count / counts[0]) / np.log(counts[-1] / counts[0]))
        return float(x), float(height - bottom - (height - bottom - 50) * (value - low) / (high - low))

    write_text(draw, (left, 10), "likeness to the picture with all evaluations, dB", size=18, anchor="la")
    for tick in range(int(low), int(high) + 1, 10):
        draw.line([place(counts[0], tick), place(counts[-1], tick)], fill=GRID_COLOUR)
        write_text(draw, (left - 10, place(counts[0], tick)[1]), str(tick), anchor="rm")
    for count, values in curve.items():
        tenth, nine_tenths = (min(high, max(low, float(np.percentile(values, q)))) for q in (10, 90))
        draw.line([place(count, tenth), place(count, nine_tenths)], fill=GRID_COLOUR, width=10)
        write_text(draw, (place(count, low)[0], height - bottom + 16), str(count))
    points = [place(count, fmean(values)) for count, values in curve.items()]
    draw.line(points, fill=DARKROOM_COLOUR, width=3)
    for x, y in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=DARKROOM_COLOUR)
    write_text(
        draw, (width // 2, height - 44), "evaluations of 1000 steps of DDPM; the bars hold eight of ten pictures"
    )
    write_text(draw, (width // 2, height - 20), caption)
    image.quantize(64).save(path, optimize=True)
