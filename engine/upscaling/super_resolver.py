"""The super-resolver: upscales pictures with a network of any architecture that spandrel loads.

It works tile by tile. Each tile includes as much context as the network's receptive field, and only its inside is kept.
So there are no seams and no blending, and memory does not grow with the picture. Weights must be safetensors: a pickle
can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageFilter

from engine.contract import JobRejected

log = logging.getLogger(__name__)

BUILT_IN = Path(__file__).parents[1] / "weights" / "upscaler" / "model.safetensors"
MAX_WEIGHTS_BYTES = 10**9  # of a weights file
TILE_SIDE = 256  # pixels a side of the network's input
MAX_CONTEXT = 64  # pixels around a tile: some networks see the whole picture, but distant pixels matter little
EDGE_PADDING = 8  # pixels of edge padding: networks see black beyond the edge, and would darken it
RESIZE_MARGIN = 2  # more pixels around, for Lanczos from the network's scale to another
SCALES = range(2, 9)
PROBE_SIDE = 32  # pixels a side of the grey picture that tests a new network
SAMPLE_SIDE = 128  # the same of the picture that its speed is measured with
LARGE_SIDE = 1024  # the same of the large picture that the speed is for
DEFAULT_FACTOR = 4  # the default upscaling factor
CLAMP_METADATA = {
    "range": "nearby"
}  # in the metadata of weights trained on flat artwork: clamp the ringing beside edges

OnTile = Callable[[], None]
Box = tuple[int, int, int, int]  # left, top, right, bottom


class SuperResolver:
    """One loaded network. Several threads may call it; they take turns tile by tile.

    Float32 on a CPU. On a GPU float16 if the architecture allows it, never bfloat16: its eight bits show as bands in a
    sky. The same picture gives the same bytes on one device, build and number of threads.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Raise `JobRejected` (blame "worker") with one sentence if the file is not such a network in safetensors."""
        self.name = _safe_name(path)
        self.device = torch.device(device)
        self._net, self._is_clamped = _load_network(path)
        self.scale = int(self._net.scale)
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        use_half = self.device.type == "cuda" and self._net.supports_half
        self._dtype = torch.float16 if use_half else torch.float32
        self._net.to(self.device, self._dtype).eval()
        for parameter in self._net.model.parameters():
            parameter.requires_grad_(False)
        self._context = _receptive_radius(self._net.model)
        self._lock = threading.Lock()
        self._test_network(path)

    @classmethod
    def load(cls, path: Path | None, device: torch.device | str = "cpu") -> SuperResolver | None:
        """Return the one at `path`, else the built-in one; None if that is not installed. Raises `JobRejected`."""
        if path is None and not BUILT_IN.exists():
            return None
        return cls(path or BUILT_IN, device)

    def upscale(self, picture: Image.Image, factor: int = 0, on_tile: OnTile | None = None) -> Image.Image:
        """Return the picture as RGB, `factor` times as wide and high (0: the network's own scale).

        `on_tile` is called before each tile. A factor other than the network's scale takes several passes while their
        product divides it, and Lanczos from the nearest size for the rest.
        """
        factor = factor or self.scale
        if factor > self.scale and factor % self.scale == 0:
            return self.upscale(self.upscale(picture, self.scale, on_tile), factor // self.scale, on_tile)
        source = np.pad(
            np.asarray(picture.convert("RGB")),
            ((EDGE_PADDING, EDGE_PADDING), (EDGE_PADDING, EDGE_PADDING), (0, 0)),
            mode="edge",
        )
        upscaled = Image.new("RGB", (picture.width * factor, picture.height * factor))
        for inner, outer in _tile_boxes(picture.size, self._context):
            if on_tile is not None:
                on_tile()
            left, top, right, bottom = (EDGE_PADDING + edge for edge in outer)
            upscaled.paste(*self._upscale_tile(source[top:bottom, left:right], inner, outer, factor))
        return upscaled

    def measure_ms_per_megapixel(self) -> float:
        """Return the milliseconds per megapixel of a large picture for ×4, over as many passes as that takes.

        On a CPU it counts this thread's time only. It times a small sample and adds the overlap between the tiles of a
        large picture.
        """
        clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        sample = Image.effect_noise((SAMPLE_SIDE, SAMPLE_SIDE), 60).convert("RGB")
        best_seconds = float("inf")
        for _ in range(3):  # the first run builds the kernels
            started_at = clock()
            self.upscale(sample, DEFAULT_FACTOR)
            best_seconds = min(best_seconds, clock() - started_at)
        overlap_factor = _input_pixels_ratio(LARGE_SIDE, self._context) / _input_pixels_ratio(
            SAMPLE_SIDE, self._context
        )
        return 1000 * best_seconds * overlap_factor / (SAMPLE_SIDE * SAMPLE_SIDE / 1e6)

    def _upscale_tile(
        self, tile_pixels: np.ndarray, inner: Box, outer: Box, factor: int
    ) -> tuple[Image.Image, tuple[int, int]]:
        """Return the pixels for `inner` and their position. Both boxes are in source pixels.

        `tile_pixels` are the pixels of `outer`.
        """
        pixels = Image.fromarray(self._run_network(tile_pixels))
        if factor != self.scale:
            size = ((outer[2] - outer[0]) * factor, (outer[3] - outer[1]) * factor)
            pixels = pixels.resize(size, Image.Resampling.LANCZOS)
        if self._is_clamped:
            pixels = clamp_ringing(pixels, Image.fromarray(tile_pixels))
        left, top, right, bottom = (factor * edge for edge in inner)
        x = factor * outer[0]
        y = factor * outer[1]
        return pixels.crop((left - x, top - y, right - x, bottom - y)), (left, top)

    def _run_network(self, tile_pixels: np.ndarray) -> np.ndarray:
        """Run uint8 [height, width, 3] through the network, which takes numbers from 0 to 1."""
        batch = torch.from_numpy(tile_pixels.copy()).to(self.device).permute(2, 0, 1)[None] / 255
        with self._lock:
            output = self._net(batch.to(self._dtype))[0].float()
            if self._dtype != torch.float32 and not bool(output.isfinite().all()):  # beyond float16's range
                self._net.to(self.device, torch.float32)
                output = self._net(batch)[0]
                self._net.to(self.device, self._dtype)  # later pictures must give the same bytes as before
        return (output * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()

    def _test_network(self, path: Path) -> None:
        grey = torch.full((1, 3, PROBE_SIDE, PROBE_SIDE), 0.5, dtype=self._dtype, device=self.device)
        try:
            output = self._net(grey)
        except Exception as error:  # an unknown network can raise anything
            raise _rejection(path, "does not work") from error
        if output.shape[2] != PROBE_SIDE * self.scale or not bool(output.isfinite().all()):
            raise _rejection(path, "does not give pictures")


def _load_network(path: Path) -> tuple[Any, bool]:
    """Return spandrel's descriptor of the network, float32 on the CPU, and whether its output must be clamped."""
    if not path.is_file():
        raise _rejection(path, "is not there")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise _rejection(path, f"is larger than {MAX_WEIGHTS_BYTES // 10**9} GB")
    if path.suffix != ".safetensors":
        raise _rejection(path, "is no safetensors file: other formats can run code when they are opened")
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file
        from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict
    except ImportError as error:
        raise _rejection(path, f"needs the package {error.name}: pip install 'darkroom-bot[all]'") from error
    try:
        weights = canonicalize_state_dict(load_file(path))
        with cast(Any, safe_open)(path, framework="pt") as file:
            is_clamped: bool = CLAMP_METADATA.items() <= (file.metadata() or {}).items()
    except (OSError, SafetensorError, ValueError) as error:
        raise _rejection(path, "cannot be read: it is damaged, or no safetensors file") from error
    if (
        _highest_layer_number(weights) > 4 * len(weights) + 16
    ):  # loaders build as many layers as the highest number in a name
        raise _rejection(path, "has weights that do not fit together")
    try:
        net = ModelLoader().load_from_state_dict(weights)
    except UnsupportedModelError as error:
        raise _rejection(path, "has an architecture that spandrel does not know") from error
    except Exception as error:  # the loader parses an untrusted file, and can raise anything
        raise _rejection(path, "has weights that do not fit together") from error
    if net.purpose != "SR" or net.scale not in SCALES or (net.input_channels, net.output_channels) != (3, 3):
        raise _rejection(path, "does not enlarge pictures in colour by 2 to 8")
    log.info("the upscaler %s is a %s, ×%d", path.name, net.architecture.name, net.scale)
    return net, is_clamped


def _highest_layer_number(names: Iterable[str]) -> int:
    parts = (part for name in names for part in name.split("."))
    return max((int(part[:18]) for part in parts if part.isascii() and part.isdigit()), default=0)


def _rejection(path: Path, reason: str) -> JobRejected:
    return JobRejected(f"The upscaler {_safe_name(path)} {reason}.", "worker")


def _safe_name(path: Path) -> str:
    """Return a name that is safe in a PNG's text: the file's, or its folder's if the file has a common name."""
    if path == BUILT_IN:
        return "Darkroom"
    name = path.parent.name if path.stem in ("model", "diffusion_pytorch_model") else path.stem
    return re.sub(r"[^A-Za-z0-9._+ -]", "-", name)[:64] or "upscaler"


def _receptive_radius(net: torch.nn.Module) -> int:
    """Return the receptive field's radius if the network is a stack of convolutions; a bound for most others."""
    kernels = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    radius = sum((module.kernel_size[0] // 2) * module.dilation[0] for module in kernels)
    return min(MAX_CONTEXT, radius) + RESIZE_MARGIN


def _tile_boxes(size: tuple[int, int], context: int) -> Iterator[tuple[Box, Box]]:
    """Yield boxes that cover a picture of `size` without overlap, each with its larger context box.

    A context box may reach `EDGE_PADDING` pixels beyond the picture.
    """
    width, height = size
    step = TILE_SIDE - 2 * context
    for top in range(0, height, step):
        for left in range(0, width, step):
            inner = (left, top, min(left + step, width), min(top + step, height))
            outer = (
                max(-EDGE_PADDING, left - context),
                max(-EDGE_PADDING, top - context),
                min(inner[2] + context, width + EDGE_PADDING),
                min(inner[3] + context, height + EDGE_PADDING),
            )
            yield inner, outer


def _input_pixels_ratio(side: int, context: int) -> float:
    """Return input pixels per pixel of a square picture: more than one, since tiles overlap."""
    outer = [box for _, box in _tile_boxes((side, side), context)]
    return sum((right - left) * (bottom - top) for left, top, right, bottom in outer) / side**2


MAX_EXCESS = 2  # of 255: allowed excess


def clamp_ringing(large: Image.Image, source: Image.Image) -> Image.Image:
    """Clamp each colour of `large` to its range in the nearest nine pixels of `source`. Both are RGB."""
    minimum, maximum = (
        np.asarray(source.filter(rank_filter(3)).resize(large.size, Image.Resampling.NEAREST), dtype=np.int16)
        for rank_filter in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    clamped = np.asarray(large, dtype=np.int16).clip(minimum - MAX_EXCESS, maximum + MAX_EXCESS)
    return Image.fromarray(clamped.clip(0, 255).astype(np.uint8))
