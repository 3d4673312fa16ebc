"""Sizes and loading progress as text. Pure."""

from __future__ import annotations

UNITS = ((10**9, "GB", 1), (10**6, "MB", 0))  # unit, name, decimal digits


def said(size: int) -> str:
    """Return a size as `12 GB`, `1.4 GB`, `350 MB`."""
    for unit, name, _ in UNITS:
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{max(1, size // 1000)} kB"


def part_of(done: float, size: int) -> str:
    """Return `1.2 of 2.0 GB` or `35 of 140 MB`; never the full size before it is `done`."""
    unit, name, digits = next((one for one in UNITS if size >= one[0]), (1000, "kB", 0))
    step = unit / 10**digits
    whole = max(1, round(size / step))
    there = whole if done >= 1.0 else min(whole - 1, int(done * size / step))
    return f"{there / 10**digits:.{digits}f} of {whole / 10**digits:.{digits}f} {name}"


def percent(done: float) -> int:
    """Return whole percent, 100 only when it is done."""
    return max(0, min(100, round(done * 1000) * 100 // 1000))


def loading(model: str, done: float, size: int = 0) -> str:
    """Return "loading sd15, 1.2 of 2.0 GB"; if the size is unknown, "loading sd15, 40 %"."""
    return f"loading {model}, {part_of(done, size) if size else f'{percent(done)} %'}"
