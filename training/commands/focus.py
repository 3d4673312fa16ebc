"""The drawings that a training learns better: a text file with one a line, as `train evaluate --missed` writes it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.pictures.variants import DRAW_SHARE, FOCUS_SHARE, MAIN_STYLE, STYLE_SHARE, FocusedDrawing


@dataclass(frozen=True)
class Focus:
    """Drawings to learn better, and their share of all draws."""

    drawings: tuple[FocusedDrawing, ...]
    share: float

    def describe(self) -> str:
        """Return text that differs for other drawings or another share; empty without any drawing."""
        if not self.drawings:
            return ""
        lines = sorted({format_focus(drawing) for drawing in self.drawings})
        digest = zlib.crc32(repr((lines, DRAW_SHARE)).encode())
        return f"{self.share:g} of the draws, lines: {len(lines)}, {digest:08x}"


NO_FOCUS = Focus((), FOCUS_SHARE)


def read_focus(path: Path | None, share: float | None) -> Focus:
    """Read a file of drawings. Raises ValueError if it cannot be read, or is empty."""
    if path is None:
        return NO_FOCUS
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"--focus {path} is no text file that can be read.") from None
    if not lines:
        raise ValueError(f"--focus {path} names no label: write one a line.")
    return Focus(tuple(map(parse_focus, lines)), FOCUS_SHARE if share is None else share)


def write_focus(path: Path, drawings: Iterable[FocusedDrawing]) -> None:
    """Write a file that `read_focus` reads. Raises ValueError if it cannot be written."""
    try:
        path.write_text("".join(f"{format_focus(drawing)}\n" for drawing in drawings), "utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from None


def parse_focus(line: str) -> FocusedDrawing:
    """Parse "label" or "label, style", as a prompt names them."""
    label, comma, style = line.strip().rpartition(", ")
    return FocusedDrawing(label, style) if comma and style in STYLE_SHARE else FocusedDrawing(line.strip())


def format_focus(drawing: FocusedDrawing) -> str:
    """Return the line of a drawing: the main style has no name there."""
    return drawing.label if drawing.style == MAIN_STYLE else f"{drawing.label}, {drawing.style}"
