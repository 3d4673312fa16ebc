"""Sizes in words, and how far a model is on its way into memory. Pure; knows nothing of torch or the broker."""

from __future__ import annotations

UNITS = ((10**9, "GB", 1), (10**6, "MB", 0))  # with digits behind the point


def said(size: int) -> str:
    """`12 GB`, `1.4 GB`, `350 MB`."""
    for unit, name, _ in UNITS:
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{max(1, size // 1000)} kB"


def part_of(done: float, size: int) -> str:
    """`1.2 of 2.0 GB`, `35 of 140 MB`: never all of it before it is `done`."""
    unit, name, digits = next((one for one in UNITS if size >= one[0]), (1000, "kB", 0))
    step = unit / 10**digits
    whole = max(1, round(size / step))
    there = whole if done >= 1.0 else min(whole - 1, int(done * size / step))
    return f"{there / 10**digits:.{digits}f} of {whole / 10**digits:.{digits}f} {name}"


def percent(done: float) -> int:
    """Whole percent, 100 only when it is done."""
    return max(0, min(100, round(done * 1000) * 100 // 1000))


def loading(model: str, done: float, size: int = 0) -> str:
    """ "loading sd15, 1.2 of 2.0 GB"; where the size is unknown, "loading sd15, 40 %"."""
    return f"loading {model}, {part_of(done, size) if size else f'{percent(done)} %'}"
