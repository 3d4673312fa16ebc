"""The preprocessors of a worker: canny needs no weights, the others take theirs from folders of their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Protocol, get_args

import torch
from PIL import Image

from engine.contract import Preprocessor
from engine.contract.rejection import JobRejected
from engine.models.preprocessing.canny import draw_canny_edges
from engine.models.preprocessing.depth import DepthEstimator
from engine.models.preprocessing.lineart import WEIGHTS_FILE, LineDrawer

NAMES: tuple[Preprocessor, ...] = get_args(Preprocessor)


class Drawer(Protocol):
    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the control image of a picture, both RGB and of one size."""
        ...


# Networks by name: the file that shows that their folder is there, and how they are loaded.
_NETWORKS: dict[Preprocessor, tuple[str, Callable[[Path, torch.device], Drawer]]] = {
    "depth": ("config.json", DepthEstimator.load), "lineart": (WEIGHTS_FILE, LineDrawer.load),
}  # fmt: skip


class Preprocessors:
    """`folder` holds a folder for each network, `depth` and `lineart`; None: there is no such folder."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.folder = folder
        self._device, self._lock = device, RLock()
        self._drawers: dict[Preprocessor, Drawer] = {}

    def list_available(self) -> tuple[Preprocessor, ...]:
        """Return those that this worker can run."""
        return tuple(name for name in NAMES if self._is_available(name))

    def check(self, name: Preprocessor) -> None:
        """Raise `JobRejected` where this worker cannot run it."""
        if not self._is_available(name):
            raise JobRejected(
                f"This worker cannot make {name} control images of pictures: give it the finished {name} image.",
                "worker",
            )

    def run(self, name: Preprocessor, picture: Image.Image) -> Image.Image:
        """Return the control image of a picture (RGB). Raises `JobRejected`."""
        self.check(name)
        if name == "canny":
            return draw_canny_edges(picture)
        return self._load_drawer(name).draw(picture) if name in _NETWORKS else picture

    def _is_available(self, name: Preprocessor) -> bool:
        if name in ("none", "canny"):
            return True
        return name in _NETWORKS and self.folder is not None and (self.folder / name / _NETWORKS[name][0]).is_file()

    def _load_drawer(self, name: Preprocessor) -> Drawer:
        with self._lock:
            if name not in self._drawers:
                assert self.folder is not None, "only then is it available"
                self._drawers[name] = _NETWORKS[name][1](self.folder / name, self._device)
            return self._drawers[name]
