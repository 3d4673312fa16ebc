"""Sizes and loading progress as text. Pure."""

from __future__ import annotations

UNITS = ((10**9, "GB", 1), (10**6, "MB", 0))  # unit, name, decimal digits


def format_size(size: int) -> str:
    """Return a size as `12 GB`, `1.4 GB`, `350 MB`."""
    for unit, name, _ in UNITS:
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{max(1, size // 1000)} kB"


def format_loaded_part(share: float, size: int) -> str:
    """Return `1.2 of 2.0 GB` or `35 of 140 MB`; never the full size before it is `done`."""
    unit, name, digits = next((unit_row for unit_row in UNITS if size >= unit_row[0]), (1000, "kB", 0))
    step = unit / 10**digits
    total_units = max(1, round(size / step))
    loaded_units = total_units if share >= 1.0 else min(total_units - 1, int(share * size / step))
    return f"{loaded_units / 10**digits:.{digits}f} of {total_units / 10**digits:.{digits}f} {name}"


def loaded_percent(share: float) -> int:
    """Return whole percent, 100 only when it is done."""
    return max(0, min(100, round(share * 1000) * 100 // 1000))


def format_loading(model: str, share: float, size: int = 0) -> str:
    """Return "loading sd15, 1.2 of 2.0 GB"; if the size is unknown, "loading sd15, 40 %"."""
    return f"loading {model}, {format_loaded_part(share, size) if size else f'{loaded_percent(share)} %'}"
