"""The preprocessors of a worker: canny needs no weights, the others take theirs from folders of their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from threading import RLock
from typing import NamedTuple, Protocol, get_args
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError

from engine.contract import JobRejected, Preprocessor
from engine.models.files.pipeline_parts import count_parameters, find_weight_files
from engine.models.vision_networks import (
    CONFIG_FILE,
    DETECTOR_FOLDER,
    WEIGHTS_FILE,
    DepthEstimator,
    LineDrawer,
    PoseEstimator,
    has_detector,
)

NAMES: tuple[Preprocessor, ...] = get_args(Preprocessor)


class Drawer(Protocol):
    @property
    def nbytes(self) -> int: ...

    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the control image of a picture, both RGB and of one size."""
        ...


class _Network(NamedTuple):
    """The file that shows that a network's folder is there, the folder's weights, and how it is loaded."""

    mark: str
    list_weights: Callable[[Path], list[Path]]
    load: Callable[[Path, torch.device], Drawer]


def _list_depth_weights(folder: Path) -> list[Path]:
    return find_weight_files(folder)[0]


def _list_pose_weights(folder: Path) -> list[Path]:
    folders = [folder, folder / DETECTOR_FOLDER] if has_detector(folder) else [folder]
    return [path for each in folders for path in find_weight_files(each)[0]]


def _list_line_weights(folder: Path) -> list[Path]:
    return [folder / WEIGHTS_FILE]


_shared_drawers: WeakValueDictionary[tuple[Path, torch.device], Drawer] = WeakValueDictionary()
_shared_lock = RLock()


class Preprocessors:
    """`folder` holds a folder for each network, `depth`, `pose` and `lineart`; None: there is no such folder.

    Models share the networks, which are in memory while one of them keeps them.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.folder = folder
        self._device = device
        self._lock = RLock()
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

    def list_bytes(self, names: Iterable[Preprocessor], *, with_kept: bool = True) -> dict[str, int]:
        """Return the bytes of these networks, `with_kept`: and of those in memory. Raises `JobRejected`.

        They are by keys that are the same for all models that share a network.
        """
        wanted: set[Preprocessor] = {name for name in names if name in _NETWORKS}
        with self._lock:
            kept = {name: drawer.nbytes for name, drawer in self._drawers.items() if with_kept or name in wanted}
        predicted = {name: self._predict_bytes(name) for name in wanted - kept.keys()}
        return {f"{self.folder}/{name} {self._device}": size for name, size in (kept | predicted).items()}

    def release_others(self, names: Iterable[Preprocessor]) -> None:
        """Drop all networks but these."""
        with self._lock:
            for name in self._drawers.keys() - set(names):
                del self._drawers[name]

    def release(self) -> None:
        """Drop all networks."""
        self.release_others(())

    def _predict_bytes(self, name: Preprocessor) -> int:
        """Return the bytes of a network, in float32, by its file's header. Raises `JobRejected`."""
        self.check(name)
        assert self.folder is not None, "only then is it available"
        folder = self.folder / name
        try:
            files = _NETWORKS[name].list_weights(folder)
            return count_parameters(files).parameters * torch.float32.itemsize
        except (OSError, SafetensorError) as error:
            raise JobRejected(f"The weights of this worker's {name} preprocessor cannot be read.", "worker") from error

    def _is_available(self, name: Preprocessor) -> bool:
        if name in ("none", "canny"):
            return True
        return name in _NETWORKS and self.folder is not None and (self.folder / name / _NETWORKS[name].mark).is_file()

    def _load_drawer(self, name: Preprocessor) -> Drawer:
        with self._lock:
            if name not in self._drawers:
                assert self.folder is not None, "only then is it available"
                self._drawers[name] = _load_shared(name, self.folder / name, self._device)
            return self._drawers[name]


def _load_shared(name: Preprocessor, folder: Path, device: torch.device) -> Drawer:
    with _shared_lock:
        drawer = _shared_drawers.get((folder, device))
        if drawer is None:
            _shared_drawers[folder, device] = drawer = _NETWORKS[name].load(folder, device)
        return drawer


# as in ControlNet's own examples, of gradients up to 2040
LOW_THRESHOLD = 100
HIGH_THRESHOLD = 200
_TANGENT = int(0.4142135623730950488016887242097 * (1 << 15) + 0.5)  # of 22.5°, in 1/32768
Integers = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def draw_canny_edges(picture: Image.Image, low: int = LOW_THRESHOLD, high: int = HIGH_THRESHOLD) -> Image.Image:
    """Return the picture's edges, white on black, as RGB."""
    dx, dy = _compute_gradients(np.asarray(picture.convert("RGB"), dtype=np.int32))
    size = np.abs(dx) + np.abs(dy)
    thin = _find_ridges(dx, dy, size) & (size > low)
    edges = _keep_connected(thin, thin & (size > high))
    return Image.fromarray(edges.astype(np.uint8) * 255).convert("RGB")


def _compute_gradients(pixels: Integers) -> tuple[Integers, Integers]:
    """Return dx and dy of each pixel's strongest channel."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    dx = rows[:, 2:] - rows[:, :-2]
    dy = columns[2:] - columns[:-2]
    strongest = (np.abs(dx) + np.abs(dy)).argmax(axis=2)[..., None]
    return np.take_along_axis(dx, strongest, 2)[..., 0], np.take_along_axis(dy, strongest, 2)[..., 0]


def _find_ridges(dx: Integers, dy: Integers, size: Integers) -> Mask:
    """Return where the gradient is largest along its own direction, of four directions."""
    padded = np.pad(size, 1)
    height, width = size.shape

    def shifted(down: int, right: int) -> Integers:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    across = np.abs(dx).astype(np.int64)
    along = np.abs(dy).astype(np.int64) << 15
    is_horizontal = along < across * _TANGENT
    is_vertical = along > across * _TANGENT + (across << 16)
    is_falling = (dx ^ dy) >= 0  # the gradient points down right, or up left
    horizontal = (size > shifted(0, -1)) & (size >= shifted(0, 1))
    vertical = (size > shifted(-1, 0)) & (size >= shifted(1, 0))
    falling = (size > shifted(-1, -1)) & (size > shifted(1, 1))
    rising = (size > shifted(-1, 1)) & (size > shifted(1, -1))
    return np.where(is_horizontal, horizontal, np.where(is_vertical, vertical, np.where(is_falling, falling, rising)))


def _keep_connected(thin: Mask, strong: Mask) -> Mask:
    """Return the thin pixels that are connected to a strong one, over any of eight neighbours."""
    width = thin.shape[1] + 2
    waiting = bytearray(np.pad(thin & ~strong, 1).tobytes())
    kept = np.pad(strong, 1)
    flat = kept.reshape(-1)
    stack = [int(each) for each in np.flatnonzero(kept)]
    neighbours = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    while stack:
        pixel = stack.pop()
        for offset in neighbours:
            if waiting[pixel + offset]:
                waiting[pixel + offset] = 0
                flat[pixel + offset] = True
                stack.append(pixel + offset)
    return kept[1:-1, 1:-1]


_NETWORKS: dict[Preprocessor, _Network] = {
    "depth": _Network(CONFIG_FILE, _list_depth_weights, DepthEstimator.load),
    "pose": _Network(CONFIG_FILE, _list_pose_weights, PoseEstimator.load),
    "lineart": _Network(WEIGHTS_FILE, _list_line_weights, LineDrawer.load),
}
